// Dense 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), and of stride 2 by what follows from it: see
// kernels/winograd.h for the arithmetic.
#pragma once

#include <memory>
#include <string>

#include "runtime/ops.h"

namespace fmn {

// The transformed weights of a layer. Its bias and the cut into panels are those of the plain weights.
struct WinogradWeights {
  int stride = 1;
  std::shared_ptr<const PackedWeights> plain;
  const float* weight = nullptr;  // panels of [elements][ic][width]

  int edge() const { return stride == 1 ? 6 : 9; }  // rows and columns of inputs of a tile, and of its elements
  int elements() const { return edge() * edge(); }
  const float* panel(const Panel& p) const { return weight + p.offset / TAPS * elements(); }
  ptrdiff_t floats() const { return plain->size() / TAPS * elements(); }

 private:
  static constexpr int TAPS = 9;
};

// G g G^T of every pair of channels, computed in double and rounded once; in the store of the plain weights. Throws
// std::invalid_argument unless they are those of a dense 3x3 convolution without groups. stride: 1 or 2.
std::shared_ptr<const WinogradWeights> winograd_weights(const std::shared_ptr<const PackedWeights>& plain, int stride);

// `chunk`: how many tiles are worked on at a time; the result does not depend on it. `add` may be null. The weights of
// the spec are the plain ones.
OpPtr make_winograd(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const Tensor* add,
                    const ConvSpec& spec, const std::shared_ptr<const WinogradWeights>& weights, int chunk);

}  // namespace fmn
