// Weights in the order in which the kernels read them. Packed once for an ISA.
#pragma once

#include <memory>
#include <vector>

#include "runtime/memory.h"

namespace fmn {

// Some blocks of 16 output channels that a tile computes together: [k][channels of the panel].
struct Panel {
  int block, nb;  // the first, and how many
  bool half;      // the last has 8 channels

  int width() const { return nb * 16 - (half ? 8 : 0); }
};

// A convolution or dense layer: panels of [k][width] with k = (ky, kx, ic), channels beyond oc zero.
// A depthwise convolution: [ceil(oc/16)][kh * kw][16].
struct PackedWeights {
  std::shared_ptr<WeightStore> store;  // keeps the memory alive
  const float* weight = nullptr;
  const float* bias = nullptr;  // [ceil(oc/16) * 16], zeros where the layer has none
  int oc = 0, kh = 0, kw = 0, ic = 0;
  bool depthwise = false;
  std::vector<Panel> panels;
  int panel_blocks = 1;  // of the widest panel

  int blocks() const { return (oc + 15) / 16; }
  bool has_half() const { return !panels.empty() && panels.back().half; }
  const float* panel(const Panel& p) const { return weight + p.block * k() * 16; }
  ptrdiff_t k() const { return depthwise ? ptrdiff_t{kh} * kw : ptrdiff_t{kh} * kw * ic; }
};

// How many blocks the panels of an ISA have; half_panel_blocks = 0: a last block of 8 channels is not treated apart.
struct PanelWidths {
  int panel_blocks, half_panel_blocks;
};

// weight: (oc, kh, kw, ic), contiguous; for depthwise ic is 1. bias: (oc,) or null.
std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, int oc, int kh, int kw, int ic, bool depthwise,
                                                  PanelWidths widths);

// The inverse: weight (oc, kh, kw, ic) and bias (oc,), as they were given to pack_weights.
void unpack_weights(const PackedWeights& packed, float* weight, float* bias);

}  // namespace fmn
