/* The kernels of kernels.c for one width of vectors; included once for each.

   LANES: floats of a vector. FN(name): the name in this width. ROWS, VECTORS: queries, and vectors of values, that are
   computed at once; GROUP: rows of a product. So many that their sums stay in registers. */

#define VF FN(floats)
#define VI FN(ints)
typedef float VF __attribute__((vector_size(4 * LANES)));
typedef int32_t VI __attribute__((vector_size(4 * LANES)));
typedef float FN(anywhere) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define LOAD(p) ((VF) * (const FN(anywhere) *)(p))
#define STORE(p, x) (*(FN(anywhere) *)(p) = (x))
#define LOAD_INT(p) ((VI)LOAD((const float *)(p)))
#if LANES == 16
#define SPLAT(x) ((VF)_mm512_set1_ps(x))
#define MAX(a, b) ((VF)_mm512_max_ps((__m512)(a), (__m512)(b))) /* b where one is no number, so that it goes on */
#define MIN(a, b) ((VF)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define OF_PLACE(table, place)                                                                                         \
    ((VF)_mm512_permutex2var_ps((__m512)LOAD(table), (__m512i)(place), (__m512)LOAD((table) + LANES)))
#else
#define SPLAT(x) ((VF)_mm256_set1_ps(x))
#define MAX(a, b) ((VF)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define MIN(a, b) ((VF)_mm256_min_ps((__m256)(a), (__m256)(b)))
#endif
#define TOUCH static inline __attribute__((always_inline))

/* Of a vector whose first `left` floats, or all, are there. */
TOUCH VF FN(load)(const float *from, int64_t left) {
    if (left >= LANES) return LOAD(from);
#if LANES == 16
    return (VF)_mm512_maskz_loadu_ps((1 << left) - 1, from);
#else
    VF x = {};
    memcpy(&x, from, 4 * left);
    return x;
#endif
}

TOUCH void FN(store)(float *to, VF x, int64_t left) {
    if (left >= LANES)
        STORE(to, x);
    else
#if LANES == 16
        _mm512_mask_storeu_ps(to, (1 << left) - 1, (__m512)x);
#else
        memcpy(to, &x, 4 * left);
#endif
}

TOUCH VF FN(exp)(VF x) {
#if LANES == 16
    x = MAX(SPLAT(-104.0f), x);
#else
    VI nothing = x < -87.0f;
    x = MIN(SPLAT(88.0f), MAX(SPLAT(-87.0f), x));
#endif
    VF n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest whole: 1.5 * 2^23 has no fractions */
    VF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    VF p = SPLAT(1.39262155e-3f);
    p = p * r + 8.36317241e-3f;
    p = p * r + 4.16665524e-2f;
    p = p * r + 1.66665763e-1f;
    p = p * r + 0.5f;
    VF y = p * (r * r) + r + 1.0f;
#if LANES == 16
    return (VF)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    y = (VF)((VI)y + (__builtin_convertvector(n, VI) << 23));
    return (VF)((VI)y & ~nothing);
#endif
}

TOUCH VF FN(sigmoid)(VF x) { return 1.0f / (1.0f + FN(exp)(-x)); }

/* A fit of tanh(x) / x to 3e-9 where x is small and the other form loses digits. */
TOUCH VF FN(tanh)(VF x) {
    VF size = (VF)((VI)x & 0x7fffffff), t = x * x;
    VF p = SPLAT(-0.006233633495867252f);
    p = p * t + 0.02103821560740471f;
    p = p * t - 0.053842321038246155f;
    p = p * t + 0.13332456350326538f;
    p = p * t - 0.3333331048488617f;
    p = p * t + 1.0f;
    VF large = 1.0f - 2.0f / (1.0f + FN(exp)(2.0f * size));
    VI near = size < 0.55f, sign = (VI)x & INT32_MIN;
    return (VF)(((VI)(x * p) & near) | (((VI)large | sign) & ~near));
}

/* x Φ(x): by Taylor's sum around the nearest of 32 places, where registers hold tables; else as x (1 + erf(x / √2)) / 2, with
   erf(z) / z as a fraction in z², fitted to 2e-8 where |z| < 3.92. */
TOUCH VF FN(gelu)(VF x) {
#if LANES == 16
    VF size = (VF)((VI)x & 0x7fffffff), at = MIN(SPLAT(GELU_PLACES - 1), size * GELU_STEPS);
    VF place = at + 12582912.0f, d = at - (place - 12582912.0f); /* 1.5 * 2^23 has no fractions, and the place in its last bits */
    VF y = OF_PLACE(gelu_table[4], place);
    for (int i = 3; i >= 0; i--) y = y * d + OF_PLACE(gelu_table[i], place);
    return size * y + 0.5f * x;
#else
    VF z = MIN(SPLAT(3.92f), MAX(SPLAT(-3.92f), x * 0.70710678f)), t = z * z;
    VF p = SPLAT(2.0347283680166584e-06f), q = SPLAT(3.8070636946940795e-05f);
    p = p * t + 0.000287480594124645f;
    q = q * t + 0.0011881269747391343f;
    p = p * t + 0.003868374740704894f;
    q = q * t + 0.015172390267252922f;
    p = p * t + 0.0530606247484684f;
    q = q * t + 0.11508507281541824f;
    p = p * t + 0.19276514649391174f;
    q = q * t + 0.5041653513908386f;
    p = p * t + 1.128378987312317f;
    q = q * t + 1.0f;
    VI far = (VF)((VI)x & 0x7fffffff) > 5.54f, sign = (VI)x & INT32_MIN;
    VF erf = (VF)(((VI)(z * p / q) & ~far) | (((VI)SPLAT(1.0f) | sign) & far)), half = 0.5f * x;
    return half * erf + half;
#endif
}

