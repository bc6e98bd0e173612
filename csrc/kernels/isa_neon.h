// NEON of ARMv8.0: 32 registers of 4 floats.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/pick_both.h"

namespace fmn::FMN_ISA {
namespace {

using Vec = float32x4_t;
using Frag = float32x4_t;  // what one load of A gives: K_FRAG consecutive k of one pixel
constexpr int LANES = 4;
constexpr int K_FRAG = 4;
constexpr int REGISTERS = 32;
constexpr int HALF_PANEL_BLOCKS = 1;  // of a panel whose last block has 8 channels
constexpr int PANEL_BLOCKS = 1;       // 16-channel blocks of a panel of packed weights

inline Vec load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Vec v) { vst1q_f32(p, v); }
inline Vec set1(float x) { return vdupq_n_f32(x); }
inline Vec zero() { return vdupq_n_f32(0.0f); }
inline Vec plus(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec minus(Vec a, Vec b) { return vsubq_f32(a, b); }
inline Vec times(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec over(Vec a, Vec b) { return vdivq_f32(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
// FMAX and FMIN return NaN when either operand is NaN.
inline Vec clamp(Vec x, Vec lo, Vec hi) { return vminq_f32(vmaxq_f32(x, lo), hi); }
inline Vec clamp_above(Vec x, Vec hi) { return vminq_f32(x, hi); }
// p * 2^n, where n is in the low bits of a float between 2^23 and 2^24.
inline Vec times_power_of_two(Vec p, Vec n) {
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vreinterpretq_s32_f32(n), 23)));
}
inline Vec max_or_nan(Vec a, Vec b) { return vmaxq_f32(a, b); }
// Takes dst[i] = src[lane[i]] in a block of 16, where lane[i] is not negative.
struct Pick {
  uint8x16_t bytes[4];  // where each byte is in the source; 255 is out of range and leaves what was there
  explicit Pick(const int* lanes) {
    uint8_t at[64];
    for (int i = 0; i < 64; ++i) at[i] = lanes[i / 4] < 0 ? 255 : static_cast<uint8_t>(lanes[i / 4] * 4 + i % 4);
    for (int v = 0; v < 4; ++v) bytes[v] = vld1q_u8(at + 16 * v);
  }
  void replace(float* dst, const float* src) const {
    const uint8x16x4_t block = vld1q_u8_x4(reinterpret_cast<const uint8_t*>(src));
    for (int v = 0; v < 4; ++v) store(dst + 4 * v, vreinterpretq_f32_u8(vqtbl4q_u8(block, bytes[v])));
  }
  void merge(float* dst, const float* src) const {
    const uint8x16x4_t block = vld1q_u8_x4(reinterpret_cast<const uint8_t*>(src));
    for (int v = 0; v < 4; ++v) {
      const uint8x16_t old = vreinterpretq_u8_f32(load(dst + 4 * v));
      store(dst + 4 * v, vreinterpretq_f32_u8(vqtbx4q_u8(old, block, bytes[v])));
    }
  }
};
using PickTwo = PickBoth<Pick>;
inline Vec load_u8(const uint8_t* p) {
  const uint32x4_t bytes = {p[0], p[1], p[2], p[3]};
  return vcvtq_f32_u32(bytes);
}
// For gemv24.h. low_bytes: a number of 24 bits, the low bytes of a, b and c from the highest on, times 256.
using Words = int32x4_t;
inline Words load_words(const int32_t* p) { return vld1q_s32(p); }
inline Vec to_floats(Words w) { return vcvtq_f32_s32(w); }
inline Words low_bytes(Words a, Words b, Words c) {
  // Each is shifted into the one before it, whose bits above stay: a, then b, c and zeros.
  const uint32x4_t cz = vshlq_n_u32(vreinterpretq_u32_s32(c), 8);
  const uint32x4_t bcz = vsliq_n_u32(vandq_u32(cz, vdupq_n_u32(0xff00)), vreinterpretq_u32_s32(b), 16);
  return vreinterpretq_s32_u32(vsliq_n_u32(bcz, vreinterpretq_u32_s32(a), 24));
}
// a0 b0 c0 a1 b1 c1 ..: 3 * LANES floats.
inline void store3(float* p, Vec a, Vec b, Vec c) { vst3q_f32(p, {{a, b, c}}); }
// The compiler must not fold what is computed from the result (only the peak measurement needs that).
inline Vec opaque(Vec v) {
  asm("" : "+w"(v));
  return v;
}
// Into the second-level cache, and into the first.
inline void prefetch(const char* p) { __builtin_prefetch(p, 0, 2); }
inline void fetch(const float* p) { __builtin_prefetch(p, 0, 3); }

// Multiplying by an element of A needs one load for four k; a broadcast load would need one for each.
inline Frag load_a(const float* p) { return vld1q_f32(p); }
inline Frag load_a1(const float* p) { return vld1q_dup_f32(p); }
#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
// Volatile, so that they stay in order: GCC 12 otherwise moves loads ahead and spills (47 moves in the loop of 6x16).
template <int KK>
inline void fma_a(Vec& acc, Frag a, Vec b) {
  asm volatile("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(acc) : "w"(b), "w"(a), "i"(KK));
}
#else
template <int KK>
inline void fma_a(Vec& acc, Frag a, Vec b) {
  acc = vfmaq_laneq_f32(acc, b, a, KK);
}
#endif
inline void fma_1(Vec& acc, const float* a, Vec b) { fma_a<0>(acc, load_a1(a), b); }

// No registers are left for it: see swish_tile.
constexpr bool SWISH_OF_SUMS = false;
inline void swish_sum(Vec&, Vec, Vec, const float*) {}

}  // namespace
}  // namespace fmn::FMN_ISA
