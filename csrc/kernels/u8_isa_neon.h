// NEON of ARMv8.0, without dot products. With 128 taken off the activation and weights of -127 to 127, the sum of two
// products is at most 2 * 128 * 127 = 32512 and fits into 16 bits.
#pragma once

#include "kernels/u8_isa_aarch64.h"

namespace fmn::FMN_ISA {
namespace {

using Word = int8x16_t;
constexpr int OFFSET = 128;
constexpr bool NEEDS_127 = true;
constexpr bool PAIRWISE = false;

inline Word centre(uint8x16_t bytes) { return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80))); }
inline Word load_word(const uint8_t* p) { return centre(broadcast_word(p)); }
inline Word load_bytes(const uint8_t* p) { return centre(widen_bytes(p)); }

// Volatile, so that they stay in order: GCC 12 otherwise moves loads ahead and spills.
inline __attribute__((always_inline)) void dot(VecI& acc, Word a, VecI w) {
  int16x8_t lo, hi;
  asm volatile(
      "smull %[lo].8h, %[a].8b, %[w].8b\n\tsmull2 %[hi].8h, %[a].16b, %[w].16b\n\t"
      "addp %[lo].8h, %[lo].8h, %[hi].8h\n\tsadalp %[acc].4s, %[lo].8h"
      : [acc] "+w"(acc), [lo] "=&w"(lo), [hi] "=&w"(hi)
      : [a] "w"(a), [w] "w"(w));
}

struct Taps : RawTaps {
  using RawTaps::RawTaps;
  Word word(int v) const { return centre(words[v]); }
};

}  // namespace
}  // namespace fmn::FMN_ISA