TOUCH VF FN(act)(int kind, VF x) {
    switch (kind) {
    case GELU:
        return FN(gelu)(x);
    case GELU_TANH:
        return x * FN(sigmoid)(1.59576912f * (x + 0.044715f * x * x * x));
    case RELU:
        return MAX(SPLAT(0.0f), x);
    case SILU:
        return x * FN(sigmoid)(x);
    case TANH:
        return FN(tanh)(x);
    default:
        return x;
    }
}

/* A call with each kind as a constant. */
#define OF_ACT(one, call)                                                                                              \
    case one: {                                                                                                        \
        enum { kind = one };                                                                                           \
        call;                                                                                                          \
        break;                                                                                                         \
    }
#define EACH_ACT(call)                                                                                                 \
    OF_ACT(NONE, call) OF_ACT(GELU, call) OF_ACT(GELU_TANH, call) OF_ACT(RELU, call) OF_ACT(SILU, call) OF_ACT(TANH, call)

TOUCH VF FN(turned)(VF x, int by) {
    VI from;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) from[i] = (i + by) % LANES;
    return __builtin_shuffle(x, from);
}

/* Each number of lanes apart, as a constant, so that the places of a shuffle are constants too. */
#if LANES == 16
#define EACH_HALF(step) step(8) step(4) step(2) step(1)
#else
#define EACH_HALF(step) step(4) step(2) step(1)
#endif

/* Half against half, until one is left: all lanes hold the largest, or the sum. It is the same sum, to the last bit, for
   terms that all lie some lanes further on: which are added to which depends on how far apart they lie. */
TOUCH float FN(largest)(VF x) {
#define STEP(half) x = MAX(x, FN(turned)(x, half));
    EACH_HALF(STEP)
#undef STEP
    return x[0];
}

TOUCH float FN(sum)(VF x) {
#define STEP(half) x += FN(turned)(x, half);
    EACH_HALF(STEP)
#undef STEP
    return x[0];
}

/* The first, or second, so many of each double so many lanes of a, then of b. */
TOUCH VF FN(halves)(VF a, VF b, int half, int second) {
    VI from;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) from[i] = i / half * 2 * half + i % half + second * half;
    return __builtin_shuffle(a, b, from);
}

/* The same of ROWS vectors together, in a third of the steps: halves of two vectors against their other halves, in one that
   has those of both, and so on, until there is one, with the result of each. */
#define REDUCE(name, one)                                                                                              \
    TOUCH void FN(name##_step)(VF *x, int half) {                                                                      \
        _Pragma("GCC unroll 4") for (int i = 0; i < (half + 1) / 2; i++) {                                             \
            VF a = FN(halves)(x[2 * i], x[2 * i + 1], half, 0), b = FN(halves)(x[2 * i], x[2 * i + 1], half, 1);       \
            x[i] = one;                                                                                                \
        }                                                                                                              \
    }                                                                                                                  \
    TOUCH void FN(name)(VF *x, float *of_each) {                                                                       \
        EACH_HALF(STEP)                                                                                                \
        memcpy(of_each, x, 4 * ROWS);                                                                                  \
    }
#define STEP(half) FN(largest_of_each_step)(x, half);
REDUCE(largest_of_each, MAX(a, b))
#undef STEP
#define STEP(half) FN(sum_of_each_step)(x, half);
REDUCE(sum_of_each, a + b)
#undef STEP
#undef REDUCE

/* m[i][j] → m[j][i], in as many steps as an index has bits: each swaps one bit of i with the same bit of j. */
TOUCH void FN(swap_bit)(VF *m, int bit) {
    VI low, high;
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) {
        low[j] = j & bit ? LANES + j - bit : j;
        high[j] = j & bit ? LANES + j : j + bit;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & bit)) {
            VF a = m[i], b = m[i + bit];
            m[i] = __builtin_shuffle(a, b, low);
            m[i + bit] = __builtin_shuffle(a, b, high);
        }
}

TOUCH void FN(transpose)(VF *m) {
#define STEP(bit) FN(swap_bit)(m, bit);
    EACH_HALF(STEP)
#undef STEP
}

/* Keys [keys, dim] → panels of two vectors of keys, [dim][2 * LANES] each, repeating the last. */
static void FN(lay_out)(const struct attention *a, const struct part *part, float *to) {
    for (int64_t first = 0; first < part->padded; first += LANES) {
        float *panel = to + first / (2 * LANES) * (2 * LANES) * a->dim + first % (2 * LANES);
        const float *key[LANES];
        for (int i = 0; i < LANES; i++) {
            int64_t j = first + i < part->keys ? first + i : part->keys - 1;
            key[i] = a->k + row_of(part, j) * a->k_row + part->kv_head * a->dim;
        }
        int64_t t = 0;
        for (; t + LANES <= a->dim; t += LANES) {
            VF m[LANES];
            for (int i = 0; i < LANES; i++) m[i] = LOAD(key[i] + t);
            FN(transpose)(m);
            for (int i = 0; i < LANES; i++) STORE(panel + (t + i) * 2 * LANES, m[i]);
        }
        for (; t < a->dim; t++)
            for (int i = 0; i < LANES; i++) panel[t * 2 * LANES + i] = key[i][t];
    }
}

