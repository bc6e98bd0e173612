#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime/amx.h"
#include "runtime/dispatch.h"

namespace fmn {

namespace {

constexpr ptrdiff_t TILE = AMX_TILE / ptrdiff_t{sizeof(float)};

// x rounded to the leading 8 bits of its significand, as a bfloat16; x keeps the others.
uint16_t take_leading(float& x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000) != 0x7f800000) bits += 0x8000;  // NaN stays
  bits &= 0xffff0000;
  float leading;
  std::memcpy(&leading, &bits, sizeof leading);
  x -= leading;  // exact
  return static_cast<uint16_t>(bits >> 16);
}

// The weights of one tap for a block of output channels.
struct Columns {
  const float* first;  // of input channel k at first + k * width
  ptrdiff_t width;
  int lanes;
};

// The parts of pieces k .. k + n0 - 1 and behind it n1 channels more, as pairs: `next` floats from one part to the
// next.
void split_pair(const Columns& from, ptrdiff_t k, int n0, int n1, float* to, ptrdiff_t next) {
  const AmxKernels* const kernels = amx_kernels();
  if (kernels != nullptr && n0 == n1) {
    const Segment both[2] = {{0, from.lanes}, {n0 * from.width, from.lanes}};
    kernels->split({from.first + k * from.width, from.width, both, 2, n0, reinterpret_cast<char*>(to),
                    next * ptrdiff_t{sizeof(float)}});
    return;
  }
  for (int i = 0; i < n0 + n1; ++i) {
    const int second = i < n0 ? 0 : 1, row = i - second * n0;
    for (int o = 0; o < from.lanes; ++o) {
      float x = from.first[(k + i) * from.width + o];
      for (int part = 0; part < AMX_PARTS; ++part) {
        reinterpret_cast<uint16_t*>(to + part * next + row * BLOCK + o)[second] = take_leading(x);
      }
    }
  }
}

// The same of a piece without a partner: (b1, b1), (b2, b2), (b3, b1).
void split_alone(const Columns& from, ptrdiff_t k, int n, float* to, ptrdiff_t next) {
  for (int i = 0; i < n; ++i) {
    for (int o = 0; o < from.lanes; ++o) {
      float x = from.first[(k + i) * from.width + o];
      const uint16_t b1 = take_leading(x), b2 = take_leading(x), b3 = take_leading(x);
      const uint16_t pairs[AMX_PARTS][2] = {{b1, b1}, {b2, b2}, {b3, b1}};
      for (int part = 0; part < AMX_PARTS; ++part) {
        std::memcpy(to + part * next + i * BLOCK + o, pairs[part], sizeof pairs[part]);
      }
    }
  }
}

}  // namespace

std::shared_ptr<const AmxWeights> amx_weights(const std::shared_ptr<const PackedWeights>& plain,
                                              const std::vector<int>& pieces) {
  const PackedWeights& w = *plain;
  if (w.in_24_bits) throw std::invalid_argument("not the weights of a map");
  if (w.depthwise || w.groups != 1) throw std::invalid_argument("not a dense convolution of one group");
  auto result = std::make_shared<AmxWeights>();
  result->plain = plain;
  result->pieces = pieces_of(w, pieces);
  const ptrdiff_t steps = result->steps(), taps = ptrdiff_t{w.kh} * w.kw;
  for (int block = 0; block < w.blocks(); block += 2) {
    result->panels.push_back(
        {block, std::min(2, w.blocks() - block), false, 0, w.ic, steps * AMX_PARTS * TILE * block});
  }
  float* const weight = w.store->allocate(static_cast<size_t>(steps * AMX_PARTS * TILE * w.blocks()));  // zeroed
  const auto n_pieces = static_cast<size_t>(result->n_pieces());
  for (const Panel& from : w.panels) {
    for (int b = 0; b < from.nb; ++b) {
      const int block = from.block + b;
      const Panel& to = result->panels[static_cast<size_t>(block / 2)];
      const ptrdiff_t next = to.nb * TILE;  // part
      float* tile = weight + to.offset + (block - to.block) * TILE;
      const Columns columns{w.panel(from) + b * BLOCK, from.width(), std::min(from.width() - b * BLOCK, BLOCK)};
      ptrdiff_t k = 0;
      for (ptrdiff_t tap = 0; tap < taps; ++tap) {
        for (size_t i = 0; i < n_pieces; i += 2, tile += AMX_PARTS * next) {
          const int n0 = result->pieces[i], n1 = i + 1 < n_pieces ? result->pieces[i + 1] : 0;
          n1 > 0 ? split_pair(columns, k, n0, n1, tile, next) : split_alone(columns, k, n0, tile, next);
          k += n0 + n1;
        }
      }
    }
  }
  result->weight = weight;
  return result;
}

}  // namespace fmn
