// Weights in the order in which the kernels read them. Packed once for an ISA.
#pragma once

#include <memory>
#include <vector>

#include "runtime/floats.h"
#include "runtime/weights24.h"

namespace fmn {

// Some blocks of 16 output channels that a tile computes together: [k][channels of the panel].
struct Panel {
  int block, nb;         // the first, and how many
  bool half;             // the last has 8 channels
  int ic_begin, ic_end;  // the input channels that it reads: those of the groups its channels belong to
  ptrdiff_t offset;      // floats from the start of the layer's weights

  int width() const { return nb * 16 - (half ? 8 : 0); }
};

// A convolution or dense layer: panels of [k][width] with k = (ky, kx, ic), channels beyond oc zero. Where a panel has
// channels of several groups, it reads the input of them all, with zeros for those of the other groups.
// A depthwise convolution: [ceil(oc/16)][kh * kw][16].
struct PackedWeights {
  std::shared_ptr<WeightStore> store;              // keeps the memory alive
  mutable Floats floats;                           // [size()], the panels
  const float* bias = nullptr;                     // [ceil(oc/16) * 16], zeros where the layer has none
  int oc = 0, kh = 0, kw = 0, ic = 0, groups = 1;  // ic of all groups
  bool depthwise = false;
  std::vector<Panel> panels;
  int panel_blocks = 1;                         // of the widest panel
  std::shared_ptr<const Weights24> in_24_bits;  // of a dense layer: who has use for them needs no floats

  int blocks() const { return (oc + 15) / 16; }
  int whole_panels() const {  // as wide as the widest may be; they come first
    int n = 0;
    for (const Panel& p : panels) n += p.nb == panel_blocks && !p.half ? 1 : 0;
    return n;
  }
  bool has_half() const { return !panels.empty() && panels.back().half; }
  ptrdiff_t k(const Panel& p) const { return ptrdiff_t{kh} * kw * (p.ic_end - p.ic_begin); }
  ptrdiff_t size() const {
    return panels.empty() ? 0 : panels.back().offset + k(panels.back()) * panels.back().nb * 16;
  }
};

// How many blocks the panels of an ISA have; half_panel_blocks = 0: a last block of 8 channels is not treated apart.
struct PanelWidths {
  int panel_blocks, half_panel_blocks;
};

struct WeightShape {
  int oc, kh, kw, ic, groups;
};
struct PackOptions {
  // Only vectors are multiplied, so 24 bits do where that is as good (weights24.h) and the layer is so large that it
  // pays.
  bool by_vectors = false;
  // The floats may be given up later.
  bool separate = false;
};
// weight: (oc, kh, kw, ic / groups), contiguous; for depthwise ic = groups = 1. bias: (oc,) or null.
std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, const WeightShape& shape, bool depthwise,
                                                  PanelWidths widths, PackOptions options = {});

// Input channels that lie together, within a block: `given`, or blocks if that is empty. Throws std::invalid_argument
// if they are not those of the layer.
std::vector<int> pieces_of(const PackedWeights& w, const std::vector<int>& given);

// Of the weights of every output channel, and of every input channel (of a depthwise convolution and of groups: of each
// channel of a group): the square root of the sum of their squares. The bias is not among them.
struct WeightNorms {
  std::vector<double> out, in;
};
WeightNorms weight_norms(const PackedWeights& packed);

// The inverse: weight and bias as they were given to pack_weights, bit for bit.
void unpack_weights(const PackedWeights& packed, float* weight, float* bias);

}  // namespace fmn
