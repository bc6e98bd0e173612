// Convolutions on the tile unit of AMX (kernels/amx.h): what is made of the weights, once.
#pragma once

#include <memory>
#include <vector>

#include "runtime/kernel_table.h"
#include "runtime/pack.h"

namespace fmn {

struct AmxWeights {
  const PackedWeights* plain = nullptr;  // of which they are made; its floats are given up
  std::shared_ptr<WeightStore> store;    // keeps the memory alive
  int taps = 0, ic = 0;
  const float* weight = nullptr;  // panels as in AmxArgs::b
  std::vector<Panel> panels;      // of 2 blocks, the last maybe of 1
  std::vector<int> pieces;        // input channels that lie together, within a block

  ptrdiff_t n_pieces() const { return static_cast<ptrdiff_t>(pieces.size()); }
  ptrdiff_t steps() const { return taps * ((n_pieces() + 1) / 2); }
  ptrdiff_t panel_floats(const Panel& p) const {
    return steps() * AMX_PARTS * p.nb * (AMX_TILE / ptrdiff_t{sizeof(float)});
  }
};

// Of a dense convolution of one group. `pieces`: as in InnerWeights; none: blocks. Throws std::invalid_argument
// for other layers and for pieces that are not those of its input.
std::shared_ptr<const AmxWeights> amx_weights(const std::shared_ptr<const PackedWeights>& plain,
                                              const std::vector<int>& pieces);

}  // namespace fmn
