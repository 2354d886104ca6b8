/* Attention of some queries of one sequence, in one width of vectors (lanes.h): scores, softmax, values, and scores by distance. */

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
