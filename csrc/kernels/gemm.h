// Start reading here: the tile that all convolutions but the depthwise ones are made of.
//
//   c[i][o] = act(bias[o] + sum_k a[i][k] * b[k][o] + add[i][o])     i < MR pixels, o < 16 NB channels
//
// A is read where it lies: pixel i is i * XS floats after the first (16 in the blocked layout, 16 * stride for
// a strided convolution, channels * stride in an image), and k runs through segments (Segment in
// kernel_table.h). XS is a template parameter because a run-time stride makes GCC keep 14 row pointers and
// spill them (0.6 to 0.9 of the speed); XS = 0 is the slow way for rare strides.
//
// B is packed once, in panels [k][NB * 16]:   C, the accumulators (AVX-512, NB = 2):
//
//   k0: o0 .. o15 o16 .. o31                  pixel 0:     acc[0][0]  acc[0][1]
//   k1: o0 .. o15 o16 .. o31                    ...
//   ...                                       pixel MR-1:  acc[MR-1][0] ..[1]
//
// One stream, not one a block: two streams that are a multiple of 4 KB apart ran at 0.89 of the peak instead of
// 0.92 (14x14, k = 512, Zen 5).
//
// Register budget: AVX-512 14x32: 28 accumulators + 2 B + 1 A = 31 of 32; 28x16: 28 + 1 + 1. AVX2 6x16: 12 + 2 + 1 = 15
// of 16. NEON 6x16: 24 + 6 A (four k each) + 2 B = 32 of 32. Each output sums over k in order in one accumulator that
// starts from the bias: the same bits whatever the tile, the thread count or the batch. Tails: any MR and any segment
// length; channels of the last block beyond oc have zero weights.
#pragma once

#include "kernels/activation.h"

namespace fmn::FMN_ISA {
namespace {

constexpr int VECS = BLOCK / LANES;  // vectors in a block

// What lies between the last tile of a row and the first of the next, asked behind every tile.
struct RowGaps {
  ptrdiff_t tiles, floats, done = 0;
  RowGaps(ptrdiff_t row_tiles, ptrdiff_t row_gap) : tiles(row_tiles), floats(row_gap) {}
  ptrdiff_t gap() {
    if (++done != tiles) return 0;
    done = 0;
    return floats;
  }
};

// KU steps of k where a fragment of A holds four of them. The next vector of B is loaded before the present one is
// used, and a fragment right after the last use of the one before: cores that issue in order do not wait for loads.
template <int KU, int MR, int NV>
inline __attribute__((always_inline)) void gemm_fragments(Vec (&acc)[MR][NV], const float* a, ptrdiff_t xs,
                                                          const float* b) {
  Frag frag[MR];
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) frag[i] = load_a(a + i * xs);
  Vec bv = load(b);
#pragma GCC unroll 64
  for (int t = 0; t < KU * NV; ++t) {
    const int k = t / NV, j = t % NV;
    const Vec next = t + 1 < KU * NV ? load(b + (t + 1) * LANES) : bv;
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      switch (k % 4) {
        case 0: fma_a<0>(acc[i][j], frag[i], bv); break;
        case 1: fma_a<1>(acc[i][j], frag[i], bv); break;
        case 2: fma_a<2>(acc[i][j], frag[i], bv); break;
        default: fma_a<3>(acc[i][j], frag[i], bv);
      }
      if (k % 4 == 3 && j == NV - 1 && k + 1 < KU) frag[i] = load_a(a + i * xs + k + 1);
    }
    bv = next;
  }
}

