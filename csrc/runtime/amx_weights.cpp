#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime/amx.h"

namespace fmn {

namespace {

// The leading 8 bits of the significand of x as a bfloat16; x keeps the others.
uint16_t take_leading(float& x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= 0xffff0000;
  float leading;
  std::memcpy(&leading, &bits, sizeof leading);
  x -= leading;  // exact
  return static_cast<uint16_t>(bits >> 16);
}

struct Parts {
  uint16_t part[AMX_PARTS];
  explicit Parts(float x) {
    for (uint16_t& p : part) p = take_leading(x);
  }
};

}  // namespace

std::shared_ptr<const AmxWeights> amx_weights(const std::shared_ptr<const PackedWeights>& plain,
                                              const std::vector<int>& pieces) {
  const PackedWeights& w = *plain;
  if (w.depthwise || w.groups != 1) throw std::invalid_argument("not a dense convolution of one group");
  auto result = std::make_shared<AmxWeights>();
  result->plain = plain;
  result->pieces = pieces_of(w, pieces);
  constexpr ptrdiff_t TILE = AMX_TILE / ptrdiff_t{sizeof(float)};
  const ptrdiff_t steps = result->steps();
  for (int block = 0; block < w.blocks(); block += 2) {
    result->panels.push_back(
        {block, std::min(2, w.blocks() - block), false, 0, w.ic, steps * AMX_PARTS * TILE * block});
  }
  float* const weight = w.store->allocate(static_cast<size_t>(steps * AMX_PARTS * TILE * w.blocks()));  // zeroed
  const ptrdiff_t n_pieces = result->n_pieces(), taps = ptrdiff_t{w.kh} * w.kw;
  for (const Panel& from : w.panels) {
    for (int o = 0; o < from.width(); ++o) {
      const int block = from.block + o / BLOCK;
      const Panel& to = result->panels[static_cast<size_t>(block / 2)];
      ptrdiff_t k = 0;
      for (ptrdiff_t at = 0; at < taps * n_pieces; ++at) {
        const ptrdiff_t piece = at % n_pieces, step = at / n_pieces * ((n_pieces + 1) / 2) + piece / 2;
        const bool second = piece % 2 != 0, alone = !second && piece + 1 == n_pieces;
        float* const tile = weight + to.offset + (step * AMX_PARTS * to.nb + block - to.block) * TILE;
        for (int i = 0; i < result->pieces[static_cast<size_t>(piece)]; ++i, ++k) {
          const Parts b(w.panel(from)[k * from.width() + o]);
          for (int part = 0; part < AMX_PARTS; ++part) {
            auto* const pair = reinterpret_cast<uint16_t*>(tile + part * to.nb * TILE + i * BLOCK + o % BLOCK);
            pair[second ? 1 : 0] = b.part[part];
            if (alone) pair[1] = b.part[part == 2 ? 0 : part];
          }
        }
      }
    }
  }
  result->weight = weight;
  return result;
}

}  // namespace fmn
