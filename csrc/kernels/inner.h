// The tile of gemm.h with five eighths of the pairs of channels multiplied by Winograd's rule of 1968,
//
//   a0 b0 + a1 b1 = (a0 + b1) (a1 + b0) - a0 a1 - b0 b1
//
// for cores whose adders are apart from their multipliers: a pair takes one multiply-add and two additions instead of
// two multiply-adds. What is subtracted depends on the pixel alone (inner_pixels) or on the output channel alone
// (InnerArgs::init), and is what the sum begins with:
//
//   c[i][o] = act((pixels[i] + init[o] + sum) * scale[o] + bias[o] + add[i][o])
//
// where b, and so init, is the layer's weights divided by scale, so that a and b are of like size: the rounding errors
// are those of a0 a1 and b0 b1 too. See runtime/inner.cpp.
//
// Of a block of 16 channels five pairs are added and six channels multiplied as ever: 5 + 6 multiply-adds and 10
// additions, which Zen 4 does in 11 cycles (AVX-512, 164 of 118 GFLOP/s measured in a loop). Each takes A from memory:
// a broadcast of its own would be a shuffle, in the way of either. Channels beyond the last whole block are multiplied.
//
// Register budget of 10x32: 20 accumulators + 4 B of a pair + 2 B of a channel + 2 sums = 28 of 32. Each output is
// computed in the same order whatever the tile.
#pragma once

#include "kernels/activation.h"
#include "kernels/gemm.h"

namespace fmn::FMN_ISA {
namespace {

template <int MR, int NB>
void gemm_inner(const InnerArgs& g) {
  constexpr int NV = NB * VECS, PAIRS = INNER_PAIRS, SINGLE = BLOCK - 2 * PAIRS;
  const char* soon = g.prefetch;
  for (ptrdiff_t tile = 0; tile < g.tiles; ++tile) {
    Vec acc[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[i][j] = plus(set1(g.pixels[tile * MR + i]), load(g.init + j * LANES));
    }
    const float* a = g.a + tile * MR * BLOCK;
    const float* b = g.b;
    for (ptrdiff_t block = 0; block < g.blocks; ++block, a += g.block_stride, b += BLOCK * NV * LANES) {
#pragma GCC unroll 16
      for (int i = 0; i < BLOCK; ++i) prefetch(soon + i * 64);
      soon += BLOCK * 64;
#pragma GCC unroll 8
      for (int p = 0; p < PAIRS; ++p) {
        Vec b0[NV], b1[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
          b0[j] = load(b + (2 * p * NV + j) * LANES);
          b1[j] = load(b + ((2 * p + 1) * NV + j) * LANES);
        }
        // The channels that are multiplied are shared out between the pairs.
        const int begin = 2 * PAIRS + SINGLE * p / PAIRS, end = 2 * PAIRS + SINGLE * (p + 1) / PAIRS;
        Vec bs[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) bs[j] = load(b + (begin * NV + j) * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
          for (int j = 0; j < NV; ++j) {
            const Vec s0 = plus_1(a + i * BLOCK + 2 * p, b1[j]), s1 = plus_1(a + i * BLOCK + 2 * p + 1, b0[j]);
            fma_1(acc[i][j], a + i * BLOCK + begin, bs[j]);
            fma_a<0>(acc[i][j], s0, s1);
          }
        }
#pragma GCC unroll 4
        for (int k = begin + 1; k < end; ++k) {
#pragma GCC unroll 8
          for (int j = 0; j < NV; ++j) bs[j] = load(b + (k * NV + j) * LANES);
#pragma GCC unroll 16
          for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
            for (int j = 0; j < NV; ++j) fma_1(acc[i][j], a + i * BLOCK + k, bs[j]);
          }
        }
      }
    }
    for (ptrdiff_t k = 0; k < g.rest; ++k, ++a, b += NV * LANES) gemm_steps<1, 1>(acc, a, BLOCK, b);
    const ptrdiff_t at = tile * MR * BLOCK;
    float* const c = g.c + at;
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const ptrdiff_t of_vector = (j % VECS) * LANES;
      const Vec scale = load(g.scale + j * LANES), bias = load(g.bias + j * LANES);
      if (g.add != nullptr) {
        const float* const add = g.add + at + (j / VECS) * g.add_stride + of_vector;
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) acc[i][j] = fma(acc[i][j], scale, plus(bias, load(add + i * BLOCK)));
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) acc[i][j] = fma(acc[i][j], scale, bias);
      }
      const Vec lo = set1(g.act.lo), hi = set1(g.act.hi);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        store(c + i * BLOCK + (j / VECS) * g.c_stride + of_vector, clamp(acc[i][j], lo, hi));
      }
    }
    if (g.act.kind != ActKind::clamp) swish_tile<MR, NB>(c, g.c_stride, g.act);
  }
}

// dst[i] = -sum a0 a1 over the pairs of gemm_inner.
void inner_pixels(const InnerPixelsArgs& g) {
  for (ptrdiff_t i = 0; i < g.pixels; ++i) {
    const float* a = g.a + i * BLOCK;
    Vec sum = zero();
    for (ptrdiff_t block = 0; block < g.blocks; ++block, a += g.block_stride) {
      const Vec v = load(a);
      sum = fma(v, partners(v), sum);
    }
    g.dst[i] = -sum_of_lanes(sum);
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
