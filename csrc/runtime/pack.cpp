#include "runtime/pack.h"

#include <algorithm>

#include "runtime/kernel_table.h"

namespace fmn {

namespace {

// Calls f(row, k, at, lanes) for every k of every block: row is the first of `lanes` output channels, at the place of
// their weights in the packed memory.
template <class F>
void for_lanes(const PackedWeights& p, F f) {
  const ptrdiff_t k = p.k(), blocks = p.blocks();
  for (ptrdiff_t block = 0; block < blocks; ++block) {
    const ptrdiff_t panel = block / p.panel_blocks * p.panel_blocks;  // its first block
    const ptrdiff_t width = std::min<ptrdiff_t>(p.panel_blocks, blocks - panel) * BLOCK;
    const ptrdiff_t start = panel * k * BLOCK + (block - panel) * BLOCK;
    const ptrdiff_t lanes = std::min<ptrdiff_t>(p.oc - block * BLOCK, BLOCK);
    for (ptrdiff_t i = 0; i < k; ++i) f(block * BLOCK, i, start + i * width, lanes);
  }
}

}  // namespace

std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, int oc, int kh, int kw, int ic, bool depthwise,
                                                  int panel_blocks) {
  auto packed = std::make_shared<PackedWeights>();
  packed->store = store;
  packed->oc = oc;
  packed->kh = kh;
  packed->kw = kw;
  packed->ic = ic;
  packed->depthwise = depthwise;
  packed->panel_blocks = depthwise ? 1 : panel_blocks;
  const ptrdiff_t k = packed->k(), blocks = packed->blocks();
  float* w = store->allocate(static_cast<size_t>(blocks * k * BLOCK));  // zeroed
  float* b = store->allocate(static_cast<size_t>(blocks * BLOCK));
  for_lanes(*packed, [&](ptrdiff_t row, ptrdiff_t i, ptrdiff_t at, ptrdiff_t lanes) {
    for (ptrdiff_t lane = 0; lane < lanes; ++lane) w[at + lane] = weight[(row + lane) * k + i];
  });
  if (bias != nullptr) std::copy(bias, bias + oc, b);
  packed->weight = w;
  packed->bias = b;
  return packed;
}

void unpack_weights(const PackedWeights& packed, float* weight, float* bias) {
  const ptrdiff_t k = packed.k();
  for_lanes(packed, [&](ptrdiff_t row, ptrdiff_t i, ptrdiff_t at, ptrdiff_t lanes) {
    for (ptrdiff_t lane = 0; lane < lanes; ++lane) weight[(row + lane) * k + i] = packed.weight[at + lane];
  });
  std::copy(packed.bias, packed.bias + packed.oc, bias);
}

}  // namespace fmn
