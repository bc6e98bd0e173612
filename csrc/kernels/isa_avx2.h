// AVX2 and FMA: 16 registers of 8 floats.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/pick_both.h"

namespace fmn::FMN_ISA {
namespace {

using Vec = __m256;
using Frag = __m256;  // what one load of A gives: K_FRAG consecutive k of one pixel
constexpr int LANES = 8;
constexpr int K_FRAG = 1;
constexpr int REGISTERS = 16;
constexpr int HALF_PANEL_BLOCKS = 1;  // of a panel whose last block has 8 channels
constexpr int PANEL_BLOCKS = 1;       // 16-channel blocks of a panel of packed weights

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec plus(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec minus(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec times(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec over(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
// The second operand is returned when either is NaN: with x second, NaN passes through.
inline Vec clamp(Vec x, Vec lo, Vec hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, x)); }
inline Vec clamp_above(Vec x, Vec hi) { return _mm256_min_ps(hi, x); }
// p * 2^n, where n is in the low bits of a float between 2^23 and 2^24.
inline Vec times_power_of_two(Vec p, Vec n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
inline Vec max_or_nan(Vec a, Vec b) {  // the maximum is b if either is NaN
  return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
// Takes dst[i] = src[lane[i]] in a block of 16, where lane[i] is not negative.
struct Pick {
  __m256i lane[2];
  explicit Pick(const int* lanes) {
    for (int h = 0; h < 2; ++h) lane[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes + 8 * h));
  }
  void replace(float* dst, const float* src) const { take(dst, src, zero(), zero()); }
  void merge(float* dst, const float* src) const { take(dst, src, load(dst), load(dst + 8)); }

 private:
  void take(float* dst, const float* src, Vec old0, Vec old1) const {
    const Vec low = load(src), high = load(src + 8), old[2] = {old0, old1};
    for (int h = 0; h < 2; ++h) {
      // Bit 3 of a lane says which half of the source it is in, the sign whether it is wanted at all.
      const Vec from_high = _mm256_castsi256_ps(_mm256_slli_epi32(lane[h], 28));
      const Vec v =
          _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, lane[h]), _mm256_permutevar8x32_ps(high, lane[h]), from_high);
      store(dst + 8 * h, _mm256_blendv_ps(v, old[h], _mm256_castsi256_ps(lane[h])));
    }
  }
};
using PickTwo = PickBoth<Pick>;
inline Vec load_u8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// For gemv24.h. low_bytes: a number of 24 bits, the low bytes of a, b and c from the highest on, times 256.
using Words = __m256i;
inline Words load_words(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Vec to_floats(Words w) { return _mm256_cvtepi32_ps(w); }
inline Words low_bytes(Words a, Words b, Words c) {
  // Of the shifted words only the bytes that are wanted.
  const __m256i high = _mm256_slli_epi32(a, 24), middle = _mm256_srli_epi32(_mm256_slli_epi32(b, 24), 8);
  return _mm256_or_si256(high, _mm256_or_si256(middle, _mm256_srli_epi32(_mm256_slli_epi32(c, 24), 16)));
}
// a0 b0 c0 a1 b1 c1 ..: 3 * LANES floats.
inline void store3(float* p, Vec a, Vec b, Vec c) {
  // Value i of a belongs at 3 i, of b one behind it and of c two; modulo 8 all of a vector have places of their own.
  a = _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5));
  b = _mm256_permutevar8x32_ps(b, _mm256_setr_epi32(5, 0, 3, 6, 1, 4, 7, 2));
  c = _mm256_permutevar8x32_ps(c, _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7));
  store(p, _mm256_blend_ps(_mm256_blend_ps(a, b, 0x92), c, 0x24));
  store(p + LANES, _mm256_blend_ps(_mm256_blend_ps(c, a, 0x92), b, 0x24));
  store(p + 2 * LANES, _mm256_blend_ps(_mm256_blend_ps(b, c, 0x92), a, 0x24));
}
// The compiler must not fold what is computed from the result (only the peak measurement needs that).
inline Vec opaque(Vec v) {
  asm("" : "+x"(v));
  return v;
}
// Into the second-level cache, and into the first.
inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
inline void fetch(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
// One instruction each and volatile: GCC 12 otherwise hoists the broadcasts of several k and spills.
inline Frag load_a(const float* p) {
  Frag v;
  asm volatile("vbroadcastss %1, %0" : "=x"(v) : "m"(*p));
  return v;
}
template <int KK>
inline void fma_a(Vec& acc, Frag a, Vec b) {
  asm volatile("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
}
#else
inline Frag load_a(const float* p) { return _mm256_broadcast_ss(p); }
template <int KK>
inline void fma_a(Vec& acc, Frag a, Vec b) {
  acc = _mm256_fmadd_ps(a, b, acc);
}
#endif
inline Frag load_a1(const float* p) { return load_a(p); }
inline void fma_1(Vec& acc, const float* a, Vec b) { fma_a<0>(acc, load_a1(a), b); }

// No registers are left for it: see swish_tile.
constexpr bool SWISH_OF_SUMS = false;
inline void swish_sum(Vec&, Vec, Vec, const float*) {}

}  // namespace
}  // namespace fmn::FMN_ISA