/* Some tokens of a head one behind the other, `wide` floats apart, so that one address leads to all of them. */
TOUCH void FN(gather)(const float *const *tokens, int64_t dim, int64_t wide, float *to) {
    for (int r = 0; r < ROWS; r++)
        for (int64_t t = 0; t < dim; t += LANES) STORE(to + r * wide + t, FN(load)(tokens[r] + t, dim - t));
}

/* scores [rows][vectors * LANES] of some queries, gathered, and one panel of keys, whose floats lie panel_row apart. */
TOUCH void FN(score)(int rows, int vectors, int64_t dim, const float *q, int64_t q_row, const float *panel, int64_t panel_row,
                     float *scores, int64_t stride) {
    VF sums[ROWS][2] = {};
    for (int64_t t = 0; t < dim; t++, panel += panel_row) {
        VF key[2];
        for (int i = 0; i < vectors; i++) key[i] = LOAD(panel + i * LANES);
        for (int r = 0; r < rows; r++) {
            VF one = SPLAT(q[r * q_row + t]);
            for (int i = 0; i < vectors; i++) sums[r][i] += one * key[i];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) STORE(scores + r * stride + i * LANES, sums[r][i]);
}

/* products [ROWS][size or more] of some tokens of a head with a table by distance, from its column `from` on. */
static void FN(score_distances)(const struct attention *a, const float *tokens, int64_t wide, const float *from, int64_t size,
                                float *products, int64_t stride) {
    int64_t u = 0;
    for (; u + LANES < size; u += 2 * LANES)
        FN(score)(ROWS, 2, a->dim, tokens, wide, from + u, a->table_row, products + u, stride);
    if (u < size) FN(score)(ROWS, 1, a->dim, tokens, wide, from + u, a->table_row, products + u, stride);
}

/* scores [count][padded] of a part's queries: each key's product with the distance to it, k_j·far(i - j). Key by key they are
   neighbours in the table, each key's one place before those of the last; then rows become columns. */
static void FN(score_keys)(const struct attention *a, const struct part *part, float *tokens, int64_t wide, float *scores,
                           float *products) {
    int64_t stride = QUERIES + 2 * LANES;
    const float *table = a->key_table + part->kv_head * a->dim * a->table_row;
    for (int64_t first = 0; first < part->keys; first += LANES) {
        for (int64_t at = first; at < first + LANES && at < part->keys; at += ROWS) {
            const float *keys[ROWS];
            for (int r = 0; r < ROWS; r++) {
                int64_t j = at + r < part->keys ? at + r : part->keys - 1;
                keys[r] = a->k + row_of(part, j) * a->k_row + part->kv_head * a->dim;
            }
            int64_t nearest = part->position - (part->low + at + ROWS - 1);
            FN(gather)(keys, a->dim, wide, tokens);
            FN(score_distances)(a, tokens, wide, table + nearest, part->count + ROWS - 1, products + (at - first) * stride, stride);
        }
        for (int64_t i = 0; i < part->count; i += LANES) {
            VF m[LANES];
            for (int r = 0; r < LANES; r++) m[r] = LOAD(products + r * stride + i + ROWS - 1 - r % ROWS);
            FN(transpose)(m);
            for (int r = 0; r < LANES && i + r < part->count; r++) STORE(scores + (i + r) * part->padded + first, m[r]);
        }
    }
}

TOUCH void FN(add)(float *s, const float *more, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; j += LANES) STORE(s + j, LOAD(s + j) + LOAD(more + j));
}

/* out [rows][vectors * LANES] = weights [rows][from … to) values [from … to), each row times its factor. The first `own`
   floats of it are a head's. */
TOUCH void FN(mix)(int rows, int vectors, const float *weights, int64_t stride, const float *values, int64_t v_row,
                   int64_t from, int64_t to, const float *factors, float *const *out, int64_t at, int64_t own) {
    VF sums[ROWS][VECTORS] = {};
    for (int64_t j = from; j < to; j++) {
        VF v[VECTORS];
        for (int i = 0; i < vectors; i++) v[i] = LOAD(values + j * v_row + i * LANES);
        for (int r = 0; r < rows; r++) {
            VF one = SPLAT(weights[r * stride + j]);
            for (int i = 0; i < vectors; i++) sums[r][i] += one * v[i];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) {
            VF y = sums[r][i] * factors[r];
            FN(store)(out[r] + at + i * LANES, y, own - i * LANES);
        }
}

/* -∞ where a key is not among [from, to); [first, last) are whole vectors. */
TOUCH void FN(hide)(float *s, int64_t from, int64_t to, int64_t first, int64_t last) {
    VI place;
    for (int i = 0; i < LANES; i++) place[i] = i;
    for (int64_t j = first; j < last; j += LANES)
        if (j < from || j + LANES > to) {
            VI seen = (place >= (int32_t)(from - j)) & (place < (int32_t)(to - j));
            STORE(s + j, (VF)(((VI)LOAD(s + j) & seen) | ((VI)SPLAT(-INFINITY) & ~seen)));
        }
}

/* scale * score → cap * tanh(scale * score / cap), as Gemma 2 does. */
TOUCH void FN(cap)(float *s, float scale, float cap, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; j += LANES) STORE(s + j, cap * FN(tanh)(LOAD(s + j) * (scale / cap)));
}

