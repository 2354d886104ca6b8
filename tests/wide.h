/* What the kernels take of AVX-512, by loops, so that a CPU without it runs their code for vectors of 16 floats
   (tests/wide.py). Written from Intel's description of each; ahead of the kernels' own source. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float wide __attribute__((vector_size(64), may_alias));
typedef int32_t wide_ints __attribute__((vector_size(64), may_alias));
#define OWN static inline __attribute__((always_inline, target("avx2,fma")))

OWN wide of_one(float x) { return x - (wide){}; }
OWN wide_ints of_one_int(int32_t x) { return x - (wide_ints){}; }
OWN wide choose(wide_ints first, wide a, wide b) { return (wide)(((wide_ints)a & first) | ((wide_ints)b & ~first)); }
OWN wide larger_of(wide a, wide b) { return choose(a > b, a, b); }
OWN wide smaller_of(wide a, wide b) { return choose(a < b, a, b); }
OWN wide taken(wide a, wide_ints place, wide b) { return __builtin_shuffle(a, b, place); }

OWN wide some_loaded(int mask, const float *from) {
    wide x = {};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) x[i] = from[i];
    return x;
}

OWN void some_stored(float *to, int mask, wide x) {
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) to[i] = x[i];
}

OWN wide scaled(wide x, wide power) {
    for (int i = 0; i < 16; i++)
        x[i] = isnan(x[i]) || isnan(power[i]) ? x[i] + power[i] : scalbnf(x[i], (int)floorf(power[i]));
    return x;
}

OWN wide_ints ints_loaded(const void *from) {
    wide_ints x;
    memcpy(&x, from, sizeof x);
    return x;
}

/* To each lane of sum, four products of an unsigned byte with a signed one. Such a product needs 17 bits, so bytes become
   words, two of which are multiplied and added at once. */
OWN wide_ints bytes_multiplied(wide_ints sum, wide_ints a, wide_ints b) {
    __m128i x[4], y[4];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    int32_t all[32];
    for (int i = 0; i < 4; i++)
        _mm256_storeu_si256((__m256i *)(all + 8 * i), _mm256_madd_epi16(_mm256_cvtepu8_epi16(x[i]), _mm256_cvtepi8_epi16(y[i])));
    for (int i = 0; i < 16; i++) sum[i] += all[2 * i] + all[2 * i + 1];
    return sum;
}

#define __m512 wide
#define __m512i wide_ints
#define _mm512_set1_ps of_one
#define _mm512_set1_epi32 of_one_int
#define _mm512_max_ps larger_of
#define _mm512_min_ps smaller_of
#define _mm512_permutex2var_ps taken
#define _mm512_maskz_loadu_ps some_loaded
#define _mm512_mask_storeu_ps some_stored
#define _mm512_scalef_ps scaled
#define _mm512_loadu_si512 ints_loaded
#define _mm512_dpbusd_epi32 bytes_multiplied
