// The dot products of ARMv8.2 (SDOT): of signed bytes, so that 128 is taken off the activations.
#pragma once

#include "kernels/u8_isa_aarch64.h"

namespace fmn::FMN_ISA {
namespace {

using Word = int8x16_t;
constexpr int OFFSET = 128;
constexpr bool NEEDS_127 = false;
constexpr bool PAIRWISE = false;

inline Word centre(uint8x16_t bytes) { return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80))); }
inline Word load_word(const uint8_t* p) { return centre(broadcast_word(p)); }
inline Word load_bytes(const uint8_t* p) { return centre(widen_bytes(p)); }
inline __attribute__((always_inline)) void dot(VecI& acc, Word a, VecI w) {
  asm volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(a), "w"(w));
}

struct Taps : RawTaps {
  using RawTaps::RawTaps;
  Word word(int v) const { return centre(words[v]); }
};

}  // namespace
}  // namespace fmn::FMN_ISA
