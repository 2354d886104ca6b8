/* What is done to one row, in one width of vectors (lanes.h): 8-bit integers, norms, sums, rotations, what follows a product. */

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

/* x [size] → as products.spread has it, in whole numbers of 8 bits around ZERO and a scale. A half is added, for conversion cuts
   off, and 128, for it does so towards zero. */
static void FN(quantize_row)(const float *x, int64_t size, WHOLE *whole, float *scale) {
    float row[size], largest = FN(spread)(x, size, row) / 127.0f;
    *scale = largest <= FLT_MIN ? FLT_MIN : largest; /* what is no number stays none */
    float factor = 1.0f / *scale;
    for (int64_t i = 0; i < size; i += LANES) {
        typedef WHOLE numbers __attribute__((vector_size(LANES * sizeof(WHOLE)), aligned(1), may_alias));
        VF y = FN(load)(row + i, size - i) * factor + 128.5f;
        numbers some = __builtin_convertvector(__builtin_convertvector(y, VI) - (128 - ZERO), numbers);
        if (size - i >= LANES)
            *(numbers *)(whole + i) = some;
        else
            memcpy(whole + i, &some, (size - i) * sizeof(WHOLE));
    }
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