// KU steps of k. All loops have constant bounds and are unrolled, so that acc stays in registers.
// STEP: how many k one fragment of A holds (1 where A is broadcast from memory).
template <int KU, int STEP, int MR, int NV>
inline __attribute__((always_inline)) void gemm_steps(Vec (&acc)[MR][NV], const float* a, ptrdiff_t xs,
                                                      const float* b) {
  if constexpr (STEP == 1) {
#pragma GCC unroll 16
    for (int k = 0; k < KU; ++k) {
      Vec bv[NV];
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) bv[j] = load(b + (k * NV + j) * LANES);
#pragma GCC unroll 32
      for (int i = 0; i < MR; ++i) {
        if constexpr (NV == 1 && KU > 1) {  // a loop of one step would keep a pointer for every pixel
          fma_1(acc[i][0], a + i * xs + k, bv[0]);
        } else {
          const Frag frag = load_a1(a + i * xs + k);
#pragma GCC unroll 16
          for (int j = 0; j < NV; ++j) fma_a<0>(acc[i][j], frag, bv[j]);
        }
      }
    }
  } else {
    static_assert(STEP == 4, "a fragment holds one k or four");
    gemm_fragments<KU>(acc, a, xs, b);
  }
}

// HALF: only the first 8 channels of the last block exist, and the other vectors of it are left out.
template <int MR, int NB, int XS, bool HALF>
__attribute__((noinline)) void gemm_tile(const GemmArgs& g) {
  static_assert(!HALF || VECS > 1, "a vector is a block: see gemm_pairs");
  constexpr int NV = NB * VECS - (HALF ? VECS / 2 : 0);
  const ptrdiff_t xs = XS ? XS : g.xs;
  const Segment* const end = g.segs + g.n_segs;
  const char *soon = g.prefetch, *later = g.prefetch_later;
  RowGaps rows{g.row_tiles, g.row_gap};
  float* next = g.c;
  for (ptrdiff_t tile = 0; tile < g.tiles; ++tile) {
    Vec acc[MR][NV];
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) acc[i][j] = load(g.bias + j * LANES);
    }
    const float* const first = g.a + tile * MR * xs;
    const float* b = g.b;
    for (const Segment* s = g.segs; s != end; ++s) {
      const float* a = first + s->offset;
      ptrdiff_t k = s->len;
      for (; k >= 8; k -= 8, a += 8, b += 8 * NV * LANES) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) prefetch(soon + i * 64);
        soon += 8 * 64;
        if (XS >= BLOCK && later != nullptr) {  // not in images, whose tiles are short of registers
#pragma GCC unroll 8
          for (int i = 0; i < 8; ++i) prefetch(later + i * 64);
          later += 8 * 64;
        }
        gemm_steps<8, K_FRAG>(acc, a, xs, b);
      }
      for (; k > 0; --k, ++a, b += NV * LANES) gemm_steps<1, 1>(acc, a, xs, b);
    }
    const ptrdiff_t at = tile * MR * BLOCK;
    if (g.add != nullptr) {
#pragma GCC unroll 32
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < NV; ++j) {
          const float* add = g.add + at + i * BLOCK + (j / VECS) * g.add_stride + (j % VECS) * LANES;
          acc[i][j] = plus(acc[i][j], load(add));
        }
      }
    }
    float* const c = next;
    next += MR * BLOCK + rows.gap();
    // The constants not before: the loop above needs all registers.
    if (XS != 0 && SWISH_OF_SUMS && g.act.kind != ActKind::clamp) {
      const Vec lo = set1(g.act.lo), alpha = set1(g.act.alpha);
#pragma GCC unroll 32
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < NV; ++j) {
          swish_sum(acc[i][j], lo, alpha, &g.act.beta);
          store(c + i * BLOCK + (j / VECS) * g.c_stride + (j % VECS) * LANES, acc[i][j]);
        }
      }
      continue;
    }
    const Vec lo = set1(g.act.lo), hi = set1(g.act.hi);
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) {
        store(c + i * BLOCK + (j / VECS) * g.c_stride + (j % VECS) * LANES, clamp(acc[i][j], lo, hi));
      }
    }
    if (g.act.kind != ActKind::clamp) swish_tile<MR, NB>(c, g.c_stride, g.act);
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
