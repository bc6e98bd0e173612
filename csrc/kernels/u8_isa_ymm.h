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
constexpr int PANEL_BLOCKS = 1;

inline VecI load_i32(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_i32(int32_t* p, VecI x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline VecI zero_i32() { return _mm256_setzero_si256(); }
inline VecI add_i32(VecI a, VecI b) { return _mm256_add_epi32(a, b); }
inline VecI opaque(VecI v) {
  asm("" : "+x"(v));
  return v;
}
inline VecI load_weights(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
inline __m256i broadcast_word(const uint8_t* p) { return _mm256_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
inline __m256i widen_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

// Four pixels, channel by channel: channels 0 to 7, and 8 to 15.
struct RawTaps {
  __m256i words[2];
  explicit RawTaps(const uint8_t* p) {
    __m128i px[4];
    for (int i = 0; i < 4; ++i) px[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
    const __m128i lo01 = _mm_unpacklo_epi8(px[0], px[1]), lo23 = _mm_unpacklo_epi8(px[2], px[3]);
    const __m128i hi01 = _mm_unpackhi_epi8(px[0], px[1]), hi23 = _mm_unpackhi_epi8(px[2], px[3]);
    words[0] = _mm256_set_m128i(_mm_unpackhi_epi16(lo01, lo23), _mm_unpacklo_epi16(lo01, lo23));
    words[1] = _mm256_set_m128i(_mm_unpackhi_epi16(hi01, hi23), _mm_unpacklo_epi16(hi01, hi23));
  }
};

struct Requantizer {
  __m256 scale[2];
  __m256i zero;
  __m128i lo, hi;
  Requantizer(const Requant& r, const float* scales)
      : scale{_mm256_loadu_ps(scales), _mm256_loadu_ps(scales + 8)},
        zero(_mm256_set1_epi16(static_cast<int16_t>(r.zero))),
        lo(_mm_set1_epi8(static_cast<char>(r.lo))),
        hi(_mm_set1_epi8(static_cast<char>(r.hi))) {}

  __m256i rounded(VecI sum, int half) const {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale[half]));
  }

  // M pixels of the block whose vectors begin at `at`.
  template <int M, int NV>
  inline __attribute__((always_inline)) void store(const VecI (&acc)[M][NV], int at, uint8_t* c) const {
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      __m256i q = _mm256_packs_epi32(rounded(acc[i][at], 0), rounded(acc[i][at + 1], 1));
      q = _mm256_adds_epi16(_mm256_permute4x64_epi64(q, 0xd8), zero);
      const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(c + i * 16), _mm_min_epu8(_mm_max_epu8(bytes, lo), hi));
    }
  }
};

}  // namespace
}  // namespace fmn::FMN_ISA
