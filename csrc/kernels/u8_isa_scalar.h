// Quantised kernels without an ISA extension.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime/u8_table.h"

namespace fmn::FMN_ISA {
namespace {

struct VecI {
  int32_t v[4];
};
struct Word {  // four bytes for each lane
  uint8_t b[4][4];
};
constexpr int LANES = 4;
constexpr int REGISTERS = 16;
constexpr int PANEL_BLOCKS = 1;
constexpr int OFFSET = 0;
constexpr bool NEEDS_127 = false;
constexpr bool PAIRWISE = false;

inline VecI load_i32(const int32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline void store_i32(int32_t* p, VecI x) { std::memcpy(p, x.v, sizeof x.v); }
inline VecI zero_i32() { return {{0, 0, 0, 0}}; }
inline VecI add_i32(VecI a, VecI b) { return {{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}}; }
inline VecI opaque(VecI v) {
  asm("" : "+m"(v));
  return v;
}
inline VecI load_weights(const int8_t* p) {
  VecI x;
  std::memcpy(x.v, p, sizeof x.v);
  return x;
}
// The same four bytes in every lane.
inline Word load_word(const uint8_t* p) {
  Word w;
  for (int lane = 0; lane < 4; ++lane) std::memcpy(w.b[lane], p, 4);
  return w;
}
// One byte a lane, in the first place of its word.
inline Word load_bytes(const uint8_t* p) {
  Word w = {};
  for (int lane = 0; lane < 4; ++lane) w.b[lane][0] = p[lane];
  return w;
}
inline void dot(VecI& acc, const Word& a, VecI w) {
  int8_t b[4][4];
  std::memcpy(b, w.v, sizeof b);
  for (int lane = 0; lane < 4; ++lane) {
    for (int i = 0; i < 4; ++i) acc.v[lane] += static_cast<int32_t>(a.b[lane][i]) * b[lane][i];
  }
}
inline void prefetch(const char*) {}

struct VecF {
  float v[4];
};
template <class F>
inline VecF lanes(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline VecI set1_i32(int32_t x) { return {{x, x, x, x}}; }
inline VecF set1_f32(float x) { return {{x, x, x, x}}; }
inline VecI load_u8(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline VecI sub_i32(VecI a, VecI b) { return {{a.v[0] - b.v[0], a.v[1] - b.v[1], a.v[2] - b.v[2], a.v[3] - b.v[3]}}; }
inline VecI mul_i32(VecI a, VecI b) {
  for (int i = 0; i < 4; ++i) a.v[i] *= b.v[i];
  return a;
}
inline VecI shift_right(VecI x, int bits) {
  for (int i = 0; i < 4; ++i) x.v[i] >>= bits;
  return x;
}
inline VecF to_float(VecI x) {
  return lanes([&](int i) { return static_cast<float>(x.v[i]); });
}
inline VecF times(VecF a, VecF b) {
  return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
inline VecF plus(VecF a, VecF b) {
  return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline VecF fma_f32(VecF a, VecF b, VecF c) {
  return lanes([&](int i) { return std::fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline VecI rounded(VecF x) {
  VecI y;
  for (int i = 0; i < 4; ++i) y.v[i] = static_cast<int32_t>(std::nearbyintf(x.v[i]));
  return y;
}
inline void lookup_u8(const uint8_t* src, uint8_t* dst, ptrdiff_t n, const uint8_t* table) {
  for (ptrdiff_t i = 0; i < n; ++i) dst[i] = table[src[i]];
}

// Four pixels, channel by channel.
struct Taps {
  const uint8_t* p;
  explicit Taps(const uint8_t* pixels) : p(pixels) {}
  Word word(int v) const {
    Word w;
    for (int lane = 0; lane < 4; ++lane) {
      for (int i = 0; i < 4; ++i) w.b[lane][i] = p[i * 16 + v * 4 + lane];
    }
    return w;
  }
};

constexpr bool TAPS_IN_ORDER = false;  // the compiler may move a Taps
// Pictures become bytes in a plain loop.
constexpr RgbU8Fn rgb_u8 = nullptr;

struct Requantizer {
  const Requant& r;
  const float* scale;
  explicit Requantizer(const Requant& requant, const float* scales = nullptr) : r(requant), scale(scales) {}

  // M pixels of the block whose vectors begin at `at`.
  template <int M, int NV>
  void store(const VecI (&acc)[M][NV], int at, uint8_t* c) const {
    VecI q[M][4];
    for (int i = 0; i < M; ++i) {
      for (int v = 0; v < 4; ++v) {
        q[i][v] = rounded(lanes([&](int l) { return static_cast<float>(acc[i][at + v].v[l]) * scale[v * 4 + l]; }));
      }
    }
    store_rounded<M, 4>(q, 0, c);
  }
  // The same for what is scaled and rounded already.
  template <int M, int NV>
  void store_rounded(const VecI (&q)[M][NV], int at, uint8_t* c) const {
    for (int i = 0; i < M; ++i) {
      for (int o = 0; o < 16; ++o) {
        const int32_t byte = q[i][at + o / 4].v[o % 4] + r.zero;
        c[i * 16 + o] = static_cast<uint8_t>(byte < r.lo ? r.lo : byte > r.hi ? r.hi : byte);
      }
    }
  }
};

}  // namespace
}  // namespace fmn::FMN_ISA
