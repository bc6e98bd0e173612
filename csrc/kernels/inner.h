// The tile of gemm.h with five eighths of the pairs of channels multiplied by Winograd's rule of 1968,
//
//   a0 b0 + a1 b1 = (a0 + b1) (a1 + b0) - a0 a1 - b0 b1
//
// for cores whose adders are apart from their multipliers: a pair takes one multiply-add and two additions instead of
// two multiply-adds. What is subtracted depends on the pixel alone (inner_pixels) or on the output channel alone
// (InnerArgs::init, with the bias), and is what the sum begins with:
//
//   c[i][o] = act((pixels[i] + init[o] + sum) * scale[o] + add[i][o])
//
// where b, and so init, is the layer's weights divided by scale, so that a and b are of like size: the rounding errors
// are those of a0 a1 and b0 b1 too. Behind most functions the mean of a is not zero, and what is subtracted for a pixel
// would grow with the number of pairs; so every other pair of a block is
//
//   a0 b0 + a1 b1 = a0 a1 + b0 b1 - (a0 - b1) (a1 - b0)
//
// for which the weights are stored negative.
//
// Of a block of 16 channels five pairs are added and six channels multiplied as ever: 5 + 6 multiply-adds and 10
// additions, which Zen 4 does in 11 cycles (AVX-512; a vector of 96 channels takes 67 instead of 96). Each takes A from
// memory: a broadcast of its own would be a shuffle, in the way of either. A last block that is not whole has a pair
// for every three channels too. Where the last output channels fill no more than half a block, they are a panel of
// their own with vectors of 8 floats, of which Zen 4 does two operations in the time of one.
//
// Register budget of 10x32: 20 accumulators + 4 B of a pair + 2 B of a channel + 2 sums = 28 of 32. Each output is
// computed in the same order whatever the tile. (In halves, as in overlapped.h, short sums of weights that lie in the
// first-level cache take 0.9 of the time, whole networks 1.02.)
#pragma once

#include "kernels/activation.h"
#include "kernels/gemm.h"
#include "kernels/overlapped.h"

namespace fmn::FMN_ISA {
namespace {

// The vectors of whole blocks, and of a last block of 8 channels.
template <bool HALF>
struct InnerVec {
  using V = Vec;
};
template <>
struct InnerVec<true> {
  using V = HalfVec;
};

// Channel k of each pixel, times its weights.
template <class V, int MR, int NV>
inline __attribute__((always_inline)) void inner_single(V (&acc)[MR][NV], const float* a, const float* b, int k) {
  V bs[NV];
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) load_to(bs[j], b + (k * NV + j) * lanes_of(bs[j]));
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) fma_1(acc[i][j], a + i * BLOCK + k, bs[j]);
  }
}

// Channels k and k + 1 as a pair, and channel `single` beside them. SIGN: of the pair's product.
template <int SIGN, class V, int MR, int NV>
inline __attribute__((always_inline)) void inner_pair(V (&acc)[MR][NV], const float* a, const float* b, int k,
                                                      int single) {
  V b0[NV], b1[NV], bs[NV];
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) {
    load_to(b0[j], b + (k * NV + j) * lanes_of(b0[j]));
    load_to(b1[j], b + ((k + 1) * NV + j) * lanes_of(b1[j]));
  }
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) load_to(bs[j], b + (single * NV + j) * lanes_of(bs[j]));
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const V s0 = plus_1(a + i * BLOCK + k, b1[j]), s1 = plus_1(a + i * BLOCK + k + 1, b0[j]);
      fma_1(acc[i][j], a + i * BLOCK + single, bs[j]);
      if constexpr (SIGN > 0) {
        fma_a<0>(acc[i][j], s0, s1);
      } else {
        fnma_a(acc[i][j], s0, s1);
      }
    }
  }
}

