/* The kernels of kernels.c for one width of vectors; included once for each. Here are vectors, their functions and sums; what is
   computed with them is in attend.h, multiply.h and rows.h.

   LANES: floats of a vector. FN(name): the name in this width. ROWS, VECTORS: queries, and vectors of values, that are
   computed at once; GROUP: rows of a product. So many that their sums stay in registers.

   ZERO: what stands for 0 in an input of 8 bits, of which one less is the largest. WEIGHTS(p), SPLAT_INT(x): the weights at p, and an int
   in each lane, for MULTIPLY8(sum, inputs, weights): of 4 bytes of inputs in each lane, with as many weights, FOURS vectors of either
   at once. With two, these are added in 16 bits, which hold the sum of a group of weights (rows.h). TARGET8: what the CPU must have
   for these.

   ASK_BY_GROUPS: whether groups of rows share what they ask for (multiply.h), which was measured with 8 lanes alone. */

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
    x = MAX(SPLAT(-5.54f), x); /* where nothing is left of it */
    VF z = MIN(SPLAT(3.92f), x * 0.70710678f), t = z * z;
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
    VF half = 0.5f * x;
    return half * (z * p / q) + half;
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

enum { FN(zero8) = ZERO };

#include "attend.h"
#include "multiply.h"
#include "rows.h"

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
#undef AT_MOST
#undef OF_ROWS
#undef UP_TO_6
#undef UP_TO_GROUP
#undef ZERO
#undef FOURS
#undef WEIGHTS
#undef SPLAT_INT
#undef MULTIPLY8
#undef TARGET8
#undef ASK_BY_GROUPS
