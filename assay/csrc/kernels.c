/* What models compute on a CPU: products of float32 and of 8-bit integers, attention over a packed batch, norms, rotations,
   embeddings, and whole layers of these.

   Plain C, called with addresses (model/compiled.py); no Python, no torch. One set of kernels for each width of vectors, taken
   by what the CPU has. Threads are OpenMP's, which are torch's own: its libgomp is in the process before this is. */

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NONE, GELU, GELU_TANH, RELU, SILU, TANH };
enum { ALL, FIRST, LAST };
enum { QUERIES = 128 }; /* of a part of attention */
enum { BLOCK = 384 };   /* columns of a product that are summed by themselves */
enum { CHUNK = 96 };    /* rows of a part of a product */
enum { LAYER_ROWS = 48 }; /* rows of a part of a layer */

/* q: [tokens, heads, dim], or [sequences, heads, dim] where one query of each asks; k, v: [tokens, kv_heads, dim].
   A token's floats lie q_row, k_row, v_row apart; out: as q, without gaps. A query sees the keys from `left` before its
   place to `right` behind it. query_table, key_table, or none: what a score gets on top by how far query i lies behind key j,
   q_i·query_table(i - j) and k_j·key_table(i - j). They are [heads][dim][table_row], point to the distance 0, and have
   32 columns more to either side than there are distances, for groups of rows and whole vectors reach further. The first
   falls from left to right, the second rises. */
struct attention {
    const float *q, *k, *v;
    float *out;
    int64_t q_row, k_row, v_row, heads, kv_heads, dim, left, right;
    float scale, softcap;
    const float *query_table, *key_table;
    int64_t table_row;
};

/* Neighbouring queries of one sequence: `count` of them, from `query` in q, which stand at `position` in it. They see
   no more than `keys` keys from place `low` on, in panels `padded` keys. Places before `prefix` are the tokens from
   `before` on, the others those from `start` on. split: whether they see both. */
struct part {
    int64_t query, count, position, low, keys, padded, prefix, before, start, kv_head;
    int split;
};

static inline int64_t row_of(const struct part *part, int64_t key) {
    int64_t place = part->low + key;
    return place < part->prefix ? part->before + place : part->start + place - part->prefix;
}

/* y [rows, out], as assay_multiply has it. */
struct product {
    const float *x, *weight, *bias;
    float *y;
    int64_t x_row, y_row, in, out;
    int act, gated;
};

/* The same in whole numbers of 8 bits, with a scale for each row and each column. A row of x is `in` bytes, as wide8 has it, and
   the next lies x_row further on. */
struct product8 {
    const uint8_t *x;
    const int8_t *weight;
    const int32_t *base;
    const float *row_scale, *column_scale, *bias;
    float *y;
    int64_t x_row, y_row, in, out;
    int act, gated;
};

enum { GELU_PLACES = 32 };
#define GELU_STEPS 5.5f

/* By size: Taylor's coefficients of Φ - 1/2, a step of the size being 1, around each place, and from 5.6 on 1/2. */
static float gelu_table[5][GELU_PLACES];

static void fill_gelu_table(void) {
    for (int i = 0; i < GELU_PLACES - 1; i++) {
        double step = 1 / (double)GELU_STEPS, x = i * step, density = exp(-x * x / 2) / sqrt(2 * acos(-1));
        double of[] = {erf(x / sqrt(2)) / 2, density, -x * density / 2, (x * x - 1) * density / 6,
                       (3 * x - x * x * x) * density / 24};
        for (int j = 0; j < 5; j++) gelu_table[j][i] = of[j] * pow(step, j);
    }
    gelu_table[0][GELU_PLACES - 1] = 0.5f;
}

#define FN2(name, lanes) name##_##lanes
#define FN1(name, lanes) FN2(name, lanes)
#define FN(name) FN1(name, LANES)

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define ZERO 91
#define FOURS 2
#define WEIGHTS(p) ((VI)_mm256_loadu_si256((const __m256i *)(p)))
#define SPLAT_INT(x) ((VI)_mm256_set1_epi32(x))
#define MULTIPLY8(sum, a, b)                                                                                           \
    ((sum) + (VI)_mm256_madd_epi16(_mm256_add_epi16(_mm256_maddubs_epi16((__m256i)(a)[0], (__m256i)(b)[0]),            \
                                                    _mm256_maddubs_epi16((__m256i)(a)[1], (__m256i)(b)[1])),           \
                                   _mm256_set1_epi16(1)))
