// Weights in the order in which the kernels read them. Packed once, for every ISA alike.
#pragma once

#include <memory>

#include "runtime/memory.h"

namespace fmn {

// A convolution or dense layer: weights [ceil(oc/16)][k][16] with k = (ky, kx, ic), channels beyond oc zero.
// A depthwise convolution: weights [ceil(oc/16)][kh * kw][16].
struct PackedWeights {
  std::shared_ptr<WeightStore> store;  // keeps the memory alive
  const float* weight = nullptr;
  const float* bias = nullptr;  // [ceil(oc/16) * 16], zeros where the layer has none
  int oc = 0, kh = 0, kw = 0, ic = 0;
  bool depthwise = false;

  int blocks() const { return (oc + 15) / 16; }
  ptrdiff_t k() const { return depthwise ? ptrdiff_t{kh} * kw : ptrdiff_t{kh} * kw * ic; }
};

// weight: (oc, kh, kw, ic), contiguous; for depthwise ic is 1. bias: (oc,) or null.
std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, int oc, int kh, int kw, int ic, bool depthwise);

}  // namespace fmn
