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

/* row [size] over a scale → whole numbers around `zero`. A half is added, for conversion cuts off, and zero, for it does so
   towards zero. */
TOUCH void FN(round_row)(const float *row, int64_t size, float scale, int zero, uint8_t *whole) {
    float factor = 1.0f / scale, half = zero + 0.5f;
    int64_t i = 0;
#if LANES == 8
    for (; i + 32 <= size; i += 32) { /* bytes of four vectors at once, which end up with their halves in turn */
        __m256i all[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) all[j] = (__m256i)__builtin_convertvector(LOAD(row + i + 8 * j) * factor + half, VI);
        all[0] = _mm256_packus_epi16(_mm256_packs_epi32(all[0], all[1]), _mm256_packs_epi32(all[2], all[3]));
        VI in_order = (VI)_mm256_permutevar8x32_epi32(all[0], _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        STORE((float *)(whole + i), (VF)in_order);
    }
#endif
    for (; i < size; i += LANES) {
        typedef uint8_t numbers __attribute__((vector_size(LANES), aligned(1), may_alias));
        VF y = FN(load)(row + i, size - i) * factor + half;
        numbers some = __builtin_convertvector(__builtin_convertvector(y, VI), numbers);
        if (size - i >= LANES)
            *(numbers *)(whole + i) = some;
        else
            memcpy(whole + i, &some, size - i);
    }
}

/* What a scale is at least; what is no number stays none. */
TOUCH float FN(at_least)(float scale) { return scale <= FLT_MIN ? FLT_MIN : scale; }

/* x [size] → as products.spread has it, in whole numbers of 8 bits around ZERO and a scale. */
static void FN(quantize_row)(const float *x, int64_t size, uint8_t *whole, float *scale) {
    float row[size];
    *scale = FN(at_least)(FN(spread)(x, size, row) / (ZERO - 1));
    FN(round_row)(row, size, *scale, ZERO, whole);
}

#if FOURS == 2
/* Of the weights in row [size] that are added in 16 bits, the largest sum of those of one sign. */
static float FN(largest_group)(const float *row, int64_t size) {
    VF most = {};
    for (int64_t i = 0; i < size; i += LANES) {
        VF all = FN(load)(row + i, size - i);
        for (int sign = 0; sign < 2; sign++, all = -all) {
            VF some = MAX(all, (VF){});
            some += FN(turned)(some, 4);
            some += FN(turned)(some, 1);
            most = MAX(most, some);
        }
    }
    return most[0] > most[2] ? most[0] : most[2];
}
#endif

/* Weights [size] → as quantize_row has them, without a zero. With two FOURS, an input is 2 * ZERO - 1 at most, and four weights are
   added in 16 bits: 0, 1, 4 and 5 of eight, and 2, 3, 6 and 7. So those of one sign are to be no more than what such a sum holds,
   of which two are kept for their roundings. */
static void FN(quantize_weight)(const float *weight, int64_t size, int8_t *whole, float *scale) {
    float row[size], largest = FN(spread)(weight, size, row) / 127;
#if FOURS == 2
    float group = FN(largest_group)(row, size) / (INT16_MAX / (2 * ZERO - 1) - 2);
    largest = group > largest ? group : largest;
#endif
    *scale = FN(at_least)(largest);
    FN(round_row)(row, size, *scale, 128, (uint8_t *)whole);
    for (int64_t i = 0; i < size; i++) whole[i] ^= -128;
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
