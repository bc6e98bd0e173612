// What the 512-bit ISAs of quantised kernels share: everything but shuffles of bytes.
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
constexpr bool PAIRWISE = false;

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

// Where the words of four pixels are after two packs.
alignas(64) const int PACKED_ORDER[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

// Four pixels of a block are 64 bytes that lie together: their sums are packed by saturation and stored at once.
struct Requantizer {
  __m512 scale;
  const Requant& bounds;  // read where they are needed: few registers are left in the tiles
  bool plain;             // saturation does all: a zero point of 0 and no other bounds, as behind a ReLU
  explicit Requantizer(const Requant& r, const float* scales = nullptr)
      : scale(scales != nullptr ? _mm512_loadu_ps(scales) : _mm512_set1_ps(1.0f)),
        bounds(r),
        plain(r.zero == 0 && r.lo == 0 && r.hi == 255) {}

  VecI scaled(VecI sum) const { return rounded(times(to_float(sum), scale)); }

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
    if (plain) {
      store_bytes<true, M, NV>(q, at, c);
    } else {
      store_bytes<false, M, NV>(q, at, c);
    }
  }

 private:
  template <bool PLAIN, int M, int NV>
  inline __attribute__((always_inline)) void store_bytes(const VecI (&q)[M][NV], int at, uint8_t* c) const {
#pragma GCC unroll 8
    for (int i = 0; i + 4 <= M; i += 4) {
      const __m512i ab = pairs<PLAIN>(q[i][at], q[i + 1][at]), cd = pairs<PLAIN>(q[i + 2][at], q[i + 3][at]);
      _mm512_storeu_si512(c + i * 16, bytes<PLAIN>(ab, cd));
    }
    constexpr int REST = M % 4, FIRST = M - REST;
    // No masks: loads that follow wait for the whole width of a masked store.
    if constexpr (REST > 0) {
      constexpr int SECOND = REST > 1 ? FIRST + 1 : FIRST;
      const __m512i ab = pairs<PLAIN>(q[FIRST][at], q[SECOND][at]);
      const __m512i cd = REST > 2 ? pairs<PLAIN>(q[M - 1][at], q[M - 1][at]) : ab;
      const __m512i packed = bytes<PLAIN>(ab, cd);
      auto* rest = reinterpret_cast<__m128i*>(c + FIRST * 16);
      if constexpr (REST == 1) {
        _mm_storeu_si128(rest, _mm512_castsi512_si128(packed));
      } else {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest), _mm512_castsi512_si256(packed));
      }
      if constexpr (REST == 3) _mm_storeu_si128(rest + 2, _mm512_extracti32x4_epi32(packed, 2));
    }
  }
  // Plus zero, not more than hi. A sum that saturates would do without the minimum, but occupies one of the two ports
  // of the dot products (Zen 4); these two go anywhere.
  template <bool PLAIN>
  __m512i pairs(VecI a, VecI b) const {
    const __m512i ab = _mm512_packs_epi32(a, b);
    if constexpr (PLAIN) return ab;
    const Requant& r = *hidden(&bounds);
    const __m512i most = _mm512_set1_epi16(static_cast<int16_t>(r.hi - r.zero));
    return _mm512_add_epi16(_mm512_min_epi16(ab, most), _mm512_set1_epi16(static_cast<int16_t>(r.zero)));
  }
  template <bool PLAIN>
  __m512i bytes(__m512i ab, __m512i cd) const {
    const __m512i order = _mm512_load_si512(hidden(PACKED_ORDER));
    const __m512i all = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd));
    if constexpr (PLAIN) return all;
    return _mm512_max_epu8(all, _mm512_set1_epi8(static_cast<char>(hidden(&bounds)->lo)));
  }
};

}  // namespace
}  // namespace fmn::FMN_ISA