#define TARGET8
#define ASK_BY_GROUPS 1
#define ROWS 4
#define VECTORS 2
#define GROUP 6
#include "lanes.h"
#undef LANES
#undef ROWS
#undef VECTORS
#undef GROUP
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#define LANES 16
#define ZERO 128
#define FOURS 1
#define WEIGHTS(p) ((VI)_mm512_loadu_si512(p))
#define SPLAT_INT(x) ((VI)_mm512_set1_epi32(x))
#define MULTIPLY8(sum, a, b) ((VI)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(a)[0], (__m512i)(b)[0]))
#define TARGET8 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")))
#define ASK_BY_GROUPS 0
#define ROWS 8
#define VECTORS 4
#define GROUP 12
#include "lanes.h"
#undef LANES
#undef ROWS
#undef VECTORS
#undef GROUP
#pragma GCC pop_options

static int lanes, lanes8;

/* A kernel in the width of `lanes`, whoever's those are. */
#define IN_WIDTH(name, ...)                                                                                            \
    do {                                                                                                               \
        if (lanes == 16)                                                                                               \
            name##_16(__VA_ARGS__);                                                                                    \
        else                                                                                                           \
            name##_8(__VA_ARGS__);                                                                                     \
    } while (0)

/* Floats of a vector to compute with, 16 or 8, or fewer where `most` or the CPU wants that; 0 where there are no kernels
   for it. To be called first. */
int assay_use(int most) {
    __builtin_cpu_init();
    fill_gelu_table();
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    lanes = wide && most >= 16 ? 16 : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && most >= 8 ? 8 : 0;
    lanes8 = lanes == 16 && !__builtin_cpu_supports("avx512vnni") ? 8 : lanes;
    return lanes;
}

/* What assay_use said last. */
int assay_lanes(void) { return lanes; }

/* The same for products of 8-bit integers: with 16, by VNNI, with 8, by what AVX2 has for bytes. */
int assay_lanes8(void) { return lanes8; }

/* What stands for 0 in an input of 8 bits, of which one less is the largest. */
int assay_zero8(int lanes) { return lanes == 16 ? zero8_16 : zero8_8; }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* spans: [count][4], each sequence's first token and length, and those of the prefix that it goes on from. which: ALL
   tokens ask, or the FIRST or the LAST of each sequence. With tables, each head has keys of its own. Returns 0, or 1 where
   there is no memory. */