TOUCH VF FN(top)(const float *s, int64_t first, int64_t last) {
    VF most = SPLAT(-INFINITY);
    for (int64_t j = first; j < last; j += LANES) most = MAX(most, LOAD(s + j));
    return most;
}

/* Scores → weights that are not yet divided by their sum, which is that of the lanes returned. */
TOUCH VF FN(weigh)(float *s, float top, float scale, int64_t first, int64_t last) {
    VF sums = {};
    for (int64_t j = first; j < last; j += LANES) {
        VF weight = FN(exp)((LOAD(s + j) - top) * scale);
        sums += weight;
        STORE(s + j, weight);
    }
    return sums;
}

#define AT_MOST(n, call)                                                                                                \
    do {                                                                                                               \
        if ((n) > 4) { enum { rows = ROWS }; call; }                                                                   \
        else if ((n) > 2) { enum { rows = 4 }; call; }                                                                 \
        else if ((n) > 1) { enum { rows = 2 }; call; }                                                                 \
        else { enum { rows = 1 }; call; }                                                                              \
    } while (0)

/* Have `size` floats of rows [from, to) brought nearer; they lie row floats apart. */
TOUCH void FN(ask_for)(const float *rows, int64_t row, int64_t from, int64_t to, int64_t size) {
    for (int64_t i = from; i < to; i++)
        for (int64_t t = 0; t < size; t += 16) __builtin_prefetch(rows + i * row + t, 0, 2);
}

/* While queries [asked, asked + n) are computed, ask for as large a part of what the next head reads: its rows lie as far from
   each other as tokens do, so that the CPU does not guess them. */
TOUCH void FN(ask_for_next)(const struct attention *a, const struct part *part, int64_t asked, int64_t n) {
    int64_t group = a->heads / a->kv_heads, all = part->count * group, head = part->kv_head + 1;
    if (head == a->kv_heads || part->split) return;
    const float *q = a->q + part->query * a->q_row + head * group * a->dim;
    const float *k = a->k + row_of(part, 0) * a->k_row + head * a->dim, *v = a->v + row_of(part, 0) * a->v_row + head * a->dim;
    int64_t from = part->keys * asked / all, to = part->keys * (asked + n) / all;
    FN(ask_for)(q, a->q_row, asked / group, (asked + n) / group, group * a->dim);
    FN(ask_for)(k, a->k_row, from, to, a->dim);
    FN(ask_for)(v, a->v_row, from, to, a->dim);
}

