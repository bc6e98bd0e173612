// What the 256-bit ISAs of quantised kernels share: everything but the dot product.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "runtime/u8_table.h"

namespace fmn::FMN_ISA {
namespace {

using VecI = __m256i;
constexpr int LANES = 8;
constexpr int REGISTERS = 16;

inline VecI load_i32(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_i32(int32_t* p, VecI x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline VecI zero_i32() { return _mm256_setzero_si256(); }
inline VecI add_i32(VecI a, VecI b) { return _mm256_add_epi32(a, b); }
inline VecI opaque(VecI v) {
  asm("" : "+x"(v));
  return v;
}
inline VecI load_weights(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
using VecF = __m256;
inline VecI set1_i32(int32_t x) { return _mm256_set1_epi32(x); }
inline VecF set1_f32(float x) { return _mm256_set1_ps(x); }
inline VecI load_u8(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline VecI sub_i32(VecI a, VecI b) { return _mm256_sub_epi32(a, b); }
inline VecI mul_i32(VecI a, VecI b) { return _mm256_mullo_epi32(a, b); }
inline VecI shift_right(VecI x, int bits) { return _mm256_sra_epi32(x, _mm_cvtsi32_si128(bits)); }
inline VecF to_float(VecI x) { return _mm256_cvtepi32_ps(x); }
inline VecF times(VecF a, VecF b) { return _mm256_mul_ps(a, b); }
inline VecF plus(VecF a, VecF b) { return _mm256_add_ps(a, b); }
inline VecF fma_f32(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
inline VecI rounded(VecF x) { return _mm256_cvtps_epi32(x); }
// Sixteen tables of sixteen, one for each upper half of a byte. An index with its sign bit set gives 0.
inline void lookup_u8(const uint8_t* src, uint8_t* dst, ptrdiff_t n, const uint8_t* table) {
  ptrdiff_t at = 0;
  const __m256i step = _mm256_set1_epi8(16), sign = _mm256_set1_epi8(0x70);
  for (; at + 32 <= n; at += 32) {
    __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + at));
    __m256i y = _mm256_setzero_si256();
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i));
      // Bytes below 16 stay as they are; the others get their sign bit: adding 0x70 with saturation keeps it.
      const __m256i index = _mm256_adds_epu8(x, sign);
      y = _mm256_or_si256(y, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(part), index));
      x = _mm256_sub_epi8(x, step);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + at), y);
  }
  for (; at < n; ++at) dst[at] = table[src[at]];
}
inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
inline __m256i broadcast_word(const uint8_t* p) { return _mm256_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
inline __m256i widen_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

// Four pixels, channel by channel: channels 0 to 7, and 8 to 15.
struct RawTaps {
  __m256i words[2];
  explicit RawTaps(const uint8_t* p) {
    const auto* px = reinterpret_cast<const __m128i*>(p);
    const __m128i a = _mm_loadu_si128(px), b = _mm_loadu_si128(px + 1);
    const __m128i c = _mm_loadu_si128(px + 2), d = _mm_loadu_si128(px + 3);
    const __m128i lo_ab = _mm_unpacklo_epi8(a, b), lo_cd = _mm_unpacklo_epi8(c, d);
    const __m128i hi_ab = _mm_unpackhi_epi8(a, b), hi_cd = _mm_unpackhi_epi8(c, d);
    words[0] = _mm256_set_m128i(_mm_unpackhi_epi16(lo_ab, lo_cd), _mm_unpacklo_epi16(lo_ab, lo_cd));
    words[1] = _mm256_set_m128i(_mm_unpackhi_epi16(hi_ab, hi_cd), _mm_unpacklo_epi16(hi_ab, hi_cd));
  }
};

constexpr bool TAPS_IN_ORDER = false;  // the compiler may move a Taps
// Pictures become bytes in a plain loop.
constexpr RgbU8Fn rgb_u8 = nullptr;

struct Requantizer {
  __m256 scale[2];
  __m256i zero;
  __m256i lo, hi;
  explicit Requantizer(const Requant& r, const float* scales = nullptr)
      : scale{scales != nullptr ? _mm256_loadu_ps(scales) : _mm256_set1_ps(1.0f),
              scales != nullptr ? _mm256_loadu_ps(scales + 8) : _mm256_set1_ps(1.0f)},
        zero(_mm256_set1_epi16(static_cast<int16_t>(r.zero))),
        lo(_mm256_set1_epi8(static_cast<char>(r.lo))),
        hi(_mm256_set1_epi8(static_cast<char>(r.hi))) {}

  VecI scaled(VecI sum, int half) const { return rounded(times(to_float(sum), scale[half])); }

  // M pixels of the block whose vectors begin at `at`.
  template <int M, int NV>
  inline __attribute__((always_inline)) void store(const VecI (&acc)[M][NV], int at, uint8_t* c) const {
#pragma GCC unroll 8
    for (int i = 0; i + 1 < M; i += 2) {
      put_two(scaled(acc[i][at], 0), scaled(acc[i][at + 1], 1), scaled(acc[i + 1][at], 0),
              scaled(acc[i + 1][at + 1], 1), c + i * 16);
    }
    if (M % 2 == 1) put(scaled(acc[M - 1][at], 0), scaled(acc[M - 1][at + 1], 1), c + (M - 1) * 16);
  }
  // The same for what is scaled and rounded already.
  template <int M, int NV>
  inline __attribute__((always_inline)) void store_rounded(const VecI (&q)[M][NV], int at, uint8_t* c) const {
#pragma GCC unroll 8
    for (int i = 0; i + 1 < M; i += 2) put_two(q[i][at], q[i][at + 1], q[i + 1][at], q[i + 1][at + 1], c + i * 16);
    if (M % 2 == 1) put(q[M - 1][at], q[M - 1][at + 1], c + (M - 1) * 16);
  }
  // Loaded anew each time: GCC would keep it in a register that others need.
  static __m256i words_in_order() {
    alignas(32) static const int32_t order[8] = {0, 4, 1, 5, 2, 6, 3, 7};
#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
    __m256i v;
    asm volatile("vmovdqa %1, %0" : "=x"(v) : "m"(*reinterpret_cast<const __m256i*>(order)));
    return v;
#else
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(order));
#endif
  }
  // Two pixels that follow each other.
  void put_two(VecI a, VecI b, VecI c, VecI d, uint8_t* to) const {
    const __m256i first = _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero);
    const __m256i second = _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero);
    __m256i q = _mm256_packus_epi16(first, second);
    q = _mm256_permutevar8x32_epi32(q, words_in_order());
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_min_epu8(_mm256_max_epu8(q, lo), hi));
  }
  void put(VecI first, VecI second, uint8_t* c) const {
    __m256i q = _mm256_adds_epi16(_mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8), zero);
    q = _mm256_permute4x64_epi64(_mm256_packus_epi16(q, q), 0x08);
    q = _mm256_min_epu8(_mm256_max_epu8(q, lo), hi);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(c), _mm256_castsi256_si128(q));
  }
};

}  // namespace
}  // namespace fmn::FMN_ISA