int assay_attend(const float *q, const float *k, const float *v, float *out, int64_t q_row, int64_t k_row, int64_t v_row,
                 int64_t heads, int64_t kv_heads, int64_t dim, const int64_t *spans, int64_t count, int which, float scale,
                 float softcap, int64_t left, int64_t right, const float *query_table, const float *key_table,
                 int64_t table_row) {
    struct attention a = {q, k, v, out, q_row, k_row, v_row, heads, kv_heads, dim, left, right, scale, softcap,
                          query_table, key_table, table_row};
    int64_t parts = 0, most = 0, work = 0;
    for (int64_t s = 0; s < count; s++) {
        int64_t asked = which == ALL ? spans[4 * s + 1] : 1;
        parts += (asked + QUERIES - 1) / QUERIES;
        most = larger(most, spans[4 * s + 1] + spans[4 * s + 3]);
        work += asked * (spans[4 * s + 1] + spans[4 * s + 3]);
    }
    struct part *all = malloc(larger(1, parts) * sizeof *all);
    if (!all) return 1;
    int64_t n = 0;
    for (int64_t s = count - 1; s >= 0; s--) { /* the longest come last, and are begun first */
        const int64_t *span = spans + 4 * s;
        int64_t total = span[1] + span[3], asked = which == ALL ? span[1] : 1;
        for (int64_t first = 0; first < asked; first += QUERIES) {
            struct part *part = all + n++;
            part->count = smaller(QUERIES, asked - first);
            part->query = which == ALL ? span[0] + first : s;
            part->position = which == ALL ? span[3] + first : which == FIRST ? 0 : total - 1;
            part->low = larger(0, part->position - left);
            part->keys = smaller(total, part->position + part->count + smaller(right, total)) - part->low;
            part->padded = (part->keys + 2 * lanes - 1) / (2 * lanes) * 2 * lanes;
            part->prefix = span[3];
            part->before = span[2];
            part->start = span[0];
            part->split = part->low < part->prefix;
        }
    }
    most = (most + 2 * lanes) / (2 * lanes) * 2 * lanes;
    size_t wide = (dim + lanes - 1) / lanes * lanes, room = most * (dim + 8 + wide) + 9 * wide;
    if (query_table || key_table) /* what attend_part has of them, and score_keys */
        room += 8 * (most + 2 * lanes) + smaller(QUERIES, most) * most + lanes * (QUERIES + 2 * lanes);
    int64_t in_turn = larger(1, smaller(kv_heads, n * kv_heads / (16 * omp_get_max_threads()))); /* heads: each asks for the next */
    int failed = 0;
#pragma omp parallel if (work * heads * dim > 1 << 16)
    {
        float *scratch = malloc(4 * room);
        if (!scratch)
#pragma omp atomic write
            failed = 1;
#pragma omp for schedule(dynamic, in_turn)
        for (int64_t i = 0; i < n * kv_heads; i++) {
            if (!scratch) continue;
            struct part part = all[i / kv_heads];
            part.kv_head = i % kv_heads;
            IN_WIDTH(attend_part, &a, &part, scratch);
        }
        free(scratch);
    }
    free(all);
    return failed;
}

/* x [rows, size], rows x_row apart → whole [rows, size], whole_row bytes apart, and scale [rows], for products in so many lanes
   (assay_lanes8): scale * (whole - assay_zero8) is x as products.spread has it, nearly.
   On the stack of each thread it takes as much as one row. */
void assay_quantize(int lanes, const float *x, int64_t x_row, int64_t rows, int64_t size, uint8_t *whole, int64_t whole_row,
                    float *scale) {
#pragma omp parallel for if (rows * size > 1 << 14)
    for (int64_t i = 0; i < rows; i++) {
        IN_WIDTH(quantize_row, x + i * x_row, size, whole + i * whole_row, scale + i);
    }
}

/* Weights [rows, size] → whole [rows, size] and scale [rows], as assay_quantize has its rows, without a zero. */
void assay_quantize_weight(int lanes, const float *weight, int64_t rows, int64_t size, int8_t *whole, float *scale) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; i++) {
        IN_WIDTH(quantize_weight, weight + i * size, size, whole + i * size, scale + i);
    }
}

/* Of rows: each, less its mean where it is centred, over its deviation from it or from 0, times weight + more, plus bias, which
   may be absent. Without a weight there is none. */
struct norm {
    const float *weight, *bias;
    float eps, more;
    int centred;
};

/* The norm of a + b; a becomes the sum where `keep`. */
static void norm_sums(const struct norm *n, float *a, int64_t a_row, const float *b, int64_t b_row, int64_t rows, int64_t size,
                      int keep, float *y, int64_t y_row) {
#pragma omp parallel for if (rows * size > 1 << 14)
    for (int64_t i = 0; i < rows; i++) {
        float *from = a + i * a_row, *to = y + i * y_row;
        IN_WIDTH(normalize_sum_row, from, b + i * b_row, size, n->centred, n->weight, n->bias, n->eps, n->more, keep ? from : to,
                 to);
    }
}

/* y = the norm of x, which is not centred, or x where there is none. */
static void norm_rows(const struct norm *n, const float *x, int64_t x_row, int64_t rows, int64_t size, float *y, int64_t y_row) {
    if (!n->weight && x == y) return;
#pragma omp parallel for if (rows * size > 1 << 14)
    for (int64_t i = 0; i < rows; i++) {
        if (n->weight)
            IN_WIDTH(normalize_row, x + i * x_row, size, n->weight, n->eps, n->more, y + i * y_row);
        else
            memcpy(y + i * y_row, x + i * x_row, 4 * size);
    }
}