/* Some queries of one sequence and one head of keys. */
static void FN(attend_part)(const struct attention *a, const struct part *part, float *scratch) {
    int64_t dim = a->dim, wide = (dim + LANES - 1) / LANES * LANES, group = a->heads / a->kv_heads;
    float *keys = scratch, *scores = keys + part->padded * dim, *nowhere = scores + ROWS * part->padded, *q = nowhere + wide;
    float *own = q + ROWS * wide, *of_queries = own + part->padded * wide;
    float *of_keys = of_queries + ROWS * (part->padded + 2 * LANES);
    FN(lay_out)(a, part, keys);
    if (a->key_table) FN(score_keys)(a, part, q, wide, of_keys, of_keys + part->count * part->padded);
    const float *values = a->v + row_of(part, 0) * a->v_row + part->kv_head * dim;
    int64_t v_row = a->v_row;
    if (part->split || wide != dim) { /* values that do not lie evenly, or end within a vector */
        for (int64_t j = 0; j < part->keys; j++) {
            memcpy(own + j * wide, a->v + row_of(part, j) * a->v_row + part->kv_head * dim, 4 * dim);
            memset(own + j * wide + dim, 0, 4 * (wide - dim));
        }
        values = own;
        v_row = wide;
    }
    for (int64_t asked = 0; asked < part->count * group; asked += ROWS) {
        int n = part->count * group - asked < ROWS ? part->count * group - asked : ROWS;
        const float *queries[ROWS];
        float *out[ROWS], factors[ROWS];
        int64_t from[ROWS], to[ROWS], first = part->keys, last = 0;
        int64_t i = asked % part->count, head = part->kv_head * group + asked / part->count;
        for (int r = 0; r < ROWS; r++) { /* rows beyond n repeat the last one's query */
            if (r && r < n && ++i == part->count) i = 0, head++;
            int64_t position = part->position + i;
            queries[r] = a->q + (part->query + i) * a->q_row + head * dim;
            out[r] = r < n ? a->out + ((part->query + i) * a->heads + head) * dim : nowhere;
            from[r] = position - a->left > part->low ? position - a->left - part->low : 0;
            to[r] = position + a->right + 1 - part->low < part->keys ? position + a->right + 1 - part->low : part->keys;
            first = from[r] < first ? from[r] : first;
            last = to[r] > last ? to[r] : last;
        }
        FN(gather)(queries, dim, wide, q);
        FN(ask_for_next)(a, part, asked, n);
        int64_t start = first / (2 * LANES) * 2 * LANES, end = (last + LANES - 1) / LANES * LANES, j = start;
        for (; j + LANES < end; j += 2 * LANES)
            AT_MOST(n, FN(score)(rows, 2, dim, q, wide, keys + j * dim, 2 * LANES, scores + j, part->padded));
        if (j < end) AT_MOST(n, FN(score)(rows, 1, dim, q, wide, keys + j * dim, 2 * LANES, scores + j, part->padded));
        if (a->query_table) { /* each query's are one place behind those of the next */
            const float *table = a->query_table + part->kv_head * dim * a->table_row;
            int64_t stride = part->padded + 2 * LANES, farthest = part->position + asked + ROWS - 1 - part->low;
            FN(score_distances)(a, q, wide, table - farthest, part->keys + ROWS - 1, of_queries, stride);
            for (int r = 0; r < n; r++)
                FN(add)(scores + r * part->padded, of_queries + r * stride + ROWS - 1 - r, start, end);
        }
        for (int r = 0; a->key_table && r < n; r++)
            FN(add)(scores + r * part->padded, of_keys + (asked + r) * part->padded, start, end);
        float scale = a->softcap > 0.0f ? 1.0f : a->scale, tops[ROWS], sums[ROWS];
        VF of_rows[ROWS] = {};
        for (int r = 0; r < n; r++) {
            if (a->softcap > 0.0f) FN(cap)(scores + r * part->padded, a->scale, a->softcap, start, end);
            FN(hide)(scores + r * part->padded, from[r], to[r], start, end);
            of_rows[r] = FN(top)(scores + r * part->padded, start, end);
        }
        FN(largest_of_each)(of_rows, tops);
        for (int r = 0; r < n; r++) of_rows[r] = FN(weigh)(scores + r * part->padded, tops[r], scale, start, end);
        FN(sum_of_each)(of_rows, sums);
        for (int r = 0; r < n; r++) factors[r] = 1.0f / sums[r];
        int64_t at = 0;
#define MIX(most, vectors, own)                                                                                        \
    for (int r = 0; r < n; r += most)                                                                                  \
        AT_MOST(n - r, FN(mix)(rows < most ? rows : most, vectors, scores + r * part->padded, part->padded, values + at, v_row, \
                               first, last, factors + r, out + r, at, own))
        for (; at + VECTORS * LANES <= dim; at += VECTORS * LANES) MIX(4, VECTORS, VECTORS * LANES);
        for (; at + 2 * LANES <= dim; at += 2 * LANES) MIX(ROWS, 2, 2 * LANES);
        for (; at < dim; at += LANES) MIX(ROWS, 1, dim - at);
#undef MIX
    }
}

/* The sum with the neighbour `by` further on, and the difference from the one before, in turn. */
TOUCH VF FN(among)(VF x, int by) {
    VI other;
    VF sign;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        other[i] = i ^ by;
        sign[i] = i & by ? -1.0f : 1.0f;
    }
    return x * sign + __builtin_shuffle(x, other);
}

/* Of so many vectors, sums of those that are `by` apart in place of the first, and differences in place of the other. */
TOUCH void FN(stage)(VF *all, int vectors, int by) {
#pragma GCC unroll 8
    for (int i = 0; i < vectors / 2; i++) {
        int first = i / by * 2 * by + i % by;
        VF one = all[first], other = all[first + by];
        all[first] = one + other;
        all[first + by] = one - other;
    }
}

/* x [size], of which `most` neighbours at a time are spread → y. Returns the largest magnitude; where one is no number, it is
   none either. */
TOUCH float FN(spread_by)(int most, const float *x, int64_t size, float *y) {
    VF largest = {}, nothing = {}; /* no number times 0 is none either */
    int vectors = most > LANES ? most / LANES : 1;
    for (int64_t i = 0; i < size; i += vectors * LANES) {
        VF all[16];
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) {
            all[j] = FN(load)(x + i + j * LANES, vectors > 1 ? LANES : size - i);
#define STEP(by)                                                                                                       \
    if (by < most) all[j] = FN(among)(all[j], by);
            EACH_HALF(STEP)
#undef STEP
        }
        if (vectors > 1) FN(stage)(all, vectors, 1);
        if (vectors > 2) FN(stage)(all, vectors, 2);
        if (vectors > 4) FN(stage)(all, vectors, 4);
        if (vectors > 8) FN(stage)(all, vectors, 8);
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) {
            largest = MAX(largest, (VF)((VI)all[j] & 0x7fffffff));
            nothing += all[j] * 0.0f;
            FN(store)(y + i + j * LANES, all[j], vectors > 1 ? LANES : size - i);
        }
    }
    return FN(largest)(largest) + FN(sum)(nothing);
}

static float FN(spread)(const float *x, int64_t size, float *y) {
    switch (size & -size & 127) {
    case 0: return FN(spread_by)(128, x, size, y);
    case 64: return FN(spread_by)(64, x, size, y);
    case 32: return FN(spread_by)(32, x, size, y);
    case 16: return FN(spread_by)(16, x, size, y);
    case 8: return FN(spread_by)(8, x, size, y);
    default: return FN(spread_by)(1, x, size, y);
    }
}

