#include "runtime/pack.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "runtime/kernel_table.h"

namespace fmn {

namespace {

// Smaller layers stay in the second-level cache, where floats are faster; and sums of few products are nearer to the
// result than words to weights.
constexpr ptrdiff_t LEAST_IN_24_BITS = 64 * 1024;
constexpr int LEAST_SUM_IN_24_BITS = 128;

// Bytes of weights that are worth pages of their own.
constexpr size_t LEAST_SEPARATE = 64 * 1024;

// Full panels first; a half block at the end goes into a panel of the width that the ISA has kernels for.
std::vector<Panel> cut_panels(const WeightShape& s, PanelWidths widths) {
  const int blocks = (s.oc + BLOCK - 1) / BLOCK, rest = s.oc % BLOCK;
  const int last = widths.half_panel_blocks;
  const bool half = rest > 0 && rest <= BLOCK / 2 && last > 0 && blocks >= last;
  const int full = half ? blocks - last : blocks;
  std::vector<Panel> panels;
  ptrdiff_t offset = 0;
  const auto add = [&](int block, int nb, bool is_half) {
    const int oc_group = s.oc / s.groups, ic_group = s.ic / s.groups;
    const int first = block * BLOCK / oc_group;
    const int end = (std::min((block + nb) * BLOCK, s.oc) - 1) / oc_group + 1;
    panels.push_back({block, nb, is_half, first * ic_group, end * ic_group, offset});
    offset += ptrdiff_t{s.kh} * s.kw * (end - first) * ic_group * nb * BLOCK;
  };
  for (int block = 0; block < full; block += widths.panel_blocks) {
    add(block, std::min(widths.panel_blocks, full - block), false);
  }
  if (half) add(full, last, true);
  return panels;
}

// Calls f(at, row, lanes, tap, ic) for every block, every tap of the window and every input channel that the panel
// reads: `at` is where the weights of the `lanes` output channels from `row` on begin in the packed memory.
template <class F>
void for_lanes(const PackedWeights& p, F f) {
  for (const Panel& panel : p.panels) {
    for (int block = panel.block; block < panel.block + panel.nb; ++block) {
      const int lanes = std::min(p.oc - block * BLOCK, BLOCK);
      ptrdiff_t at = panel.offset + ptrdiff_t{block - panel.block} * BLOCK;
      for (int tap = 0; tap < p.kh * p.kw; ++tap) {
        for (int ic = panel.ic_begin; ic < panel.ic_end; ++ic, at += panel.width())
          f(at, block * BLOCK, lanes, tap, ic);
      }
    }
  }
}

// Calls f(packed index, index in the weights as given) for every weight.
template <class F>
void for_weights(const PackedWeights& p, F f) {
  const ptrdiff_t ic_group = p.ic / p.groups, oc_group = p.oc / p.groups, k = ptrdiff_t{p.kh} * p.kw * ic_group;
  for_lanes(p, [&](ptrdiff_t at, int row, int lanes, int tap, int ic) {
    int begin = 0, end = lanes;
    if (p.groups > 1) {  // the channels of this block that belong to the group of ic
      const ptrdiff_t first = ic / ic_group * oc_group;
      begin = static_cast<int>(std::clamp<ptrdiff_t>(first - row, 0, lanes));
      end = static_cast<int>(std::clamp<ptrdiff_t>(first + oc_group - row, 0, lanes));
    }
    const ptrdiff_t from = tap * ic_group + (p.groups > 1 ? ic % ic_group : ic);
    for (int lane = begin; lane < end; ++lane) f(at + lane, (row + lane) * k + from);
  });
}

}  // namespace

std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, const WeightShape& shape, bool depthwise,
                                                  PanelWidths widths, PackOptions options) {
  auto packed = std::make_shared<PackedWeights>();
  packed->store = store;
  packed->oc = shape.oc;
  packed->kh = shape.kh;
  packed->kw = shape.kw;
  packed->ic = shape.ic;
  packed->groups = shape.groups;
  packed->depthwise = depthwise;
  if (depthwise) widths = {1, 0};
  packed->panel_blocks = widths.panel_blocks;
  packed->panels = cut_panels(shape, widths);
  float* b = store->allocate(static_cast<size_t>(packed->blocks() * BLOCK));  // zeroed
  if (bias != nullptr) std::copy(bias, bias + shape.oc, b);
  packed->bias = b;
  const auto size = static_cast<size_t>(packed->size());
  if (options.by_vectors && shape.kh * shape.kw * shape.groups == 1 && shape.ic >= LEAST_SUM_IN_24_BITS &&
      ptrdiff_t{shape.oc} * shape.ic >= LEAST_IN_24_BITS) {
    packed->in_24_bits = weights24(store, weight, shape.oc, shape.ic);
    if (packed->in_24_bits) {
      packed->floats.give_up(store, size, [p = packed.get()](float* to) {
        std::vector<float> plain(static_cast<size_t>(p->oc) * static_cast<size_t>(p->ic));
        unpack_weights24(*p->in_24_bits, plain.data());
        for_weights(*p, [&](ptrdiff_t at, ptrdiff_t from) { to[at] = plain[static_cast<size_t>(from)]; });
      });
      return packed;
    }
  }
  const std::shared_ptr<float> w = options.separate && size * sizeof(float) >= LEAST_SEPARATE
                                       ? store->separate(size)
                                       : std::shared_ptr<float>(store, store->allocate(size));
  for_weights(*packed, [&](ptrdiff_t at, ptrdiff_t from) { w.get()[at] = weight[from]; });
  packed->floats.keep(w);
  return packed;
}

std::vector<int> pieces_of(const PackedWeights& w, const std::vector<int>& given) {
  std::vector<int> pieces = given;
  for (int k = 0; given.empty() && k < w.ic; k += BLOCK) pieces.push_back(std::min(BLOCK, w.ic - k));
  int sum = 0;
  for (const int piece : pieces) {
    if (piece < 1 || piece > BLOCK || piece > w.ic - sum) throw std::invalid_argument("pieces do not fit the layer");
    sum += piece;
  }
  if (sum != w.ic) throw std::invalid_argument("pieces do not fit the layer");
  return pieces;
}

WeightNorms weight_norms(const PackedWeights& packed) {
  const std::shared_ptr<const float> weight = packed.floats.get();
  WeightNorms n{std::vector<double>(static_cast<size_t>(packed.blocks() * BLOCK)),
                std::vector<double>(static_cast<size_t>(packed.ic))};
  for_lanes(packed, [&](ptrdiff_t at, int row, int lanes, int, int ic) {
    const float* w = weight.get() + at;
    double sum = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      const double square = double{w[lane]} * w[lane];
      n.out[static_cast<size_t>(row + lane)] += square;
      sum += square;
    }
    n.in[static_cast<size_t>(ic)] += sum;
  });
  n.out.resize(static_cast<size_t>(packed.oc));
  for (std::vector<double>* list : {&n.out, &n.in}) {
    for (double& v : *list) v = std::sqrt(v);
  }
  return n;
}

void unpack_weights(const PackedWeights& packed, float* weight, float* bias) {
  const std::shared_ptr<const float> floats = packed.floats.get();
  for_weights(packed, [&](ptrdiff_t at, ptrdiff_t from) { weight[from] = floats.get()[at]; });
  std::copy(packed.bias, packed.bias + packed.oc, bias);
}

}  // namespace fmn
