// A dense layer of one pixel: dst[o] = act(bias[o] + sum_k x[k] * b[k][o] + add[o]).
#pragma once

#include "kernels/activation.h"
#include "kernels/gemm.h"

namespace fmn::FMN_ISA {
namespace {

// Bound by the stream of weights, so it keeps several panels in flight.
// Even and odd k have accumulators of their own (a single chain would wait for the latency of the FMA). What comes
// FETCH floats later is fetched into the first-level cache: 125 GB/s from the third level instead of 105 (Zen 5), but
// on Zen 4 45 from memory instead of 53.
constexpr ptrdiff_t FETCH = 16 * 16;

template <int NB, int PANELS>
void gemv_panels(const GemvArgs& g, ptrdiff_t block) {
  constexpr int NV = NB * VECS;  // vectors of a panel
  const ptrdiff_t stride = g.k * NB * BLOCK;
  const float* b = g.b + block * g.k * BLOCK;
  Vec even[PANELS * NV], odd[PANELS * NV];
#pragma GCC unroll 16
  for (int j = 0; j < PANELS * NV; ++j) {
    even[j] = load(g.bias + block * BLOCK + j * LANES);
    odd[j] = zero();
  }
  ptrdiff_t k = 0;
  for (; k + 2 <= g.k; k += 2, b += 2 * NB * BLOCK) {
    const Vec x0 = set1(g.x[k]), x1 = set1(g.x[k + 1]);
    if (g.fetch_ahead) {
#pragma GCC unroll 8
      for (int j = 0; j < PANELS * 2 * NB; ++j) fetch(b + (j / (2 * NB)) * stride + (j % (2 * NB)) * 16 + FETCH);
    }
#pragma GCC unroll 16
    for (int j = 0; j < PANELS * NV; ++j) {
      const float* bj = b + (j / NV) * stride + (j % NV) * LANES;
      even[j] = fma(x0, load(bj), even[j]);
      odd[j] = fma(x1, load(bj + NB * BLOCK), odd[j]);
    }
  }
  if (k < g.k) {
    const Vec x0 = set1(g.x[k]);
#pragma GCC unroll 16
    for (int j = 0; j < PANELS * NV; ++j) even[j] = fma(x0, load(b + (j / NV) * stride + (j % NV) * LANES), even[j]);
  }
#pragma GCC unroll 16
  for (int j = 0; j < PANELS * NV; ++j) {
    const ptrdiff_t at = block * BLOCK + j * LANES;
    Vec sum = plus(even[j], odd[j]);
    if (g.add != nullptr) sum = plus(sum, load(g.add + at));
    store(g.dst + at, activate(sum, g.act));
  }
}

// Panels are PANEL_BLOCKS blocks wide, the last of a layer maybe less.
void gemv(const GemvArgs& g) {
  static_assert(PANEL_BLOCKS <= 2, "the last panel of a layer must be a single block or whole");
  ptrdiff_t block = 0;
  for (; block + 2 * PANEL_BLOCKS <= g.n_blocks; block += 2 * PANEL_BLOCKS) gemv_panels<PANEL_BLOCKS, 2>(g, block);
  for (; block + PANEL_BLOCKS <= g.n_blocks; block += PANEL_BLOCKS) gemv_panels<PANEL_BLOCKS, 1>(g, block);
  if (block < g.n_blocks) gemv_panels<1, 1>(g, block);
}

}  // namespace
}  // namespace fmn::FMN_ISA
