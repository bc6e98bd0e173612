// Element-wise kernels, and what turns a picture into floats.
#pragma once

#include <cmath>

#include "kernels/activation.h"

namespace fmn::FMN_ISA {
namespace {

template <class F>
inline void map(const EltArgs& e, F f) {
  for (ptrdiff_t i = 0; i < e.n; i += BLOCK) {
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK; v += LANES) store(e.dst + i + v, f(i + v, v));
  }
}

// Two walks for what is not a clamp: such a layer is rare, and the second finds its values in the cache.
template <class Op>
void binary(const EltArgs& e, Op op) {
  const bool clamped = e.act.kind == ActKind::clamp;
  const Vec lo = set1(clamped ? e.act.lo : -INFINITY), hi = set1(clamped ? e.act.hi : INFINITY);
  if (e.b == nullptr) {
    map(e, [&](ptrdiff_t i, int) { return clamp(load(e.a + i), lo, hi); });
  } else if (e.b_is_one_pixel) {
    map(e, [&](ptrdiff_t i, int v) { return clamp(op(load(e.a + i), load(e.b + v)), lo, hi); });
  } else {
    map(e, [&](ptrdiff_t i, int) { return clamp(op(load(e.a + i), load(e.b + i)), lo, hi); });
  }
  if (!clamped) map(e, [&](ptrdiff_t i, int) { return activate(load(e.dst + i), e.act); });
}

void add(const EltArgs& e) {
  binary(e, [](Vec a, Vec b) { return plus(a, b); });
}

void mul(const EltArgs& e) {
  binary(e, [](Vec a, Vec b) { return times(a, b); });
}

inline Vec load_as_float(const uint8_t* p) { return load_u8(p); }
inline Vec load_as_float(const float* p) { return load(p); }

// dst[i] = (src[i] - mean[i % PERIOD]) / std[i % PERIOD].
// A division, not a multiplication by the inverse: 255 gives exactly 1 for mean = std = 127.5.
template <class T>
void normalize(const T* src, float* dst, ptrdiff_t n, const float* mean, const float* std) {
  ptrdiff_t i = 0;
  for (; i + NORMALIZE_PERIOD <= n; i += NORMALIZE_PERIOD) {
#pragma GCC unroll 12
    for (int v = 0; v < NORMALIZE_PERIOD; v += LANES) {
      store(dst + i + v, over(minus(load_as_float(src + i + v), load(mean + v)), load(std + v)));
    }
  }
  for (int v = 0; i < n; ++i, ++v) dst[i] = (static_cast<float>(src[i]) - mean[v]) / std[v];
}

// Three planes -> pixels of three channels.
void interleave3(const float* p0, const float* p1, const float* p2, float* dst, ptrdiff_t n) {
  ptrdiff_t i = 0;
  for (; i + LANES <= n; i += LANES) store3(dst + 3 * i, load(p0 + i), load(p1 + i), load(p2 + i));
  for (; i < n; ++i) {
    dst[3 * i] = p0[i];
    dst[3 * i + 1] = p1[i];
    dst[3 * i + 2] = p2[i];
  }
}

// Enough independent chains to hide the latency of two FMA units; nothing is loaded inside the loop.
double peak(ptrdiff_t steps) {
  constexpr int CHAINS = REGISTERS >= 32 ? 24 : 12;
  Vec acc[CHAINS];
  const Vec x = set1(1.0000001f), y = set1(1e-9f);
#pragma GCC unroll 24
  for (int i = 0; i < CHAINS; ++i) acc[i] = set1(static_cast<float>(i));
  for (ptrdiff_t s = 0; s < steps; ++s) {
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; ++i) acc[i] = fma(x, y, opaque(acc[i]));
  }
  float sink[LANES];
  Vec sum = acc[0];
#pragma GCC unroll 24
  for (int i = 1; i < CHAINS; ++i) sum = plus(sum, acc[i]);
  store(sink, sum);
  volatile float keep = sink[0];
  (void)keep;
  return 2.0 * LANES * CHAINS * static_cast<double>(steps);
}

}  // namespace
}  // namespace fmn::FMN_ISA
