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

// The weights of some input channels for a block of output channels.
struct Columns {
  const float* first;  // of input channel k at first + k * width
  ptrdiff_t width;
  int lanes;
};

// The parts of the first n0 channels and of n1 channels behind them, as pairs: `next` floats from one part to the next.
void split_pair(const Columns& from, int n0, int n1, float* to, ptrdiff_t next) {
  const AmxKernels* const kernels = amx_kernels();
  if (kernels != nullptr && n0 == n1) {
    const Segment both[2] = {{0, from.lanes}, {n0 * from.width, from.lanes}};
    kernels->split({from.first, from.width, both, 2, n0, reinterpret_cast<char*>(to), next * ptrdiff_t{sizeof(float)}});
    return;
  }
  for (int i = 0; i < n0 + n1; ++i) {
    const int second = i < n0 ? 0 : 1, row = i - second * n0;
    for (int o = 0; o < from.lanes; ++o) {
      float x = from.first[i * from.width + o];
      for (int part = 0; part < AMX_PARTS; ++part) {
        reinterpret_cast<uint16_t*>(to + part * next + row * BLOCK + o)[second] = take_leading(x);
      }
    }
  }
}

// The same of a piece without a partner: (b1, b1), (b2, b2), (b3, b1).
void split_alone(const Columns& from, int n, float* to, ptrdiff_t next) {
  for (int i = 0; i < n; ++i) {
    for (int o = 0; o < from.lanes; ++o) {
      float x = from.first[i * from.width + o];
      const uint16_t b1 = take_leading(x), b2 = take_leading(x), b3 = take_leading(x);
      const uint16_t pairs[AMX_PARTS][2] = {{b1, b1}, {b2, b2}, {b3, b1}};
      for (int part = 0; part < AMX_PARTS; ++part) {
        std::memcpy(to + part * next + i * BLOCK + o, pairs[part], sizeof pairs[part]);
      }
    }
  }
}

float float_of(uint16_t bfloat16) {
  const uint32_t bits = uint32_t{bfloat16} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The inverse of split_pair and split_alone: columns k .. k + n0 + n1 - 1 of what `to` was made of.
void join(const float* tile, ptrdiff_t next, int n0, int n1, float* columns, ptrdiff_t width, int lanes) {
  for (int i = 0; i < n0 + n1; ++i) {
    const int second = i < n0 ? 0 : 1, row = i - second * n0;
    for (int o = 0; o < lanes; ++o) {
      float part[AMX_PARTS];
      for (int p = 0; p < AMX_PARTS; ++p) {
        uint16_t pair[2];
        std::memcpy(pair, tile + p * next + row * BLOCK + o, sizeof pair);
        part[p] = float_of(pair[second]);
      }
      const float rest = part[1] + part[2];                           // exact, as the sum
      columns[i * width + o] = rest == 0 ? part[0] : part[0] + rest;  // a zero keeps its sign
    }
  }
}

// Calls f(tile, floats to the next part of it, first column in the panels of floats, width of the panel, lanes of it,
// channels of both pieces) for all pairs of pieces.
template <class F>
void for_tiles(const AmxWeights& amx, const PackedWeights& w, F f) {
  const auto n_pieces = static_cast<size_t>(amx.n_pieces());
  for (const Panel& from : w.panels) {
    for (int b = 0; b < from.nb; ++b) {
      const int block = from.block + b;
      const Panel& to = amx.panels[static_cast<size_t>(block / 2)];
      const ptrdiff_t next = to.nb * TILE;
      ptrdiff_t tile = to.offset + (block - to.block) * TILE, column = from.offset + b * BLOCK;
      for (int tap = 0; tap < amx.taps; ++tap) {
        for (size_t i = 0; i < n_pieces; i += 2, tile += AMX_PARTS * next) {
          const int n0 = amx.pieces[i], n1 = i + 1 < n_pieces ? amx.pieces[i + 1] : 0;
          f(tile, next, column, from.width(), std::min(from.width() - b * BLOCK, BLOCK), n0, n1);
          column += (n0 + n1) * from.width();
        }
      }
    }
  }
}

// Whether all are zeros or so large that their third parts are normal numbers, and not so large that they could round
// to infinity.
bool are_exact(const float* floats, ptrdiff_t n) {
  constexpr int32_t LEAST = (127 - 100) << 23, MOST = (127 + 127) << 23;
  int32_t wrong = 0;
  for (ptrdiff_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, floats + i, sizeof bits);
    bits &= INT32_MAX;
    wrong |= (bits != 0 && (bits < LEAST || bits >= MOST)) ? 1 : 0;
  }
  return wrong == 0;
}

}  // namespace

std::shared_ptr<const AmxWeights> amx_weights(const std::shared_ptr<const PackedWeights>& plain,
                                              const std::vector<int>& pieces) {
  const PackedWeights& w = *plain;
  if (w.depthwise || w.groups != 1) throw std::invalid_argument("not a dense convolution of one group");
  auto result = std::make_shared<AmxWeights>();
  result->plain = plain.get();
  result->store = w.store;
  result->taps = w.kh * w.kw;
  result->pieces = pieces_of(w, pieces);
  const ptrdiff_t steps = result->steps();
  for (int block = 0; block < w.blocks(); block += 2) {
    result->panels.push_back(
        {block, std::min(2, w.blocks() - block), false, 0, w.ic, steps * AMX_PARTS * TILE * block});
  }
  float* const weight = w.store->allocate(static_cast<size_t>(steps * AMX_PARTS * TILE * w.blocks()));  // zeroed
  result->weight = weight;
  const std::shared_ptr<const float> floats = w.floats.get();
  for_tiles(*result, w, [&](ptrdiff_t tile, ptrdiff_t next, ptrdiff_t column, int width, int lanes, int n0, int n1) {
    const Columns columns{floats.get() + column, width, lanes};
    n1 > 0 ? split_pair(columns, n0, n1, weight + tile, next) : split_alone(columns, n0, weight + tile, next);
  });
  if (are_exact(floats.get(), w.size())) {
    w.floats.give_up(w.store, static_cast<size_t>(w.size()), [result, p = plain.get()](float* to) {
      for_tiles(*result, *p,
                [&](ptrdiff_t tile, ptrdiff_t next, ptrdiff_t column, int width, int lanes, int n0, int n1) {
                  join(result->weight + tile, next, n0, n1, to + column, width, lanes);
                });
    });
  }
  return result;
}

}  // namespace fmn
