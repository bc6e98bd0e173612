// AVX-512 with VNNI: a dot product of four bytes in every lane of 32 bits.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/hidden.h"
#include "runtime/u8_table.h"

namespace fmn::FMN_ISA {
namespace {

using VecI = __m512i;
using Word = __m512i;
constexpr int LANES = 16;
constexpr int REGISTERS = 32;
constexpr int PANEL_BLOCKS = 2;
constexpr int OFFSET = 0;
constexpr bool NEEDS_127 = false;

inline VecI load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store_i32(int32_t* p, VecI x) { _mm512_storeu_si512(p, x); }
inline VecI zero_i32() { return _mm512_setzero_si512(); }
inline VecI add_i32(VecI a, VecI b) { return _mm512_add_epi32(a, b); }
inline VecI opaque(VecI v) {
  asm("" : "+v"(v));
  return v;
}
inline VecI load_weights(const int8_t* p) { return _mm512_loadu_si512(p); }
using VecF = __m512;
inline VecI set1_i32(int32_t x) { return _mm512_set1_epi32(x); }
inline VecF set1_f32(float x) { return _mm512_set1_ps(x); }
inline VecI load_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline VecI sub_i32(VecI a, VecI b) { return _mm512_sub_epi32(a, b); }
inline VecI mul_i32(VecI a, VecI b) { return _mm512_mullo_epi32(a, b); }
inline VecI shift_right(VecI x, int bits) { return _mm512_sra_epi32(x, _mm_cvtsi32_si128(bits)); }
inline VecF to_float(VecI x) { return _mm512_cvtepi32_ps(x); }
inline VecF times(VecF a, VecF b) { return _mm512_mul_ps(a, b); }
inline VecF plus(VecF a, VecF b) { return _mm512_add_ps(a, b); }
inline VecF fma_f32(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
inline VecI rounded(VecF x) { return _mm512_cvtps_epi32(x); }
// Sixteen tables of sixteen, one for each upper half of a byte.
inline void lookup_u8(const uint8_t* src, uint8_t* dst, ptrdiff_t n, const uint8_t* table) {
  __m512i part[16];
  for (int i = 0; i < 16; ++i) {
    part[i] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i)));
  }
  const __m512i low = _mm512_set1_epi8(15);
  for (ptrdiff_t at = 0; at < n; at += 64) {
    const __mmask64 mine = n - at >= 64 ? ~uint64_t{0} : (uint64_t{1} << (n - at)) - 1;
    const __m512i x = _mm512_maskz_loadu_epi8(mine, src + at);
    const __m512i index = _mm512_and_si512(x, low), upper = _mm512_andnot_si512(low, x);
    __m512i y = _mm512_shuffle_epi8(part[0], index);
#pragma GCC unroll 15
    for (int i = 1; i < 16; ++i) {
      const __mmask64 here = _mm512_cmpeq_epi8_mask(upper, _mm512_set1_epi8(static_cast<char>(16 * i)));
      y = _mm512_mask_shuffle_epi8(y, here, part[i], index);
    }
    _mm512_mask_storeu_epi8(dst + at, mine, y);
  }
}
inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
// One byte a lane, in the first place of its word.
inline Word load_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
// One instruction each and volatile: GCC 12 otherwise hoists the broadcasts of several k and spills.
inline Word load_word(const uint8_t* p) {
  Word v;
  asm volatile("vpbroadcastd %1, %0" : "=v"(v) : "m"(*reinterpret_cast<const uint32_t*>(p)));
  return v;
}
inline void dot(VecI& acc, Word a, VecI w) { asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w)); }
#else
inline Word load_word(const uint8_t* p) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
inline void dot(VecI& acc, Word a, VecI w) { acc = _mm512_dpbusd_epi32(acc, a, w); }
#endif

// Four pixels, channel by channel: words of four channels to their lane of 128 bits, then 4x4 bytes inside of it.
struct Taps {
  __m512i words;
  explicit Taps(const uint8_t* p) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    words = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(order, _mm512_loadu_si512(p)), bytes);
  }
  Word word(int) const { return words; }
};

// Where the words of four pixels are after two packs.
alignas(64) const int PACKED_ORDER[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

// Four pixels of a block are 64 bytes that lie together: their sums are packed by saturation and stored at once.
struct Requantizer {
  __m512 scale;
  __m512i zero, lo, hi;  // 16 bits and twice bytes
  explicit Requantizer(const Requant& r, const float* scales = nullptr)
      : scale(scales != nullptr ? _mm512_loadu_ps(scales) : _mm512_set1_ps(1.0f)),
        zero(_mm512_set1_epi16(static_cast<int16_t>(r.zero))),
        lo(_mm512_set1_epi8(static_cast<char>(r.lo))),
        hi(_mm512_set1_epi8(static_cast<char>(r.hi))) {}

  VecI scaled(VecI sum) const { return rounded(times(to_float(sum), scale)); }
  __m512i pack(VecI a, VecI b, VecI c, VecI d) const {
    const __m512i ab = _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero);
    const __m512i cd = _mm512_adds_epi16(_mm512_packs_epi32(c, d), zero);
    const __m512i order = _mm512_load_si512(hidden(PACKED_ORDER));
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd));
    return _mm512_min_epu8(_mm512_max_epu8(bytes, lo), hi);
  }

  // M pixels of the block whose vectors begin at `at`.
  template <int M, int NV>
  inline __attribute__((always_inline)) void store(const VecI (&acc)[M][NV], int at, uint8_t* c) const {
    VecI q[M][1];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) q[i][0] = scaled(acc[i][at]);
    store_rounded<M, 1>(q, 0, c);
  }
  // The same for what is scaled and rounded already.
  template <int M, int NV>
  inline __attribute__((always_inline)) void store_rounded(const VecI (&q)[M][NV], int at, uint8_t* c) const {
#pragma GCC unroll 8
    for (int i = 0; i + 4 <= M; i += 4) {
      _mm512_storeu_si512(c + i * 16, pack(q[i][at], q[i + 1][at], q[i + 2][at], q[i + 3][at]));
    }
    constexpr int REST = M % 4, FIRST = M - REST;
    if constexpr (REST > 0) {
      constexpr int SECOND = REST > 1 ? FIRST + 1 : FIRST, THIRD = REST > 2 ? FIRST + 2 : FIRST;
      const __m512i bytes = pack(q[FIRST][at], q[SECOND][at], q[THIRD][at], q[FIRST][at]);
      _mm512_mask_storeu_epi8(c + FIRST * 16, (uint64_t{1} << (16 * REST)) - 1, bytes);
    }
  }
};

}  // namespace
}  // namespace fmn::FMN_ISA
