// Element-wise kernels, the mean over a map, and what turns a picture into floats.
#pragma once

#include "runtime/kernel_table.h"

namespace fmn::FMN_ISA {
namespace {

// dst[i] = clamp(a[i] + b[i]); without b, clamp(a[i]). n is a multiple of 16.
void add(const float* a, const float* b, float* dst, ptrdiff_t n, float lo, float hi) {
  const Vec vlo = set1(lo), vhi = set1(hi);
  for (ptrdiff_t i = 0; i < n; i += LANES) {
    const Vec x = b == nullptr ? load(a + i) : plus(load(a + i), load(b + i));
    store(dst + i, clamp(x, vlo, vhi));
  }
}

// Four chains, so that the sum does not wait for the latency of the addition; their order is fixed.
void global_avg_pool(const PoolArgs& p) {
  const Vec count = set1(static_cast<float>(p.h * p.w));
  for (int v = 0; v < BLOCK; v += LANES) {
    Vec sum[4] = {zero(), zero(), zero(), zero()};
    for (ptrdiff_t y = 0; y < p.h; ++y) {
      const float* row = p.src + y * p.row_stride + v;
      ptrdiff_t x = 0;
      for (; x + 4 <= p.w; x += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[i] = plus(sum[i], load(row + (x + i) * BLOCK));
      }
      for (; x < p.w; ++x) sum[0] = plus(sum[0], load(row + x * BLOCK));
    }
    store(p.dst + v, over(plus(plus(sum[0], sum[1]), plus(sum[2], sum[3])), count));
  }
}

// dst[i] = (src[i] - mean[i % 48]) / std[i % 48]: 48 is a multiple of the three channels and of every vector.
// A division, not a multiplication by the inverse: 255 gives exactly 1 for mean = std = 127.5.
void normalize_u8(const uint8_t* src, float* dst, ptrdiff_t n, const float* mean, const float* std) {
  ptrdiff_t i = 0;
  for (; i + 48 <= n; i += 48) {
#pragma GCC unroll 12
    for (int v = 0; v < 48; v += LANES) {
      store(dst + i + v, over(minus(load_u8(src + i + v), load(mean + v)), load(std + v)));
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