/* x [size] → as products.spread has it, in whole numbers around 128 and a scale. A half is added, for conversion cuts off. */
static void FN(quantize_row)(const float *x, int64_t size, uint8_t *whole, float *scale) {
    float row[size], largest = FN(spread)(x, size, row) / 127.0f;
    *scale = largest <= FLT_MIN ? FLT_MIN : largest; /* what is no number stays none */
    float factor = 1.0f / *scale;
    for (int64_t i = 0; i < size; i += LANES) {
        typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
        VF y = FN(load)(row + i, size - i) * factor + 128.5f;
        bytes eight = __builtin_convertvector(__builtin_convertvector(y, VI), bytes);
        if (size - i >= LANES)
            *(bytes *)(whole + i) = eight;
        else
            memcpy(whole + i, &eight, size - i);
    }
}

/* y = act(x * scale + bias) * times. */
TOUCH void FN(finish_by)(int kind, const float *x, int64_t size, float scale, const float *bias, const float *times, float *y) {
    for (int64_t i = 0; i < size; i += LANES) {
        int64_t left = size - i;
        VF one = FN(load)(x + i, left) * scale;
        if (bias) one += FN(load)(bias + i, left);
        one = FN(act)(kind, one);
        if (times) one *= FN(load)(times + i, left);
        FN(store)(y + i, one, left);
    }
}

static void FN(finish_row)(int kind, const float *x, int64_t size, float scale, const float *bias, const float *times, float *y) {
    switch (kind) { EACH_ACT(FN(finish_by)(kind, x, size, scale, bias, times, y)) }
}

/* y = x / rms(x) * (weight + more); y may be x. */
static void FN(normalize_row)(const float *x, int64_t size, const float *weight, float eps, float more, float *y) {
    VF squares = {};
    for (int64_t i = 0; i < size; i += LANES) {
        VF one = FN(load)(x + i, size - i);
        squares += one * one;
    }
    float factor = 1.0f / sqrtf(FN(sum)(squares) / size + eps);
    for (int64_t i = 0; i < size; i += LANES)
        FN(store)(y + i, FN(load)(x + i, size - i) * factor * (FN(load)(weight + i, size - i) + more), size - i);
}

static void FN(sum_row)(const float *a, const float *b, int64_t size, float *y) {
    for (int64_t i = 0; i < size; i += LANES) FN(store)(y + i, FN(load)(a + i, size - i) + FN(load)(b + i, size - i), size - i);
}

/* total = a + b, or a where there is no b, and y as assay_normalize_sum has it; total may be a or y. */
static void FN(normalize_sum_row)(const float *a, const float *b, int64_t size, int centred, const float *weight,
                                  const float *bias, float eps, float more, float *total, float *y) {
    VF sum = {}, squares = {};
    for (int64_t i = 0; i < size; i += LANES) {
        VF one = FN(load)(a + i, size - i);
        if (b) one += FN(load)(b + i, size - i);
        sum += one;
        FN(store)(total + i, one, size - i);
    }
    float mean = centred ? FN(sum)(sum) / size : 0.0f;
    VI place;
    for (int i = 0; i < LANES; i++) place[i] = i;
    for (int64_t i = 0; i < size; i += LANES) {
        VF one = FN(load)(total + i, size - i) - mean;
        if (size - i < LANES) one = (VF)((VI)one & (place < (int32_t)(size - i)));
        squares += one * one;
    }
    float factor = 1.0f / sqrtf(FN(sum)(squares) / size + eps);
    for (int64_t i = 0; i < size; i += LANES) {
        VF one = (FN(load)(total + i, size - i) - mean) * factor * (FN(load)(weight + i, size - i) + more);
        if (bias) one += FN(load)(bias + i, size - i);
        FN(store)(y + i, one, size - i);
    }
}

/* A head turned, in place, by the angles whose cosines and sines are given: its first `dim` floats, halves paired. */
static void FN(turn_head)(float *x, const float *cos, const float *sin, int64_t dim) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        int64_t left = half - i;
        VF a = FN(load)(x + i, left), b = FN(load)(x + half + i, left);
        FN(store)(x + i, a * FN(load)(cos + i, left) - b * FN(load)(sin + i, left), left);
        FN(store)(x + half + i, b * FN(load)(cos + half + i, left) + a * FN(load)(sin + half + i, left), left);
    }
}

/* W [out, in] → panels of two vectors of its rows, [in][2 * LANES] each, zeros behind the last. */
static void FN(pack_panel)(const float *weight, int64_t in, int64_t out, int64_t first, float *panel) {
    static const float zeros[LANES];
    for (int half = 0; half < 2; half++, panel += LANES) {
        int64_t t = 0;
        for (; t + LANES <= in; t += LANES) {
            VF m[LANES];
            for (int i = 0; i < LANES; i++) {
                int64_t row = first + half * LANES + i;
                m[i] = LOAD(row < out ? weight + row * in + t : zeros);
            }
            FN(transpose)(m);
            for (int i = 0; i < LANES; i++) STORE(panel + (t + i) * 2 * LANES, m[i]);
        }
        for (; t < in; t++)
            for (int i = 0; i < LANES; i++) {
                int64_t row = first + half * LANES + i;
                panel[t * 2 * LANES + i] = row < out ? weight[row * in + t] : 0.0f;
            }
    }
}

