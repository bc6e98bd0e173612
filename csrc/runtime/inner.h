// 1x1 convolutions by Winograd's inner product (kernels/inner.h): what is made of the weights, once.
#pragma once

#include <memory>
#include <vector>

#include "runtime/kernel_table.h"
#include "runtime/pack.h"

namespace fmn {

struct InnerWeights {
  std::shared_ptr<const PackedWeights> plain;
  const float* weight = nullptr;  // panels of [k][width]: the layer's weights / scale, some negated
  const float* init = nullptr;    // [blocks * 16]: what a pixel of zeros begins with, the bias / scale in it
  const float* scale = nullptr;   // [blocks * 16], powers of two
  std::vector<Panel> panels;      // of 2 blocks, 1 or the half of one
  std::vector<int> pieces;        // input channels that lie together, within a block: pairs are made of those
};

// Of a 1x1 convolution that is not grouped. `size`: how large its input is typically; the weights of every output
// channel are scaled to that, by a power of two. `pieces`: InnerWeights::pieces; none: blocks. Throws
// std::invalid_argument for other layers and for pieces that are not those of its input.
std::shared_ptr<const InnerWeights> inner_weights(const std::shared_ptr<const PackedWeights>& plain, double size,
                                                  const std::vector<int>& pieces = {});

// How much larger the rounding errors are than those of the plain sum, for inputs whose channels have these mean
// squares [ic] and which are independent of each other: of every output channel, the root mean square of all that is
// added over that of the result; of those ratios the root mean square. 1 for a plain sum, 1.5 where all values are of
// like size.
double inner_noise(const PackedWeights& plain, double size, const float* squares, const std::vector<int>& pieces = {});

}  // namespace fmn