/* y [rows, size], of rows of x x_row apart. */
void assay_normalize(const float *x, int64_t x_row, int64_t rows, int64_t size, const float *weight, float eps, float more,
                     float *y) {
    norm_rows(&(struct norm){.weight = weight, .eps = eps, .more = more}, x, x_row, rows, size, y, size);
}

/* y [rows, size], of the rows of a + b, which lie a_row and b_row apart. The sums replace a where `keep`. */
void assay_normalize_sum(float *a, int64_t a_row, const float *b, int64_t b_row, int64_t rows, int64_t size, int centred,
                         const float *weight, const float *bias, float eps, float more, int keep, float *y) {
    norm_sums(&(struct norm){weight, bias, eps, more, centred}, a, a_row, b, b_row, rows, size, keep, y, size);
}

/* y [rows, size]: of each of `count` tables [sizes[i], size] the row that its ids [rows] name, summed, then as
   assay_normalize_sum has it, centred. Returns 0, or 1 where an id names no row. */
int assay_embed(const float *const *tables, const int64_t *const *ids, const int64_t *sizes, int64_t count, int64_t rows,
                int64_t size, const float *weight, const float *bias, float eps, float *y) {
    int failed = 0;
#pragma omp parallel for if (rows * size > 1 << 14) reduction(| : failed)
    for (int64_t i = 0; i < rows; i++) {
        const float *sum = 0, *one = 0;
        float *to = y + i * size;
        for (int64_t t = 0; t < count; t++) {
            if (ids[t][i] < 0 || ids[t][i] >= sizes[t]) failed = 1;
            if (failed) break;
            if (sum && one) IN_WIDTH(sum_row, sum, one, size, to);
            sum = sum && one ? to : one;
            one = tables[t] + ids[t][i] * size;
        }
        if (failed) continue;
        IN_WIDTH(normalize_sum_row, one, sum, size, 1, weight, bias, eps, 0.0f, to, to);
    }
    return failed;
}

/* Each head of x [tokens, heads, size], tokens x_row and heads x_head apart, in place: normalized as assay_normalize has it,
   where there is a weight, and its first dim floats turned by its token's cos and sin [tokens, dim]. */
void assay_turn(float *x, int64_t x_row, int64_t x_head, int64_t tokens, int64_t heads, int64_t size, const float *weight,
                float eps, float more, const float *cos, const float *sin, int64_t dim) {
#pragma omp parallel for if (tokens * heads * size > 1 << 14)
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t head = 0; head < heads; head++) {
            float *one = x + i * x_row + head * x_head;
            if (weight) IN_WIDTH(normalize_row, one, size, weight, eps, more, one);
            IN_WIDTH(turn_head, one, cos + i * dim, sin + i * dim, dim);
        }
}

/* weight [out, in] → packed, in panels for vectors of so many lanes: in * out floats, with out rounded up to 2 * lanes. */
void assay_pack(int lanes, const float *weight, int64_t in, int64_t out, float *packed) {
    int64_t wide = 2 * lanes;
#pragma omp parallel for
    for (int64_t first = 0; first < out; first += wide) {
        IN_WIDTH(pack_panel, weight, in, out, first, packed + first * in);
    }
}

/* A product in parts: `chunks` of `size` rows or fewer, and of each, the panels in `splits`, so that nobody waits long, and,
   where groups of rows ask for what comes next and rows are few, each reads on where it has asked. */
struct cut {
    int64_t panels, size, chunks, splits;
};

static struct cut cut_up(int lanes, int64_t rows, int64_t out, int gated) {
    int64_t wide = gated ? lanes : 2 * lanes, panels = (out + wide - 1) / wide;
    int64_t size = smaller(rows, CHUNK), chunks = (rows + size - 1) / size, each = chunks > 1 || lanes == 16 ? 32 : 4;
    return (struct cut){panels, size, chunks, smaller(panels, larger(1, each * omp_get_max_threads() / chunks))};
}

/* Of the part i: its first row, how many, and from and to which panel. */
struct piece {
    int64_t first, count, from, to;
};

