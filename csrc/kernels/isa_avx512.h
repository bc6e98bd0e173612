// AVX-512 (F, BW, DQ, VL): 32 registers of 16 floats.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fmn::FMN_ISA {
namespace {

using Vec = __m512;
using Frag = __m512;  // what one load of A gives: K_FRAG consecutive k of one pixel
constexpr int LANES = 16;
constexpr int K_FRAG = 1;
constexpr int REGISTERS = 32;
constexpr int PANEL_BLOCKS = 2;  // 16-channel blocks of a panel of packed weights

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
inline Vec load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// The compiler must not fold what is computed from the result (only the peak measurement needs that).
inline Vec opaque(Vec v) {
  asm("" : "+v"(v));
  return v;
}
inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }

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
#else
inline Frag load_a(const float* p) { return _mm512_set1_ps(*p); }
template <int KK>
inline void fma_a(Vec& acc, Frag a, Vec b) {
  acc = _mm512_fmadd_ps(a, b, acc);
}
#endif
inline Frag load_a1(const float* p) { return load_a(p); }

}  // namespace
}  // namespace fmn::FMN_ISA
