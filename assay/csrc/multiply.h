/* Products in panels, in one width of vectors (lanes.h), of float32 and of 8-bit integers, and the layouts that they want. */

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

/* Weights come from afar, and the first group of rows that they are multiplied with would wait for them. So each group asks for
   its share of those that come next: of so many bytes that it reads, where all groups together are to ask for as many, `from`
   here, and `by` so many more a step. A single group, and each where groups do not share, asks for what comes AHEAD. */
struct FN(wish) {
    const char *from;
    int64_t by;
};
enum { FN(AHEAD) = 64 * 8 * LANES };

TOUCH struct FN(wish) FN(wish_of)(const void *panel, int64_t size, int64_t steps, int64_t group, int64_t groups) {
    const char *now = panel;
    if (groups == 1) return (struct FN(wish)){now + FN(AHEAD), size / steps};
    return (struct FN(wish)){now + size + size * group / groups, size / steps / groups};
}

/* `bytes` of weights are read now. */
TOUCH void FN(ask)(struct FN(wish) *wish, const void *now, int bytes) {
    const char *from = ASK_BY_GROUPS ? wish->from : (const char *)now + FN(AHEAD);
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
    wish->from += wish->by;
}

/* y [rows][2 * LANES] = base + x [rows][in] times one panel; base_row is 0 where all rows have one base. */
TOUCH void FN(multiply_by)(int rows, const float *x, int64_t x_row, const float *panel, int64_t in, struct FN(wish) wish,
                           const float *base, int64_t base_row, float *y, int64_t y_row) {
    VF sums[GROUP][2] = {};
    for (int64_t t = 0; t < in; t++, panel += 2 * LANES) {
        VF a = LOAD(panel), b = LOAD(panel + LANES);
        FN(ask)(&wish, panel, 8 * LANES);
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

static void FN(multiply_group)(int count, const float *x, int64_t x_row, const float *panel, int64_t in, struct FN(wish) wish,
                               const float *base, int64_t base_row, float *y, int64_t y_row) {
    switch (count) { UP_TO_GROUP(FN(multiply_by)(rows, x, x_row, panel, in, wish, base, base_row, y, y_row)) }
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
                const float *now = weights + block * 2 * LANES;
                struct FN(wish) wish = FN(wish_of)(now, 8 * LANES * in, in, i, groups);
                FN(multiply_group)(end - start, x + start * x_row + block, x_row, now, in, wish, block ? tile : bias,
                                   block ? 2 * LANES : 0, straight ? y : tile, straight ? p->y_row : 2 * LANES);
                if (last && !straight)
                    FN(finish_tile)(p->act, p->gated, tile, end - start, left, y, p->y_row);
            }
        }
    }
}

/* W [out, in], as quantize_weight has its rows → panels as multiply8_by wants them, [in / 4 / FOURS][2][FOURS][LANES][4], zeros
   behind the last; in base, what x's zeros come to. */
static void FN(pack8_panel)(const int8_t *weight, int64_t in, int64_t out, int64_t first, int8_t *panel, int32_t *base) {
    for (int64_t i = 0; i < 2 * LANES; i++) base[i] = 0;
    for (int64_t t = 0; t < in; t += 4 * FOURS)
        for (int64_t i = 0; i < 2 * LANES; i++)
            for (int64_t j = 0; j < 4 * FOURS; j++) {
                int8_t one = first + i < out && t + j < in ? weight[(first + i) * in + t + j] : 0;
                int64_t vector = i / LANES * FOURS + j / 4;
                panel[t * 2 * LANES + vector * 4 * LANES + i % LANES * 4 + j % 4] = one;
                base[i] -= ZERO * one;
            }
}

/* y [rows][2 * LANES] = x [rows][in] times one panel, in whole numbers, on top of `base` of each column; then as floats, times a
   scale of each column and of each row, plus a bias. */
TOUCH TARGET8 void FN(multiply8_by)(int rows, const uint8_t *x, int64_t x_row, const int8_t *panel, int64_t in,
                                    struct FN(wish) wish, const int32_t *base, const float *scale, const float *row_scale,
                                    const float *bias, float *y, int64_t y_row) {
    VI sums[GROUP][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        sums[r][0] = LOAD_INT(base);
        sums[r][1] = LOAD_INT(base + LANES);
    }
    for (int64_t t = 0; t < in; t += 4 * FOURS, panel += 8 * FOURS * LANES) {
        VI a[FOURS], b[FOURS];
#pragma GCC unroll 2
        for (int i = 0; i < FOURS; i++) {
            a[i] = WEIGHTS(panel + 4 * LANES * i);
            b[i] = WEIGHTS(panel + 4 * LANES * (FOURS + i));
        }
        FN(ask)(&wish, panel, 8 * FOURS * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            VI all[FOURS];
#pragma GCC unroll 2
            for (int i = 0; i < FOURS; i++) {
                int32_t some;
                memcpy(&some, x + r * x_row + t + 4 * i, 4);
                all[i] = SPLAT_INT(some);
            }
            sums[r][0] = MULTIPLY8(sums[r][0], all, a);
            sums[r][1] = MULTIPLY8(sums[r][1], all, b);
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

static TARGET8 void FN(multiply8_group)(int count, const uint8_t *x, int64_t x_row, const int8_t *panel, int64_t in,
                                        struct FN(wish) wish, const int32_t *base, const float *scale, const float *row_scale,
                                        const float *bias, float *y, int64_t y_row) {
    switch (count) {
        UP_TO_GROUP(FN(multiply8_by)(rows, x, x_row, panel, in, wish, base, scale, row_scale, bias, y, y_row))
    }
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
            const int8_t *now = p->weight + all * p->in;
            struct FN(wish) wish = FN(wish_of)(now, 2 * LANES * p->in, p->in / 4 / FOURS, i, groups);
            FN(fetch)(y, p->y_row, end - start, wide);
            FN(multiply8_group)(end - start, p->x + start * p->x_row, p->x_row, now, p->in, wish, p->base + all,
                                p->column_scale + all, p->row_scale + start, bias, straight ? y : tile,
                                straight ? p->y_row : 2 * LANES);
            if (!straight) FN(finish_tile)(p->act, p->gated, tile, end - start, left, y, p->y_row);
        }
    }
}
