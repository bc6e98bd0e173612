// AVX-VNNI: the dot product of AVX-512 in 256 bits, on CPUs without AVX-512.
#pragma once

#include "kernels/u8_isa_ymm.h"

namespace fmn::FMN_ISA {
namespace {

using Word = __m256i;
constexpr int OFFSET = 0;
constexpr bool NEEDS_127 = false;
constexpr bool PAIRWISE = false;
constexpr int PANEL_BLOCKS = 1;

inline Word load_bytes(const uint8_t* p) { return widen_bytes(p); }

#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
inline Word load_word(const uint8_t* p) {
  Word v;
  asm volatile("vpbroadcastd %1, %0" : "=x"(v) : "m"(*reinterpret_cast<const uint32_t*>(p)));
  return v;
}
inline void dot(VecI& acc, Word a, VecI w) { asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(w)); }
#else
inline Word load_word(const uint8_t* p) { return broadcast_word(p); }
inline void dot(VecI& acc, Word a, VecI w) { acc = _mm256_dpbusd_avx_epi32(acc, a, w); }
#endif

struct Taps : RawTaps {
  using RawTaps::RawTaps;
  Word word(int v) const { return words[v]; }
};

}  // namespace
}  // namespace fmn::FMN_ISA