/* act(tile [rows][2 * LANES]) → y, of the first `left` columns, or, gated, that of its first vectors times the second. Rows of y
   lie y_row apart. */
TOUCH void FN(finish_tile_by)(int kind, int gated, const float *tile, int64_t rows, int64_t left, float *y, int64_t y_row) {
    for (int64_t row = 0; row < rows; row++, tile += 2 * LANES, y += y_row) {
        if (gated) {
            FN(store)(y, FN(act)(kind, LOAD(tile)) * LOAD(tile + LANES), left);
            continue;
        }
        for (int64_t i = 0; i < 2 * LANES && i < left; i += LANES) FN(store)(y + i, FN(act)(kind, LOAD(tile + i)), left - i);
    }
}

static void FN(finish_tile)(int kind, int gated, const float *tile, int64_t rows, int64_t left, float *y, int64_t y_row) {
    switch (kind) { EACH_ACT(FN(finish_tile_by)(kind, gated, tile, rows, left, y, y_row)) }
}

/* y [rows][2 * LANES] = base + x [rows][in] times one panel; base_row is 0 where all rows have one base. With few rows the
   weights are waited for: what comes AHEAD, be it of the next panel, is asked for meanwhile. */
#define AHEAD (64 * 2 * LANES)
TOUCH void FN(multiply_by)(int rows, const float *x, int64_t x_row, const float *panel, int64_t in, const float *base,
                           int64_t base_row, float *y, int64_t y_row) {
    VF sums[GROUP][2] = {};
    for (int64_t t = 0; t < in; t++, panel += 2 * LANES) {
        VF a = LOAD(panel), b = LOAD(panel + LANES);
        for (int i = 0; i < 2 * LANES; i += 16) __builtin_prefetch(panel + AHEAD + i, 0, 2);
        for (int r = 0; r < rows; r++) {
            VF one = SPLAT(x[r * x_row + t]);
            sums[r][0] += one * a;
            sums[r][1] += one * b;
        }
    }
    for (int r = 0; r < rows; r++) {
        STORE(y + r * y_row, sums[r][0] + LOAD(base + r * base_row));
        STORE(y + r * y_row + LANES, sums[r][1] + LOAD(base + r * base_row + LANES));
    }
}

/* A call with so many rows, at most GROUP, as a constant. */
#define OF_ROWS(n, call)                                                                                               \
    case n: {                                                                                                          \
        enum { rows = n };                                                                                             \
        call;                                                                                                          \
        break;                                                                                                         \
    }
#define UP_TO_6(call)                                                                                                  \
    OF_ROWS(1, call) OF_ROWS(2, call) OF_ROWS(3, call) OF_ROWS(4, call) OF_ROWS(5, call) OF_ROWS(6, call)
#if GROUP == 12
#define UP_TO_GROUP(call)                                                                                              \
    UP_TO_6(call) OF_ROWS(7, call) OF_ROWS(8, call) OF_ROWS(9, call) OF_ROWS(10, call) OF_ROWS(11, call)               \
    OF_ROWS(12, call)
#else
#define UP_TO_GROUP UP_TO_6
#endif

static void FN(multiply_group)(int count, const float *x, int64_t x_row, const float *panel, int64_t in,
                               const float *base, int64_t base_row, float *y, int64_t y_row) {
    switch (count) { UP_TO_GROUP(FN(multiply_by)(rows, x, x_row, panel, in, base, base_row, y, y_row)) }
}

/* Have a part of y brought into the cache while its sums are computed: it was written long ago, or never, and a store that
   waits for its place stops everything. */
TOUCH void FN(fetch)(const float *y, int64_t y_row, int64_t rows, int64_t wide) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < wide; i += 16) __builtin_prefetch(y + row * y_row + i, 1);
}

/* Some rows and panels of a product: a panel times all of the rows, then the next. Summed in blocks, so that fewer
   roundings follow one another. copy: room for the rows where their own places would be cached over each other. */
static void FN(multiply_part)(const struct product *p, int64_t first, int64_t rows, int64_t from, int64_t to, float *copy) {
    int64_t groups = (rows + GROUP - 1) / GROUP, x_row = copy ? p->in + 16 : p->x_row;
    const float *x = p->x + first * p->x_row;
    if (copy) {
        for (int64_t row = 0; row < rows; row++) memcpy(copy + row * x_row, x + row * p->x_row, 4 * p->in);
        x = copy;
    }
    int64_t wide = p->gated ? LANES : 2 * LANES;
    for (int64_t panel = from; panel < to; panel++) {
        int64_t column = panel * wide, left = p->out - column < wide ? p->out - column : wide;
        const float *weights = p->weight + panel * 2 * LANES * p->in;
        float bias[2 * LANES] = {}, sums[CHUNK * 2 * LANES];
        if (p->bias) memcpy(bias, p->bias + panel * 2 * LANES, 4 * (p->gated ? 2 * LANES : left));
        for (int64_t block = 0; block < p->in; block += BLOCK) {
            int64_t in = p->in - block < BLOCK ? p->in - block : BLOCK;
            int last = block + in == p->in, straight = last && p->act == NONE && left == 2 * LANES;
            for (int64_t i = 0; i < groups; i++) { /* of nearly equal size: a small one costs as much as a large one */
                int64_t start = rows * i / groups, end = rows * (i + 1) / groups, at = (first + start) * p->y_row + column;
                float *tile = sums + start * 2 * LANES, *y = p->y + at;
                if (!block) FN(fetch)(y, p->y_row, end - start, wide);
                FN(multiply_group)(end - start, x + start * x_row + block, x_row, weights + block * 2 * LANES, in,
                                   block ? tile : bias, block ? 2 * LANES : 0, straight ? y : tile,
                                   straight ? p->y_row : 2 * LANES);
                if (last && !straight)
                    FN(finish_tile)(p->act, p->gated, tile, end - start, left, y, p->y_row);
            }
        }
    }
}

