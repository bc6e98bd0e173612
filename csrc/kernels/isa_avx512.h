// AVX-512 (F, BW, DQ, VL): 32 registers of 16 floats.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "runtime/kernel_table.h"

namespace fmn::FMN_ISA {
namespace {

using Vec = __m512;
using Frag = __m512;  // what one load of A gives: K_FRAG consecutive k of one pixel
constexpr int LANES = 16;
constexpr int K_FRAG = 1;
constexpr int REGISTERS = 32;
constexpr int HALF_PANEL_BLOCKS = 2;  // of a panel whose last block has 8 channels; see gemm_pairs
constexpr int PANEL_BLOCKS = 2;       // 16-channel blocks of a panel of packed weights

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec plus(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec minus(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec times(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec over(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// The second operand is returned when either is NaN: with x second, NaN passes through.
inline Vec clamp(Vec x, Vec lo, Vec hi) { return _mm512_min_ps(hi, _mm512_max_ps(lo, x)); }
inline Vec clamp_above(Vec x, Vec hi) { return _mm512_min_ps(hi, x); }
// p * 2^n, where n is in the low bits of a float between 2^23 and 2^24.
inline Vec times_power_of_two(Vec p, Vec n) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
inline Vec max_or_nan(Vec a, Vec b) {  // the maximum is b if either is NaN
  return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}
// Takes dst[i] = src[lane[i]] in a block of 16, where lane[i] is not negative.
struct Pick {
  __m512i lane;
  __mmask16 mine;
  explicit Pick(const int* lanes)
      : lane(_mm512_loadu_si512(lanes)), mine(_mm512_cmpge_epi32_mask(lane, _mm512_setzero_si512())) {}
  void replace(float* dst, const float* src) const { store(dst, _mm512_maskz_permutexvar_ps(mine, lane, load(src))); }
  void merge(float* dst, const float* src) const {
    store(dst, _mm512_mask_permutexvar_ps(load(dst), mine, lane, load(src)));
  }
};
// The same from two sources, which do not want the same lane.
struct PickTwo {
  __m512i lane;
  __mmask16 mine;
  PickTwo(const int* lanes, const int* others) {
    const __m512i a = _mm512_loadu_si512(lanes), b = _mm512_loadu_si512(others), none = _mm512_setzero_si512();
    const __mmask16 from_a = _mm512_cmpge_epi32_mask(a, none), from_b = _mm512_cmpge_epi32_mask(b, none);
    lane = _mm512_mask_mov_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(16)), from_a, a);
    mine = static_cast<__mmask16>(from_a | from_b);
  }
  void replace(float* dst, const float* src, const float* other) const {
    store(dst, _mm512_maskz_permutex2var_ps(mine, load(src), lane, load(other)));
  }
  void merge(float* dst, const float* src, const float* other) const {
    store(dst, _mm512_mask_mov_ps(load(dst), mine, _mm512_permutex2var_ps(load(src), lane, load(other))));
  }
};
inline Vec load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// For gemv24.h. low_bytes: a number of 24 bits, the low bytes of a, b and c from the highest on, times 256.
using Words = __m512i;
inline Words load_words(const int32_t* p) { return _mm512_loadu_si512(p); }
inline Vec to_floats(Words w) { return _mm512_cvtepi32_ps(w); }
inline Words low_bytes(Words a, Words b, Words c) {
  constexpr int FIRST_WHERE_THIRD = 0xe4;  // where the third operand has ones the first, elsewhere the second
  const __m512i ab = _mm512_ternarylogic_epi32(_mm512_slli_epi32(a, 24), _mm512_slli_epi32(b, 16),
                                               _mm512_set1_epi32(static_cast<int>(0xff000000)), FIRST_WHERE_THIRD);
  return _mm512_ternarylogic_epi32(ab, _mm512_slli_epi32(c, 8), _mm512_set1_epi32(static_cast<int>(0xffff0000)),
                                   FIRST_WHERE_THIRD);
}
// a0 b0 c0 a1 b1 c1 ..: 3 * LANES floats.
inline void store3(float* p, Vec a, Vec b, Vec c) {
  // For each third of the result: where its lanes are in a and b, and then which of them are replaced by lanes of c.
  alignas(64) static const int from_ab[3][16] = {{0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5},
                                                 {21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26},
                                                 {0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0}};
  alignas(64) static const int from_c[3][16] = {{0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15},
                                                {0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15},
                                                {26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31}};
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Vec ab = _mm512_permutex2var_ps(a, _mm512_load_si512(from_ab[i]), b);
    store(p + i * LANES, _mm512_permutex2var_ps(ab, _mm512_load_si512(from_c[i]), c));
  }
}
// For inner.h: sum - v[0] v[1] + v[2] v[3] - .. of so many pairs, in even lanes; the others of v may hold anything.
inline Vec minus_pairs(Vec sum, Vec v, int pairs) {
  const int mine = (1 << 2 * pairs) - 1;
  const Vec partner = _mm512_movehdup_ps(v);
  sum = _mm512_mask3_fnmadd_ps(v, partner, sum, static_cast<__mmask16>(0x1111 & mine));
  return _mm512_mask3_fmadd_ps(v, partner, sum, static_cast<__mmask16>(0x4444 & mine));
}
template <int PAIRS>
inline Vec minus_pairs(Vec sum, Vec v) {  // the same bits
  constexpr auto mine = static_cast<__mmask16>(0x5555 & ((1 << 2 * PAIRS) - 1));
  const Vec signs = _mm512_castsi512_ps(_mm512_maskz_set1_epi32(0x4444, INT32_MIN));
  return _mm512_fnmadd_ps(v, _mm512_xor_ps(_mm512_maskz_movehdup_ps(mine, v), signs), sum);
}
inline float sum_of_lanes(Vec v) { return _mm512_reduce_add_ps(v); }
// Two vectors of 8 floats as one, for the half blocks of two pixels.
inline Vec load_twice(const float* p) {
  return _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(_mm256_loadu_ps(p))));
}
inline Vec load_halves(const float* lo, const float* hi) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(lo)), _mm256_loadu_ps(hi), 1);
}
inline Vec halves(Vec lo, Vec hi) { return _mm512_mask_blend_ps(0xff00, lo, hi); }
inline void store_halves(float* lo, float* hi, Vec v) {
  _mm256_storeu_ps(lo, _mm512_castps512_ps256(v));
  if (hi != nullptr) _mm256_storeu_ps(hi, _mm512_extractf32x8_ps(v, 1));
}
// The compiler must not fold what is computed from the result (only the peak measurement needs that).
inline Vec opaque(Vec v) {
  asm("" : "+v"(v));
  return v;
}
// Into the second-level cache, and into the first.
inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
inline void fetch(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// A half block alone, in inner.h: Zen 4 does two of these operations in the time of one on 16 floats.
using HalfVec = __m256;
constexpr int lanes_of(const Vec&) { return 16; }
constexpr int lanes_of(const HalfVec&) { return 8; }
inline void load_to(Vec& v, const float* p) { v = load(p); }
inline void load_to(HalfVec& v, const float* p) { v = _mm256_loadu_ps(p); }
inline void set_to(Vec& v, float x) { v = set1(x); }
inline void set_to(HalfVec& v, float x) { v = _mm256_set1_ps(x); }
inline void store(float* p, HalfVec v) { _mm256_storeu_ps(p, v); }
inline HalfVec plus(HalfVec a, HalfVec b) { return _mm256_add_ps(a, b); }
inline HalfVec times(HalfVec a, HalfVec b) { return _mm256_mul_ps(a, b); }
inline HalfVec fma(HalfVec a, HalfVec b, HalfVec c) { return _mm256_fmadd_ps(a, b, c); }
inline HalfVec clamp(HalfVec x, HalfVec lo, HalfVec hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, x)); }

