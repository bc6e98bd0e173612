// The large tiles of AVX-512 in two halves of 7 to 14 sums each, which are finished while the other half is multiplied:
// two runs of pixels of one block, or the two blocks of a panel.
//
// A core that runs ahead of its multiply-adds by 160 vectors (the registers of Zen 4) does not see beyond the end of a
// tile of 28 sums: with bias, function and stores behind its loop, such a tile takes 3 to 4 multiply-adds a vector more
// than its sum has: 10.1 for 8 channels, 18 for 16, 98 for 96. In halves it takes 8.1, 16.1 and 96.0.
//
// The sums are those of gemm_tile, bit for bit. Register budget: 28 sums + 1 B + 2 constants + 1 for hard swish = 32;
// A comes with the multiply-adds, from memory (one load each; a broadcast of its own would be a shuffle on Zen 4).
#pragma once

#include "kernels/gemm.h"

namespace fmn::FMN_ISA {
namespace {

enum class Behind { clamp, add_clamp, swish };

// Where the sums of a half go.
struct Place {
  float* c;
  const float* add;  // with Behind::add_clamp
};

struct FinishConstants {
  Vec lo, hi;         // for hard swish, hi is alpha
  const float* beta;  // of hard swish
  FinishConstants(const Act& act, bool swish)
      : lo(set1(act.lo)), hi(set1(swish ? act.alpha : act.hi)), beta(&act.beta) {}
};

template <Behind B>
inline __attribute__((always_inline)) void finish_sum(Vec& sum, int i, const Place& to, const FinishConstants& f) {
  if constexpr (B == Behind::add_clamp) plus_m(sum, to.add + i * BLOCK);
  if constexpr (B == Behind::swish) {
    swish_sum(sum, f.lo, f.hi, f.beta);
    store_now(to.c + i * BLOCK, sum);
  } else {
    store_clamped(to.c + i * BLOCK, sum, f.lo, f.hi);
  }
}

// In step t of STEPS, after the multiply-adds of pixel i of M: the next of the N sums of the other half, of which there
// are two a step at most.
template <Behind B, int STEPS, int M, int N>
inline __attribute__((always_inline)) void finish_between(Vec (&sums)[N], int t, int i, const Place& to,
                                                          const FinishConstants& f) {
  static_assert(N <= 2 * STEPS, "more sums than places");
  const int first = N * t / STEPS, count = N * (t + 1) / STEPS - first;
  if (count > 0 && i == M / (count + 1)) finish_sum<B>(sums[first], first, to, f);
  if (count > 1 && i == M * 2 / 3) finish_sum<B>(sums[first + 1], first + 1, to, f);
}

// KU steps of k.
template <int KU, int NV, int XS, int M>
inline __attribute__((always_inline)) void half_steps(Vec (&acc)[M], const float* a, const float* b) {
#pragma GCC unroll 8
  for (int t = 0; t < KU; ++t) {
    const Vec bv = load(b + t * NV * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) fma_1(acc[i], a + i * XS + t, bv);
  }
}

// Four lines of each of the weights to come for eight steps of a half: one for a step of the tile.
struct Fetched {
  const char *soon, *later;
};
template <int XS>
inline __attribute__((always_inline)) void fetch_weights(Fetched& f) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) prefetch_now(f.soon + i * 64);
  f.soon += 4 * 64;
  if (XS >= BLOCK && f.later != nullptr) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) prefetch_now(f.later + i * 64);
    f.later += 4 * 64;
  }
}

// The M sums of a half, while `old`, the N of the other one, are finished, if there are any. The first segment has 8
// channels at least.
template <Behind B, int NV, int XS, int M, int N>
inline __attribute__((always_inline)) void half_tile(Vec (&acc)[M], const GemmArgs& g, const float* first, int block,
                                                     Vec (&old)[N], const Place& to, const FinishConstants& f,
                                                     Fetched& fetched) {
  const Vec bias = load(g.bias + block * LANES);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) acc[i] = bias;
  const float* b = g.b + block * LANES;
  const Segment *s = g.segs, *const end = s + g.n_segs;
  const float* a = first + s->offset;
  ptrdiff_t k = s->len - 8;
  fetch_weights<XS>(fetched);
  if (to.c != nullptr) {
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) {
      const Vec bv = load(b + t * NV * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        fma_1(acc[i], a + i * XS + t, bv);
        finish_between<B, 8, M>(old, t, i, to, f);
      }
    }
    a += 8;
    b += 8 * NV * LANES;
  } else {
    k += 8;
  }
  for (;;) {
    for (; k >= 8; k -= 8, a += 8, b += 8 * NV * LANES) {
      fetch_weights<XS>(fetched);
      half_steps<8, NV, XS>(acc, a, b);
    }
    for (; k > 0; --k, ++a, b += NV * LANES) half_steps<1, NV, XS>(acc, a, b);
    if (++s == end) return;
    a = first + s->offset;
    k = s->len;
  }
}

template <int MR, int NB, int XS, Behind B>
__attribute__((noinline)) void gemm_overlapped(const GemmArgs& g) {
  constexpr int M0 = NB == 1 ? (MR + 1) / 2 : MR, M1 = NB == 1 ? MR - M0 : MR, SECOND = NB - 1;
  const FinishConstants f(g.act, B == Behind::swish);
  const ptrdiff_t c_apart = NB == 1 ? M0 * BLOCK : g.c_stride, add_apart = NB == 1 ? M0 * BLOCK : g.add_stride;
  Fetched fetched{g.prefetch, g.prefetch_later};
  RowGaps rows{g.row_tiles, g.row_gap};
  const float* a = g.a;
  Place first{g.c, g.add}, second{nullptr, nullptr};
  Vec even[M0], odd[M1];
#pragma GCC unroll 16
  for (int i = 0; i < M1; ++i) odd[i] = zero();
  for (ptrdiff_t tile = 0; tile < g.tiles; ++tile) {
    half_tile<B, NB, XS>(even, g, a, 0, odd, second, f, fetched);
    second = {first.c + c_apart, first.add + add_apart};
    half_tile<B, NB, XS>(odd, g, a + (NB == 1 ? M0 * XS : 0), SECOND, even, first, f, fetched);
    first.c += MR * BLOCK + rows.gap();
    first.add += MR * BLOCK;
    a += MR * XS;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M1; ++i) finish_sum<B>(odd[i], i, second, f);
}

// A tile of 7 to 14 pixels of two blocks or of 14 to 28 of one, whatever the segments and the function.
template <int MR, int NB, int XS>
void gemm_large(const GemmArgs& g) {
  const bool swish = g.act.kind != ActKind::clamp;
  // A window outside of the map has no segments.
  if (g.n_segs > 0 && g.segs->len >= 8 && !(swish && g.add != nullptr)) {
    if (swish) return gemm_overlapped<MR, NB, XS, Behind::swish>(g);
    if (g.add == nullptr) return gemm_overlapped<MR, NB, XS, Behind::clamp>(g);
    if constexpr (XS >= BLOCK) return gemm_overlapped<MR, NB, XS, Behind::add_clamp>(g);
  }
  gemm_tile<MR, NB, XS, false>(g);
}

}  // namespace
}  // namespace fmn::FMN_ISA
