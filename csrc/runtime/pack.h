// Weights in the order in which the kernels read them. Packed once for an ISA.
#pragma once

#include <memory>

#include "runtime/memory.h"

namespace fmn {

// A convolution or dense layer: panels [k][panel_blocks * 16] with k = (ky, kx, ic), channels beyond oc zero; an
// odd block at the end is a panel of its own. A depthwise convolution: [ceil(oc/16)][kh * kw][16].
struct PackedWeights {
  std::shared_ptr<WeightStore> store;  // keeps the memory alive
  const float* weight = nullptr;
  const float* bias = nullptr;  // [ceil(oc/16) * 16], zeros where the layer has none
  int oc = 0, kh = 0, kw = 0, ic = 0;
  bool depthwise = false;
  int panel_blocks = 1;

  int blocks() const { return (oc + 15) / 16; }
  ptrdiff_t k() const { return depthwise ? ptrdiff_t{kh} * kw : ptrdiff_t{kh} * kw * ic; }
};

// weight: (oc, kh, kw, ic), contiguous; for depthwise ic is 1. bias: (oc,) or null.
std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, int oc, int kh, int kw, int ic, bool depthwise,
                                                  int panel_blocks);

// The inverse: weight (oc, kh, kw, ic) and bias (oc,), as they were given to pack_weights.
void unpack_weights(const PackedWeights& packed, float* weight, float* bias);

}  // namespace fmn