// HALF: NB is 1, and only the first 8 channels of the block exist.
template <int MR, int NB, bool HALF>
void gemm_inner(const InnerArgs& g) {
  using V = typename InnerVec<HALF>::V;
  constexpr int L = sizeof(V) / sizeof(float), VB = HALF ? 1 : BLOCK / L, NV = NB * VB;
  constexpr int PAIRS = inner_pairs(BLOCK), SINGLE = BLOCK - 2 * PAIRS;
  const Segment* const end = g.segs + g.n_segs;
  CacheLines soon = g.soon[0];
  const char* later = g.prefetch_later;
  RowGaps rows{g.row_tiles, g.row_gap};
  float* next = g.c;
  for (ptrdiff_t tile = 0; tile < g.tiles; ++tile) {
    V acc[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        V init;
        load_to(init, g.init + j * L);
        acc[i][j] = plus_1(g.pixels + tile * MR + i, init);
      }
    }
    const float* const first = g.a + tile * MR * BLOCK;
    const float* b = g.b;
    for (const Segment* s = g.segs;;) {
      for (; s != end && s->len == BLOCK; ++s, b += BLOCK * NV * L) {
        const float* const a = first + s->offset;
        if (soon.at != nullptr) {
#pragma GCC unroll 16
          for (int i = 0; i < BLOCK; ++i) prefetch(soon.at + i * 64);
          soon.at += BLOCK * 64;
        }
        if (later != nullptr) {
#pragma GCC unroll 16
          for (int i = 0; i < BLOCK; ++i) prefetch(later + i * 64);
          later += BLOCK * 64;
        }
        // The channels that are multiplied are shared out between the pairs.
#pragma GCC unroll 8
        for (int p = 0; p < PAIRS; ++p) {
          const int begin = 2 * PAIRS + SINGLE * p / PAIRS, end = 2 * PAIRS + SINGLE * (p + 1) / PAIRS;
          if (p % 2 == 0) {
            inner_pair<1>(acc, a, b, 2 * p, begin);
          } else {
            inner_pair<-1>(acc, a, b, 2 * p, begin);
          }
#pragma GCC unroll 4
          for (int k = begin + 1; k < end; ++k) inner_single(acc, a, b, k);
        }
      }
      if (s == end) break;
      const float* const a = first + s->offset;
      const int k = static_cast<int>(s->len), pairs = inner_pairs(k);
      if (soon.at != nullptr) {
        for (int i = 0; i < k; ++i) prefetch(soon.at + i * 64);
        soon.at += k * 64;
      }
      for (int p = 0; p < pairs; p += 2) {
        inner_pair<1>(acc, a, b, 2 * p, 2 * pairs + p);
        if (p + 1 < pairs) inner_pair<-1>(acc, a, b, 2 * p + 2, 2 * pairs + p + 1);
      }
      for (int i = 3 * pairs; i < k; ++i) inner_single(acc, a, b, i);
      b += s->len * NV * L;
      ++s;
    }
    if (soon.at != nullptr && soon.at >= soon.end) {
      soon = soon.end == g.soon[0].end ? g.soon[1] : CacheLines{nullptr, nullptr};
    }
    const ptrdiff_t at = tile * MR * BLOCK;
    float* const c = next;
    next += MR * BLOCK + rows.gap();
    const bool swish = SWISH_OF_SUMS && g.act.kind != ActKind::clamp;
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const ptrdiff_t of_vector = (j % VB) * L;
      V scale;
      load_to(scale, g.scale + j * L);
      if (g.add != nullptr) {
        const float* const add = g.add + at + (j / VB) * g.add_stride + of_vector;
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          V other;
          load_to(other, add + i * BLOCK);
          acc[i][j] = fma(acc[i][j], scale, other);  // the product is exact
        }
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) acc[i][j] = times(acc[i][j], scale);
      }
      float* const to = c + (j / VB) * g.c_stride + of_vector;
      if (swish) {
        V lo, alpha;
        set_to(lo, g.act.lo);
        set_to(alpha, g.act.alpha);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          swish_sum(acc[i][j], lo, alpha, &g.act.beta);
          store(to + i * BLOCK, acc[i][j]);
        }
      } else {
        V lo, hi;
        set_to(lo, g.act.lo);
        set_to(hi, g.act.hi);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) store(to + i * BLOCK, clamp(acc[i][j], lo, hi));
      }
    }
  }
}

// Of N pixels from `first` on. Their sums are independent of each other, so that none waits for its last one.
template <int N, bool SCALED>
inline __attribute__((always_inline)) void sums_of_pixels(const InnerPixelsArgs& g, ptrdiff_t first) {
  const float* const a = g.a + first * BLOCK;
  const float* scale = g.scale;
  Vec sum[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) sum[i] = zero();
  for (const Segment* s = g.segs; s != g.segs + g.n_segs; ++s) {
    Vec v[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) v[i] = load(a + s->offset + i * BLOCK);
    if constexpr (SCALED) {
      const Vec factors = load(scale);
      scale += BLOCK;
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        v[i] = times(v[i], factors);
        store(g.scaled + s->offset + (first + i) * BLOCK, v[i]);
      }
    }
    if (s->len == BLOCK) {
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) sum[i] = minus_pairs<inner_pairs(BLOCK)>(sum[i], v[i]);
    } else {
      const int pairs = inner_pairs(static_cast<int>(s->len));
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) sum[i] = minus_pairs(sum[i], v[i], pairs);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) g.dst[first + i] = sum_of_lanes(sum[i]);
}

template <bool SCALED>
void sums_of_all(const InnerPixelsArgs& g) {
  ptrdiff_t i = 0;
  for (; i + 4 <= g.pixels; i += 4) sums_of_pixels<4, SCALED>(g, i);
  for (; i < g.pixels; ++i) sums_of_pixels<1, SCALED>(g, i);
}

// dst[i] = -sum a0 a1 over the pairs of gemm_inner, those of the other sign added.
void inner_pixels(const InnerPixelsArgs& g) {
  if (g.scale != nullptr) {
    sums_of_all<true>(g);
  } else {
    sums_of_all<false>(g);
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
