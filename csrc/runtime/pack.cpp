#include "runtime/pack.h"

#include <algorithm>

#include "runtime/kernel_table.h"

namespace fmn {

namespace {

// Full panels first; a half block at the end goes into a panel of the width that the ISA has kernels for.
std::vector<Panel> cut_panels(int oc, PanelWidths widths) {
  const int blocks = (oc + BLOCK - 1) / BLOCK, rest = oc % BLOCK;
  const int last = widths.half_panel_blocks;
  const bool half = rest > 0 && rest <= BLOCK / 2 && last > 0 && blocks >= last;
  const int full = half ? blocks - last : blocks;
  std::vector<Panel> panels;
  for (int block = 0; block < full; block += widths.panel_blocks) {
    panels.push_back({block, std::min(widths.panel_blocks, full - block), false});
  }
  if (half) panels.push_back({full, last, true});
  return panels;
}

// Calls f(row, k, at, lanes) for every k of every block: row is the first of `lanes` output channels, at the place of
// their weights in the packed memory.
template <class F>
void for_lanes(const PackedWeights& p, F f) {
  const ptrdiff_t k = p.k();
  for (const Panel& panel : p.panels) {
    for (int block = panel.block; block < panel.block + panel.nb; ++block) {
      const ptrdiff_t start = ptrdiff_t{panel.block} * k * BLOCK + ptrdiff_t{block - panel.block} * BLOCK;
      const ptrdiff_t lanes = std::min(p.oc - block * BLOCK, BLOCK);
      for (ptrdiff_t i = 0; i < k; ++i) f(ptrdiff_t{block} * BLOCK, i, start + i * panel.width(), lanes);
    }
  }
}

}  // namespace

std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, int oc, int kh, int kw, int ic, bool depthwise,
                                                  PanelWidths widths) {
  auto packed = std::make_shared<PackedWeights>();
  packed->store = store;
  packed->oc = oc;
  packed->kh = kh;
  packed->kw = kw;
  packed->ic = ic;
  packed->depthwise = depthwise;
  if (depthwise) widths = {1, 0};
  packed->panel_blocks = widths.panel_blocks;
  packed->panels = cut_panels(oc, widths);
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