#ifdef BYTES
/* W [out, in] of whole numbers → panels as multiply8_by wants them, [in / 4][2 * LANES][4], zeros behind the last; in base,
   what x's 128s come to. */
static void FN(pack8_panel)(const int8_t *weight, int64_t in, int64_t out, int64_t first, int8_t *panel, int32_t *base) {
    for (int64_t i = 0; i < 2 * LANES; i++) base[i] = 0;
    for (int64_t t = 0; t < in; t += 4)
        for (int64_t i = 0; i < 2 * LANES; i++)
            for (int64_t j = 0; j < 4; j++) {
                int8_t one = first + i < out && t + j < in ? weight[(first + i) * in + t + j] : 0;
                panel[(t * 2 * LANES) + i * 4 + j] = one;
                base[i] -= 128 * one;
            }
}

/* y [rows][2 * LANES] = x [rows][in] times one panel, in whole numbers, on top of `base` of each column; then as floats,
   times a scale of each column and of each row, plus a bias. Four neighbours in x are multiplied at once. */
TOUCH BYTES_TARGET void FN(multiply8_by)(int rows, const uint8_t *x, int64_t x_row, const int8_t *panel, int64_t in,
                                         const int32_t *base, const float *scale, const float *row_scale, const float *bias,
                                         float *y, int64_t y_row) {
    VI sums[GROUP][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        sums[r][0] = LOAD_INT(base);
        sums[r][1] = LOAD_INT(base + LANES);
    }
    for (int64_t t = 0; t < in; t += 4, panel += 8 * LANES) {
        VI a, b;
        for (int i = 0; i < 8 * LANES; i += 64) __builtin_prefetch(panel + 4 * AHEAD + i, 0, 2);
        memcpy(&a, panel, sizeof a);
        memcpy(&b, panel + 4 * LANES, sizeof b);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * x_row + t, 4);
            VI one = SPLAT_INT(four);
            sums[r][0] = BYTES(sums[r][0], one, a);
            sums[r][1] = BYTES(sums[r][1], one, b);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            VF one = __builtin_convertvector(sums[r][i], VF) * LOAD(scale + i * LANES);
            STORE(y + r * y_row + i * LANES, one * row_scale[r] + LOAD(bias + i * LANES));
        }
}

static BYTES_TARGET void FN(multiply8_group)(int count, const uint8_t *x, int64_t x_row, const int8_t *panel, int64_t in,
                                             const int32_t *base, const float *scale, const float *row_scale,
                                             const float *bias, float *y, int64_t y_row) {
    switch (count) { UP_TO_GROUP(FN(multiply8_by)(rows, x, x_row, panel, in, base, scale, row_scale, bias, y, y_row)) }
}

/* As multiply_part, in whole numbers, which need no blocks: their sums are exact. */
static void FN(multiply8_part)(const struct product8 *p, int64_t first, int64_t rows, int64_t from, int64_t to) {
    int64_t groups = (rows + GROUP - 1) / GROUP, wide = p->gated ? LANES : 2 * LANES;
    for (int64_t panel = from; panel < to; panel++) {
        int64_t column = panel * wide, left = p->out - column < wide ? p->out - column : wide, all = panel * 2 * LANES;
        int straight = p->act == NONE && left == 2 * LANES;
        float bias[2 * LANES] = {}, tile[GROUP * 2 * LANES];
        if (p->bias) memcpy(bias, p->bias + all, 4 * (p->gated ? 2 * LANES : left));
        for (int64_t i = 0; i < groups; i++) {
            int64_t start = first + rows * i / groups, end = first + rows * (i + 1) / groups, at = start * p->y_row + column;
            float *y = p->y + at;
            FN(fetch)(y, p->y_row, end - start, wide);
            FN(multiply8_group)(end - start, p->x + start * p->x_row, p->x_row, p->weight + all * p->in, p->in, p->base + all,
                                p->column_scale + all, p->row_scale + start, bias, straight ? y : tile,
                                straight ? p->y_row : 2 * LANES);
            if (!straight) FN(finish_tile)(p->act, p->gated, tile, end - start, left, y, p->y_row);
        }
    }
}
#endif

#undef VF
#undef VI
#undef LOAD
#undef STORE
#undef MAX
#undef MIN
#undef OF_PLACE
#undef SPLAT
#undef TOUCH
#undef OF_ACT
#undef EACH_ACT
#undef EACH_HALF
#undef AHEAD
#undef AT_MOST
#undef OF_ROWS
#undef UP_TO_6
#undef UP_TO_GROUP
