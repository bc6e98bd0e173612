// The mixed dot products of ARMv8.6 (USDOT): unsigned activations, signed weights.
#pragma once

#include "kernels/u8_isa_aarch64.h"

namespace fmn::FMN_ISA {
namespace {

using Word = uint8x16_t;
constexpr int OFFSET = 0;
constexpr bool NEEDS_127 = false;
constexpr bool PAIRWISE = false;

inline Word load_word(const uint8_t* p) { return broadcast_word(p); }
inline Word load_bytes(const uint8_t* p) { return widen_bytes(p); }
inline __attribute__((always_inline)) void dot(VecI& acc, Word a, VecI w) {
  asm volatile("usdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(a), "w"(w));
}

struct Taps : RawTaps {
  using RawTaps::RawTaps;
  Word word(int v) const { return words[v]; }
};

}  // namespace
}  // namespace fmn::FMN_ISA