static struct piece piece_of(struct cut cut, int64_t rows, int64_t i) {
    int64_t first = i / cut.splits * cut.size, split = i % cut.splits;
    return (struct piece){first, smaller(cut.size, rows - first), cut.panels * split / cut.splits,
                          cut.panels * (split + 1) / cut.splits};
}

/* y [rows, out] = act(x Wᵀ + bias [out]), rows of x x_row apart, of y y_row; bias may be absent. gated: act(x Gᵀ + bias) *
   (x Uᵀ + bias), with G and U, and the biases, in panels of a vector of either, zeros behind the last.
   A row's result does not depend on the others, to the last bit. Returns 0, or 1 where there is no memory. */
int assay_multiply(int lanes, const float *x, int64_t x_row, int64_t rows, const float *packed, int64_t in, int64_t out,
                   const float *bias, int act, int gated, float *y, int64_t y_row) {
    if (!rows) return 0;
    struct product p = {x, packed, bias, y, x_row, y_row, in, out, act, gated};
    struct cut cut = cut_up(lanes, rows, out, gated);
    int aside = x_row % 1024 == 0 && rows > CHUNK, failed = 0;
#pragma omp parallel if (rows * in * out > 1 << 18)
    {
        float *copy = aside ? malloc(4 * cut.size * (in + 16)) : 0;
        if (aside && !copy)
#pragma omp atomic write
            failed = 1;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < cut.chunks * cut.splits; i++) {
            struct piece piece = piece_of(cut, rows, i);
            if (aside && !copy) continue;
            IN_WIDTH(multiply_part, &p, piece.first, piece.count, piece.from, piece.to, copy);
        }
        free(copy);
    }
    return failed;
}

/* Bytes of a row of so many whole numbers, and from one row to the next, such that neighbours are not cached over each other. */
static int64_t wide8(int lanes, int64_t in) { return lanes == 16 ? (in + 3) / 4 * 4 : (in + 7) / 8 * 8; }
static int64_t apart8(int64_t wide) { return wide % 1024 ? wide : wide + 64; }

/* Bytes that assay_quantize is to leave from one row to the next. */
int64_t assay_row8(int lanes, int64_t in) { return apart8(wide8(lanes, in)); }

/* Bytes of a column that assay_pack8 leaves. */
int64_t assay_column8(int lanes, int64_t in) { return wide8(lanes, in); }

/* As assay_pack, of rows as assay_quantize_weight has them: assay_column8 times out bytes. base: an int32 for each column, out
   rounded up. */
void assay_pack8(int lanes, const int8_t *weight, int64_t in, int64_t out, int8_t *packed, int32_t *base) {
    int64_t wide = wide8(lanes, in);
#pragma omp parallel for
    for (int64_t first = 0; first < out; first += 2 * lanes) {
        IN_WIDTH(pack8_panel, weight, in, out, first, packed + first * wide, base + first);
    }
}

/* y [rows, out] = act(row_scale * column_scale * (x Wᵀ) + bias), with x as assay_quantize has it, rows x_row bytes apart.
   Everything else is as in assay_multiply. */
void assay_multiply8(int lanes, const uint8_t *x, int64_t x_row, const float *row_scale, int64_t rows, const int8_t *packed,
                     const int32_t *base, const float *column_scale, int64_t in, int64_t out, const float *bias, int act,
                     int gated, float *y, int64_t y_row) {
    if (!rows) return;
    struct product8 p = {x, packed, base, row_scale, column_scale, bias, y, x_row, y_row, wide8(lanes, in), out, act, gated};
    struct cut cut = cut_up(lanes, rows, out, gated);
#pragma omp parallel for schedule(dynamic, 1) if (rows * in * out > 1 << 20)
    for (int64_t i = 0; i < cut.chunks * cut.splits; i++) {
        struct piece piece = piece_of(cut, rows, i);
        IN_WIDTH(multiply8_part, &p, piece.first, piece.count, piece.from, piece.to);
    }
}

/* Floats from one row of a matrix to the next, such that neighbours are not cached over each other. */
static int64_t apart(int64_t size) { return size % 1024 ? size : size + 16; }

/* As assay_multiply or, where there is a base, as assay_multiply8 has it. */
struct linear {
    const void *weight;
    const int32_t *base;
    const float *scale, *bias;
    int64_t in, out;
    int act, gated;
};

