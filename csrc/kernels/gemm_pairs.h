// The tile of gemm.h for two blocks of which the second has 8 channels, where a vector is a block (24 channels of
// AVX-512): the second block of two pixels shares a vector, so that no lane is wasted.
//
//   acc[i]:  pixel i, o0 .. o15            half[p]: pixel 2p, o16 .. o23 | pixel 2p + 1, o16 .. o23
//
// B is [k][24]. Register budget of 14x24: 14 + 7 accumulators + 2 B + 2 A + 1 = 26 of 32. A step of k takes 21
// multiply- adds where 14x32 takes 28. The sums are those of gemm_tile, bit for bit.
#pragma once

#include "kernels/gemm.h"

namespace fmn::FMN_ISA {
namespace {

template <int KU, int MR>
inline __attribute__((always_inline)) void pair_steps(Vec (&acc)[MR], Vec (&half)[(MR + 1) / 2], const float* a,
                                                      ptrdiff_t xs, const float* b) {
#pragma GCC unroll 16
  for (int k = 0; k < KU; ++k) {
    const Vec full = load(b + k * 24), twice = load_twice(b + k * 24 + 16);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i += 2) {
      const Frag lo = load_a1(a + i * xs + k);
      fma_a<0>(acc[i], lo, full);
      if (i + 1 < MR) {
        const Frag hi = load_a1(a + (i + 1) * xs + k);
        fma_a<0>(acc[i + 1], hi, full);
        fma_a<0>(half[i / 2], halves(lo, hi), twice);
      } else {
        fma_a<0>(half[i / 2], lo, twice);
      }
    }
  }
}

template <int MR, int XS>
void gemm_pairs(const GemmArgs& g) {
  const ptrdiff_t xs = XS ? XS : g.xs;
  const Segment* const end = g.segs + g.n_segs;
  const char *soon = g.prefetch, *later = g.prefetch_later;
  for (ptrdiff_t tile = 0; tile < g.tiles; ++tile) {
    Vec acc[MR], half[(MR + 1) / 2];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      acc[i] = load(g.bias);
      if (i % 2 == 0) half[i / 2] = load_twice(g.bias + BLOCK);
    }
    const float* const first = g.a + tile * MR * xs;
    const float* b = g.b;
    for (const Segment* s = g.segs; s != end; ++s) {
      const float* a = first + s->offset;
      ptrdiff_t k = s->len;
      for (; k >= 8; k -= 8, a += 8, b += 8 * 24) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) prefetch(soon + i * 64);
        soon += 8 * 64;
        if (XS != 0 && later != nullptr) {
#pragma GCC unroll 8
          for (int i = 0; i < 8; ++i) prefetch(later + i * 64);
          later += 8 * 64;
        }
        pair_steps<8>(acc, half, a, xs, b);
      }
      for (; k > 0; --k, ++a, b += 24) pair_steps<1>(acc, half, a, xs, b);
    }
    if (g.add != nullptr) {
      const float* const add = g.add + tile * MR * BLOCK;
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        acc[i] = plus(acc[i], load(add + i * BLOCK));
        if (i % 2 == 0) {
          const float* second = add + g.add_stride;
          const int other = i + 1 < MR ? i + 1 : i;
          half[i / 2] = plus(half[i / 2], load_halves(second + i * BLOCK, second + other * BLOCK));
        }
      }
    }
    float* const c = g.c + tile * MR * BLOCK;
    const Vec lo = set1(g.act.lo), hi = set1(g.act.hi);
    if (XS != 0 && g.act.kind != ActKind::clamp) {
      const Vec alpha = set1(g.act.alpha);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        swish_sum(acc[i], lo, alpha, &g.act.beta);
        if (i % 2 == 0) swish_sum(half[i / 2], lo, alpha, &g.act.beta);
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        acc[i] = clamp(acc[i], lo, hi);
        if (i % 2 == 0) half[i / 2] = clamp(half[i / 2], lo, hi);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      store(c + i * BLOCK, acc[i]);
      if (i % 2 == 0) {
        float* const second = c + g.c_stride + i * BLOCK;
        store_halves(second, i + 1 < MR ? second + BLOCK : nullptr, half[i / 2]);
      }
    }
    if (XS == 0 && g.act.kind != ActKind::clamp) swish_tile<MR, 2>(c, g.c_stride, g.act);
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
