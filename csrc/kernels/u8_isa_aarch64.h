// What the AArch64 ISAs of quantised kernels share: everything but the dot product and what it takes.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "runtime/u8_table.h"

namespace fmn::FMN_ISA {
namespace {

using VecI = int32x4_t;
using VecF = float32x4_t;
constexpr int LANES = 4;
constexpr int REGISTERS = 32;
constexpr int PANEL_BLOCKS = 1;

inline VecI load_i32(const int32_t* p) { return vld1q_s32(p); }
inline void store_i32(int32_t* p, VecI x) { vst1q_s32(p, x); }
inline VecI zero_i32() { return vdupq_n_s32(0); }
inline VecI set1_i32(int32_t x) { return vdupq_n_s32(x); }
inline VecI add_i32(VecI a, VecI b) { return vaddq_s32(a, b); }
inline VecI sub_i32(VecI a, VecI b) { return vsubq_s32(a, b); }
inline VecI mul_i32(VecI a, VecI b) { return vmulq_s32(a, b); }
inline VecI shift_right(VecI x, int bits) { return vshlq_s32(x, vdupq_n_s32(-bits)); }
inline VecI opaque(VecI v) {
  asm("" : "+w"(v));
  return v;
}
inline VecI load_weights(const int8_t* p) { return vreinterpretq_s32_s8(vld1q_s8(p)); }
inline void prefetch(const char* p) { __builtin_prefetch(p, 0, 2); }

inline VecF set1_f32(float x) { return vdupq_n_f32(x); }
inline VecF to_float(VecI x) { return vcvtq_f32_s32(x); }
inline VecF times(VecF a, VecF b) { return vmulq_f32(a, b); }
inline VecF plus(VecF a, VecF b) { return vaddq_f32(a, b); }
inline VecF fma_f32(VecF a, VecF b, VecF c) { return vfmaq_f32(c, a, b); }
inline VecI rounded(VecF x) { return vcvtnq_s32_f32(x); }
inline VecI load_u8(const uint8_t* p) {
  const int32x4_t bytes = {p[0], p[1], p[2], p[3]};
  return bytes;
}

inline uint8x16_t broadcast_word(const uint8_t* p) {
  return vreinterpretq_u8_u32(vld1q_dup_u32(reinterpret_cast<const uint32_t*>(p)));
}
inline uint8x16_t widen_bytes(const uint8_t* p) { return vreinterpretq_u8_s32(load_u8(p)); }

// Four pixels, channel by channel: four channels a vector.
struct RawTaps {
  uint8x16_t words[4];
  explicit RawTaps(const uint8_t* p) {
    const uint8x16_t a = vld1q_u8(p), b = vld1q_u8(p + 16), c = vld1q_u8(p + 32), d = vld1q_u8(p + 48);
    const uint16x8_t lo_ab = vreinterpretq_u16_u8(vzip1q_u8(a, b)), lo_cd = vreinterpretq_u16_u8(vzip1q_u8(c, d));
    const uint16x8_t hi_ab = vreinterpretq_u16_u8(vzip2q_u8(a, b)), hi_cd = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    words[0] = vreinterpretq_u8_u16(vzip1q_u16(lo_ab, lo_cd));
    words[1] = vreinterpretq_u8_u16(vzip2q_u16(lo_ab, lo_cd));
    words[2] = vreinterpretq_u8_u16(vzip1q_u16(hi_ab, hi_cd));
    words[3] = vreinterpretq_u8_u16(vzip2q_u16(hi_ab, hi_cd));
  }
};

// Four tables of 64 bytes; an index beyond a table leaves what the others gave.
inline void lookup_u8(const uint8_t* src, uint8_t* dst, ptrdiff_t n, const uint8_t* table) {
  const uint8x16x4_t t0 = vld1q_u8_x4(table), t1 = vld1q_u8_x4(table + 64);
  const uint8x16x4_t t2 = vld1q_u8_x4(table + 128), t3 = vld1q_u8_x4(table + 192);
  const uint8x16_t step = vdupq_n_u8(64);
  for (ptrdiff_t i = 0; i < n; i += 16) {
    uint8x16_t x = vld1q_u8(src + i);
    uint8x16_t y = vqtbl4q_u8(t0, x);
    x = vsubq_u8(x, step);
    y = vqtbx4q_u8(y, t1, x);
    x = vsubq_u8(x, step);
    y = vqtbx4q_u8(y, t2, x);
    x = vsubq_u8(x, step);
    vst1q_u8(dst + i, vqtbx4q_u8(y, t3, x));
  }
}

constexpr bool TAPS_IN_ORDER = false;  // the compiler may move a Taps
// Pictures become bytes in a plain loop.
constexpr RgbU8Fn rgb_u8 = nullptr;

struct Requantizer {
  const Requant& r;
  const float* scales;
  explicit Requantizer(const Requant& requant, const float* factors = nullptr) : r(requant), scales(factors) {}

  // M pixels of the block whose vectors begin at `at`.
  template <int M, int NV>
  inline __attribute__((always_inline)) void store(const VecI (&acc)[M][NV], int at, uint8_t* c) const {
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      put(scaled(acc[i][at], 0), scaled(acc[i][at + 1], 1), scaled(acc[i][at + 2], 2), scaled(acc[i][at + 3], 3),
          c + i * 16);
    }
  }
  // The same for what is scaled and rounded already.
  template <int M, int NV>
  inline __attribute__((always_inline)) void store_rounded(const VecI (&q)[M][NV], int at, uint8_t* c) const {
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) put(q[i][at], q[i][at + 1], q[i][at + 2], q[i][at + 3], c + i * 16);
  }
  VecI scaled(VecI sum, int v) const { return rounded(times(to_float(sum), vld1q_f32(scales + 4 * v))); }
  void put(VecI a, VecI b, VecI c, VecI d, uint8_t* dst) const {
    const int16x8_t zero = vdupq_n_s16(static_cast<int16_t>(r.zero));
    const int16x8_t ab = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a), b), zero);
    const int16x8_t cd = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(c), d), zero);
    const uint8x16_t bytes = vqmovun_high_s16(vqmovun_s16(ab), cd);
    const uint8x16_t lo = vdupq_n_u8(static_cast<uint8_t>(r.lo)), hi = vdupq_n_u8(static_cast<uint8_t>(r.hi));
    vst1q_u8(dst, vminq_u8(vmaxq_u8(bytes, lo), hi));
  }
};

}  // namespace
}  // namespace fmn::FMN_ISA