/* after: each sum is followed by its norm, attn or mlp; otherwise those are ahead of what is added. q, k: of each head; seen,
   fed: of what is added. turned: floats of a head. Everything else is as in assay_attend. */
struct layer {
    struct linear qkv, attn_out, up, down;
    struct norm attn, mlp, q, k, seen, fed;
    int64_t heads, kv_heads, dim, turned, left, right;
    float scale, softcap;
    int after, lanes;
};

/* Room for what comes behind attention, for some rows; whole: of any product, as whole numbers. */
struct space {
    float *sums, *normed, *inner, *scales;
    uint8_t *whole;
    int64_t row, inner_row, whole_row, floats;
};

static struct space space_of(const struct layer *l, float *room, int64_t rows) {
    struct space s = {.row = apart(l->qkv.in), .inner_row = apart(l->up.out)};
    s.whole_row = l->qkv.base ? wide8(l->lanes, larger(l->qkv.in, larger(l->attn_out.in, l->down.in))) + 64 : 0;
    s.sums = room;
    s.normed = s.sums + rows * s.row;
    s.inner = s.normed + rows * s.row;
    s.scales = s.inner + rows * s.inner_row;
    s.whole = (uint8_t *)(s.scales + rows);
    s.floats = rows * (2 * s.row + s.inner_row + 1 + s.whole_row / 4);
    return s;
}

/* By all threads, or by the one that calls where all are busy. whole, scales: room for x as whole numbers. */
static int apply(int lanes, const struct linear *w, const float *x, int64_t x_row, int64_t rows, float *y, int64_t y_row,
                 uint8_t *whole, float *scales) {
    int64_t row = assay_row8(lanes, w->in);
    if (!w->base)
        return assay_multiply(lanes, x, x_row, rows, w->weight, w->in, w->out, w->bias, w->act, w->gated, y, y_row);
    assay_quantize(lanes, x, x_row, rows, w->in, whole, row, scales);
    assay_multiply8(lanes, whole, row, scales, rows, w->weight, w->base, w->scale, w->in, w->out, w->bias, w->act, w->gated, y,
                    y_row);
    return 0;
}

/* What comes behind attention, for some rows: x [rows, hidden] and what they have seen [rows, seen_row] → y [rows, hidden],
   where the norms come after the sums; otherwise what is to be added to x, which has become the first sum. */
static int feed(const struct layer *l, float *x, const float *seen, int64_t seen_row, int64_t rows, struct space s, float *y) {
    int64_t hidden = l->qkv.in;
    if (apply(l->lanes, &l->attn_out, seen, seen_row, rows, s.sums, s.row, s.whole, s.scales)) return 1;
    norm_rows(&l->seen, s.sums, s.row, rows, hidden, s.sums, s.row);
    norm_sums(l->after ? &l->attn : &l->mlp, x, hidden, s.sums, s.row, rows, hidden, !l->after, s.normed, s.row);
    if (apply(l->lanes, &l->up, s.normed, s.row, rows, s.inner, s.inner_row, s.whole, s.scales)) return 1;
    if (apply(l->lanes, &l->down, s.inner, s.inner_row, rows, s.sums, s.row, s.whole, s.scales)) return 1;
    if (l->after)
        norm_sums(&l->mlp, s.normed, s.row, s.sums, s.row, rows, hidden, 0, y, hidden);
    else
        norm_rows(&l->fed, s.sums, s.row, rows, hidden, y, hidden);
    return 0;
}

static int64_t bytes_of(const struct linear *w) { return w->in * w->out * (w->gated ? 2 : 1) * (w->base ? 1 : 4); }

/* Whether each thread takes some rows through all of what is behind attention: where there are rows enough, and weights so few
   that they stay in a cache from one part to the next. Otherwise threads share each product. */
static int in_parts(const struct layer *l, int64_t rows) {
    return (rows + LAYER_ROWS - 1) / LAYER_ROWS >= 4 * omp_get_max_threads() &&
           bytes_of(&l->attn_out) + bytes_of(&l->up) + bytes_of(&l->down) <= 16 << 20;
}

