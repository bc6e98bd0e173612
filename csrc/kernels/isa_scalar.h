// No ISA extension: vectors of four floats that any compiler can lower (SSE2 on x86-64, or four scalars).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/pick_both.h"

namespace fmn::FMN_ISA {
namespace {

struct Vec {
  float v[4];
};
using Frag = float;  // what one load of A gives: K_FRAG consecutive k of one pixel
constexpr int LANES = 4;
constexpr int K_FRAG = 1;
constexpr int REGISTERS = 16;
constexpr int HALF_PANEL_BLOCKS = 1;  // of a panel whose last block has 8 channels
constexpr int PANEL_BLOCKS = 1;       // 16-channel blocks of a panel of packed weights

inline Vec load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline void store(float* p, Vec x) {
  for (int i = 0; i < 4; ++i) p[i] = x.v[i];
}
inline Vec set1(float x) { return {{x, x, x, x}}; }
inline Vec zero() { return set1(0.0f); }
inline Vec plus(Vec a, Vec b) { return {{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}}; }
inline Vec minus(Vec a, Vec b) { return {{a.v[0] - b.v[0], a.v[1] - b.v[1], a.v[2] - b.v[2], a.v[3] - b.v[3]}}; }
inline Vec times(Vec a, Vec b) { return {{a.v[0] * b.v[0], a.v[1] * b.v[1], a.v[2] * b.v[2], a.v[3] * b.v[3]}}; }
inline Vec over(Vec a, Vec b) { return {{a.v[0] / b.v[0], a.v[1] / b.v[1], a.v[2] / b.v[2], a.v[3] / b.v[3]}}; }
inline Vec fma(Vec a, Vec b, Vec c) { return plus(times(a, b), c); }
// Written so that a comparison with NaN leaves x as it is.
inline Vec clamp(Vec x, Vec lo, Vec hi) {
  for (int i = 0; i < 4; ++i) {
    if (x.v[i] < lo.v[i]) x.v[i] = lo.v[i];
    if (x.v[i] > hi.v[i]) x.v[i] = hi.v[i];
  }
  return x;
}
inline Vec clamp_above(Vec x, Vec hi) {
  for (int i = 0; i < 4; ++i) {
    if (x.v[i] > hi.v[i]) x.v[i] = hi.v[i];
  }
  return x;
}
// p * 2^n, where n is in the low bits of a float between 2^23 and 2^24.
inline Vec times_power_of_two(Vec p, Vec n) {
  uint32_t bits[4], exponent[4];
  std::memcpy(bits, p.v, sizeof bits);
  std::memcpy(exponent, n.v, sizeof exponent);
  for (int i = 0; i < 4; ++i) bits[i] += exponent[i] << 23;
  std::memcpy(p.v, bits, sizeof bits);
  return p;
}
inline Vec max_or_nan(Vec a, Vec b) {  // a comparison with NaN is false
  for (int i = 0; i < 4; ++i) a.v[i] = a.v[i] > b.v[i] || a.v[i] != a.v[i] ? a.v[i] : b.v[i];
  return a;
}
// Takes dst[i] = src[lane[i]] in a block of 16, where lane[i] is not negative.
struct Pick {
  const int* lane;
  explicit Pick(const int* lanes) : lane(lanes) {}
  void replace(float* dst, const float* src) const {
    for (int i = 0; i < 16; ++i) dst[i] = lane[i] < 0 ? 0.0f : src[lane[i]];
  }
  void merge(float* dst, const float* src) const {
    for (int i = 0; i < 16; ++i) dst[i] = lane[i] < 0 ? dst[i] : src[lane[i]];
  }
};
using PickTwo = PickBoth<Pick>;
inline Vec load_u8(const uint8_t* p) {
  return {{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])}};
}
// For gemv24.h. low_bytes: a number of 24 bits, the low bytes of a, b and c from the highest on, times 256.
struct Words {
  int32_t v[4];
};
inline Words load_words(const int32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline Vec to_floats(Words w) {
  return {
      {static_cast<float>(w.v[0]), static_cast<float>(w.v[1]), static_cast<float>(w.v[2]), static_cast<float>(w.v[3])}};
}
inline Words low_bytes(Words a, Words b, Words c) {
  for (int i = 0; i < 4; ++i) {
    const uint32_t high = static_cast<uint32_t>(a.v[i]) << 24, middle = static_cast<uint32_t>(b.v[i] & 0xff) << 16;
    a.v[i] = static_cast<int32_t>(high | middle | static_cast<uint32_t>(c.v[i] & 0xff) << 8);
  }
  return a;
}
// a0 b0 c0 a1 b1 c1 ..: 3 * LANES floats.
inline void store3(float* p, Vec a, Vec b, Vec c) {
  float x[3][LANES];
  store(x[0], a);
  store(x[1], b);
  store(x[2], c);
  for (int i = 0; i < LANES; ++i) {
    for (int j = 0; j < 3; ++j) p[3 * i + j] = x[j][i];
  }
}
// The compiler must not fold what is computed from the result (only the peak measurement needs that).
inline Vec opaque(Vec v) {
  asm("" : "+m"(v));
  return v;
}
inline void prefetch(const char*) {}
inline void fetch(const float*) {}

inline Frag load_a(const float* p) { return *p; }
inline Frag load_a1(const float* p) { return *p; }
template <int KK>
inline void fma_a(Vec& acc, Frag a, Vec b) {
  acc = fma(set1(a), b, acc);
}
inline void fma_1(Vec& acc, const float* a, Vec b) { fma_a<0>(acc, load_a1(a), b); }

// No registers are left for it: see swish_tile.
constexpr bool SWISH_OF_SUMS = false;
inline void swish_sum(Vec&, Vec, Vec, const float*) {}

}  // namespace
}  // namespace fmn::FMN_ISA