#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
// One instruction each and volatile: GCC 12 otherwise hoists the broadcasts of several k and spills.
inline Frag load_a(const float* p) {
  Frag v;
  asm volatile("vbroadcastss %1, %0" : "=v"(v) : "m"(*p));
  return v;
}
template <int KK>
inline void fma_a(Vec& acc, Frag a, Vec b) {
  asm volatile("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}
// A broadcast of its own is a shuffle on Zen 4, which takes a third of its multiply-adds where each has one (28x16:
// 0.75 of the peak); in a multiply-add it costs a load only.
inline void fma_1(Vec& acc, const float* a, Vec b) {
  asm volatile("vfmadd231ps %1%{1to16%}, %2, %0" : "+v"(acc) : "m"(*a), "v"(b));
}
inline Vec plus_1(const float* a, Vec b) {  // the same
  Vec v;
  asm volatile("vaddps %1%{1to16%}, %2, %0" : "=v"(v) : "m"(*a), "v"(b));
  return v;
}
// For overlapped.h: in the order in which they are written.
using Unaligned = float __attribute__((vector_size(64), aligned(4), may_alias));
inline void prefetch_now(
    const char* p) {  // GCC 12 takes a function that does nothing but prefetch for one of no effect
  asm volatile("prefetcht1 %0" : : "m"(*p));
}
inline void store_now(float* p, Vec v) {
  asm volatile("vmovups %1, %0" : "=m"(*reinterpret_cast<Unaligned*>(p)) : "v"(v));
}
inline void store_clamped(float* p, Vec& x, Vec lo, Vec hi) {
  asm volatile(
      "vmaxps %1, %2, %1\n\t"
      "vminps %1, %3, %1\n\t"
      "vmovups %1, %0"
      : "=m"(*reinterpret_cast<Unaligned*>(p)), "+v"(x)
      : "v"(lo), "v"(hi));
}
inline void plus_m(Vec& x, const float* p) {
  asm volatile("vaddps %1, %0, %0" : "+v"(x) : "m"(*reinterpret_cast<const Unaligned*>(p)));
}
inline void times_m(Vec& x, const float* p) {
  asm volatile("vmulps %1, %0, %0" : "+v"(x) : "m"(*reinterpret_cast<const Unaligned*>(p)));
}
template <int KK>
inline void fma_a(HalfVec& acc, HalfVec a, HalfVec b) {
  asm volatile("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}
inline void fnma_a(Vec& acc, Vec a, Vec b) { asm volatile("vfnmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b)); }
inline void fnma_a(HalfVec& acc, HalfVec a, HalfVec b) {
  asm volatile("vfnmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}
inline void fma_1(HalfVec& acc, const float* a, HalfVec b) {
  asm volatile("vfmadd231ps %1%{1to8%}, %2, %0" : "+v"(acc) : "m"(*a), "v"(b));
}
inline HalfVec plus_1(const float* a, HalfVec b) {
  HalfVec v;
  asm volatile("vaddps %1%{1to8%}, %2, %0" : "=v"(v) : "m"(*a), "v"(b));
  return v;
}
#else
inline void prefetch_now(const char* p) { prefetch(p); }
inline void store_now(float* p, Vec v) { store(p, v); }
inline void store_clamped(float* p, Vec x, Vec lo, Vec hi) { store(p, clamp(x, lo, hi)); }
inline void plus_m(Vec& x, const float* p) { x = plus(x, load(p)); }
inline void times_m(Vec& x, const float* p) { x = times(x, load(p)); }
inline Frag load_a(const float* p) { return _mm512_set1_ps(*p); }
template <int KK>
inline void fma_a(Vec& acc, Frag a, Vec b) {
  acc = _mm512_fmadd_ps(a, b, acc);
}
inline void fma_1(Vec& acc, const float* a, Vec b) { acc = _mm512_fmadd_ps(_mm512_set1_ps(*a), b, acc); }
inline Vec plus_1(const float* a, Vec b) { return _mm512_add_ps(_mm512_set1_ps(*a), b); }
template <int KK>
inline void fma_a(HalfVec& acc, HalfVec a, HalfVec b) {
  acc = _mm256_fmadd_ps(a, b, acc);
}
inline void fnma_a(Vec& acc, Vec a, Vec b) { acc = _mm512_fnmadd_ps(a, b, acc); }
inline void fnma_a(HalfVec& acc, HalfVec a, HalfVec b) { acc = _mm256_fnmadd_ps(a, b, acc); }
inline void fma_1(HalfVec& acc, const float* a, HalfVec b) { acc = _mm256_fmadd_ps(_mm256_set1_ps(*a), b, acc); }
inline HalfVec plus_1(const float* a, HalfVec b) { return _mm256_add_ps(_mm256_set1_ps(*a), b); }
#endif
inline Frag load_a1(const float* p) { return load_a(p); }

// Hard swish, of which lo is where it becomes 0: max(x, lo) * min(max(x, lo) * alpha + beta, 1). With beta and 1 from
// memory it takes three registers besides the sums of a tile, of which there may be 28. The minimum is 1 for a NaN, and
// the product NaN.
constexpr bool SWISH_OF_SUMS = true;
alignas(4) constexpr float ONE = 1.0f;
#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
inline void swish_sum(Vec& x, Vec lo, Vec alpha, const float* beta) {
  Vec t;
  asm volatile(
      "vmaxps %0, %2, %0\n\t"
      "vmovaps %3, %1\n\t"
      "vfmadd213ps %4%{1to16%}, %0, %1\n\t"
      "vminps %5%{1to16%}, %1, %1\n\t"
      "vmulps %1, %0, %0"
      : "+v"(x), "=&v"(t)
      : "v"(lo), "v"(alpha), "m"(*beta), "m"(ONE));
}
inline void swish_sum(HalfVec& x, HalfVec lo, HalfVec alpha, const float* beta) {
  HalfVec t;
  asm volatile(
      "vmaxps %0, %2, %0\n\t"
      "vmovaps %3, %1\n\t"
      "vfmadd213ps %4%{1to8%}, %0, %1\n\t"
      "vminps %5%{1to8%}, %1, %1\n\t"
      "vmulps %1, %0, %0"
      : "+v"(x), "=&v"(t)
      : "v"(lo), "v"(alpha), "m"(*beta), "m"(ONE));
}
#else
inline void swish_sum(Vec& x, Vec lo, Vec alpha, const float* beta) {
  x = _mm512_max_ps(lo, x);
  x = _mm512_mul_ps(x, _mm512_min_ps(_mm512_fmadd_ps(x, alpha, set1(*beta)), set1(ONE)));
}
inline void swish_sum(HalfVec& x, HalfVec lo, HalfVec alpha, const float* beta) {
  x = _mm256_max_ps(lo, x);
  x = _mm256_mul_ps(x, _mm256_min_ps(_mm256_fmadd_ps(x, alpha, _mm256_set1_ps(*beta)), _mm256_set1_ps(ONE)));
}
#endif

}  // namespace
}  // namespace fmn::FMN_ISA