/* Floats from one token to the next in what attention sees and in what it gives, which its input has shared. */
static int64_t qkv_row(const struct layer *l) { return apart(l->qkv.out); }
static int64_t seen_row(const struct layer *l) { return larger(apart(l->qkv.in), apart(l->attn_out.in)); }

/* Floats of room that assay_layer wants for so many tokens, of which `asked` ask. */
int64_t assay_layer_room(const struct layer *l, int64_t tokens, int64_t asked) {
    int64_t whole = l->qkv.base ? tokens * (1 + space_of(l, 0, 0).whole_row / 4) : 0;
    return tokens * seen_row(l) + larger(tokens * qkv_row(l) + whole, in_parts(l, asked) ? 0 : space_of(l, 0, asked).floats);
}

/* One layer in one call: for few tokens, calls take as long as products, and for many, what is behind attention stays in a
   core's cache for some rows at a time.
   x [tokens, hidden], and more, which is to be added to it, or none, → y [tokens, hidden], or [count, hidden] unless ALL ask.
   Where norms come after their sums, y is what the layer gives; otherwise it is what is to be added to x, which is changed: from
   its start on, it holds the rows of those that ask. cos, sin: of each token. Everything else, and what is returned, is as in
   assay_attend and assay_multiply. */
int assay_layer(const struct layer *l, float *x, const float *more, int64_t tokens, const float *cos, const float *sin,
                const float *query_table, const float *key_table, int64_t table_row, const int64_t *spans, int64_t count,
                int which, float *room, float *y) {
    int64_t hidden = l->qkv.in, all_row = qkv_row(l), row = seen_row(l), asked = which == ALL ? tokens : count;
    int64_t q_size = l->heads * l->dim, k_size = l->kv_heads * l->dim;
    float *seen = room, *all = seen + tokens * row, *scales = all + tokens * all_row, *normed = x;
    int64_t normed_row = hidden;
    if (!l->after && l->attn.weight) {
        normed = seen;
        normed_row = row;
        if (more)
            norm_sums(&l->attn, x, hidden, more, hidden, tokens, hidden, 1, normed, row);
        else
            norm_rows(&l->attn, x, hidden, tokens, hidden, normed, row);
    }
    if (apply(l->lanes, &l->qkv, normed, normed_row, tokens, all, all_row, (uint8_t *)(scales + tokens), scales)) return 1;
    if (cos) {
        const struct norm *q = &l->q, *k = &l->k;
        assay_turn(all, all_row, l->dim, tokens, l->heads, l->dim, q->weight, q->eps, q->more, cos, sin, l->turned);
        assay_turn(all + q_size, all_row, l->dim, tokens, l->kv_heads, l->dim, k->weight, k->eps, k->more, cos, sin, l->turned);
    }
    float *asking = which == ALL || !l->after ? x : y;
    for (int64_t s = 0; which != ALL && s < count; s++) { /* no sequence begins ahead of its number */
        int64_t token = spans[4 * s] + (which == FIRST ? 0 : spans[4 * s + 1] - 1);
        memmove(all + s * all_row, all + token * all_row, 4 * q_size);
        memmove(asking + s * hidden, x + token * hidden, 4 * hidden);
    }
    if (assay_attend(all, all + q_size, all + q_size + k_size, seen, all_row, all_row, all_row, l->heads, l->kv_heads, l->dim,
                     spans, count, which, l->scale, l->softcap, l->left, l->right, query_table, key_table, table_row))
        return 1;
    if (!in_parts(l, asked)) return feed(l, asking, seen, q_size, asked, space_of(l, all, asked), y);
    int64_t parts = (asked + LAYER_ROWS - 1) / LAYER_ROWS;
    int failed = 0;
#pragma omp parallel
    {
        float *own = malloc(4 * space_of(l, 0, LAYER_ROWS).floats);
        int without = !own;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < parts; i++) {
            int64_t first = asked * i / parts, rows = asked * (i + 1) / parts - first;
            if (without) continue;
            struct space space = space_of(l, own, rows);
            without = feed(l, asking + first * hidden, seen + first * q_size, q_size, rows, space, y + first * hidden);
        }
        free(own);
        if (without)
#pragma omp atomic write
            failed = 1;
    }
    return failed;
}
