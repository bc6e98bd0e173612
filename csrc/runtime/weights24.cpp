#include "runtime/weights24.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace fmn {

namespace {

// Scales beyond are left to floats, so that no product of a scale and an activation overflows.
constexpr int MOST_EXPONENT = 40;
// How much larger than the root mean square of an output's weights the largest may be. Of normally distributed ones it
// is 4 to 5 times as large; above this, errors could be larger than those of summing up floats.
constexpr double MOST_SPREAD = 64;
constexpr int WORD_BITS = 31;

int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The exponents of the scales; empty if 24 bits will not do.
struct Exponents {
  std::vector<int> in, out;
};

Exponents exponents(const float* weight, int oc, int ic) {
  const auto width = static_cast<size_t>(ic);
  // As integers, magnitudes are in the same order, and NaN is above infinity.
  std::vector<int32_t> largest(width);
  for (const float* row = weight; row != weight + ptrdiff_t{oc} * ic; row += ic) {
    for (size_t k = 0; k < width; ++k) largest[k] = std::max(largest[k], bits_of(row[k]) & INT32_MAX);
  }
  Exponents e{std::vector<int>(width), std::vector<int>(static_cast<size_t>(oc))};
  std::vector<float> factors(width);
  for (size_t k = 0; k < width; ++k) {
    float x;
    std::memcpy(&x, &largest[k], sizeof x);
    if (!std::isfinite(x)) return {};
    std::frexp(x, &e.in[k]);
    if (e.in[k] > MOST_EXPONENT) return {};
    e.in[k] = std::max(e.in[k], -MOST_EXPONENT);  // what is smaller adds next to nothing to an output
    factors[k] = std::ldexp(1.0f, -e.in[k]);
  }
  for (int o = 0; o < oc; ++o) {
    const float* const row = weight + ptrdiff_t{o} * ic;
    float most = 0, squares = 0, count = 0;
#pragma omp simd reduction(max : most) reduction(+ : squares, count)
    for (size_t k = 0; k < width; ++k) {
      const float x = row[k] * factors[k], square = x * x;
      most = std::abs(x) > most ? std::abs(x) : most;
      squares += square;
      count += x != 0 ? 1.0f : 0.0f;
    }
    if (most == 0) continue;
    if (most > MOST_SPREAD * std::sqrt(squares / count)) return {};
    int& exponent = e.out[static_cast<size_t>(o)];
    if (std::frexp(most, &exponent) > 1 - 0x1p-16f) ++exponent;  // so that rounding stays within a word
    if (exponent < -MOST_EXPONENT) return {};
  }
  return e;
}

// Four k of a block.
struct Step {
  int32_t k[4][BLOCK];
};

// `rest` is what remains of `step` then.
void encode(const Step& step, int32_t* words, int8_t* rest) {
  constexpr int32_t HALF = 128, BYTE = 255;
  for (int o = 0; o < BLOCK; ++o) {
    const int32_t last = (step.k[3][o] + HALF) >> 8;  // 24 bits; the first operand is far from overflowing
    const int32_t low[3] = {last >> 16 & BYTE, last >> 8 & BYTE, last & BYTE};
    for (int j = 0; j < 3; ++j) {
      // As near as a word with this low byte can be. Adding 2^8 - 1 at most cannot overflow either.
      const int32_t word = ((step.k[j][o] - low[j] + HALF) & ~BYTE) + low[j];
      words[j * BLOCK + o] = word;
      rest[j * BLOCK + o] = static_cast<int8_t>(step.k[j][o] - word);
    }
    rest[3 * BLOCK + o] = static_cast<int8_t>(step.k[3][o] - last * (BYTE + 1));
  }
}

void decode(const int32_t* words, const int8_t* rest, Step& step) {
  for (int o = 0; o < BLOCK; ++o) {
    uint32_t last = 0;
    for (int j = 0; j < 3; ++j) {
      step.k[j][o] = words[j * BLOCK + o] + rest[j * BLOCK + o];
      last = last << 8 | (static_cast<uint32_t>(words[j * BLOCK + o]) & 255);
    }
    step.k[3][o] = static_cast<int32_t>(last << 8) + rest[3 * BLOCK + o];
  }
}

}  // namespace

std::shared_ptr<const Weights24> weights24(const std::shared_ptr<WeightStore>& store, const float* weight, int oc,
                                           int ic) {
  if (ptrdiff_t{oc} * ic > ptrdiff_t{UINT32_MAX}) return nullptr;
  const Exponents e = exponents(weight, oc, ic);
  if (e.in.empty()) return nullptr;
  auto packed = std::make_shared<Weights24>();
  packed->oc = oc;
  packed->ic = ic;
  packed->steps = (ic + 3) / 4;
  const auto padded = static_cast<size_t>(packed->steps) * 4, lanes = static_cast<size_t>(packed->blocks()) * BLOCK;
  std::vector<Weights24::Inexact>& inexact = packed->inexact;
  std::vector<float> factors(padded);
  for (size_t k = 0; k < e.in.size(); ++k) factors[k] = std::ldexp(1.0f, -e.in[k]);

  float* const in_scale = store->allocate(padded);  // zeroed, as all
  float* const out_scale = store->allocate(lanes);
  auto* const words = reinterpret_cast<int32_t*>(store->allocate(static_cast<size_t>(packed->floats())));
  auto* const rest = reinterpret_cast<int8_t*>(store->allocate(padded * lanes / sizeof(float)));
  // A product of in_scale and an activation may be small, but is not the first to overflow.
  for (size_t k = 0; k < e.in.size(); ++k) in_scale[k] = std::ldexp(1.0f, e.in[k] - WORD_BITS);
  for (size_t o = 0; o < e.out.size(); ++o) out_scale[o] = std::ldexp(1.0f, e.out[o]);

  constexpr ptrdiff_t CHUNK = 64;  // steps whose weights stay in the first-level cache
  std::array<Step, CHUNK> chunk;
  std::array<int32_t, CHUNK * 4> row, difference;
  for (int block = 0; block < packed->blocks(); ++block) {
    const int end = std::min(oc - block * BLOCK, BLOCK);
    for (ptrdiff_t first = 0; first < packed->steps; first += CHUNK) {
      const ptrdiff_t n = std::min(CHUNK, packed->steps - first);
      const auto width = static_cast<size_t>(std::min<ptrdiff_t>(4 * n, ic - 4 * first));
      if (end < BLOCK || width % 4 != 0) chunk.fill({});
      for (int lane = 0; lane < end; ++lane) {
        const ptrdiff_t at = ptrdiff_t{block * BLOCK + lane} * ic + 4 * first;
        const float* const from = weight + at;
        const float* const factor = factors.data() + 4 * first;
        const float of_row = std::ldexp(1.0f, WORD_BITS - e.out[static_cast<size_t>(block * BLOCK + lane)]);
        int32_t lost = 0;  // not 0 where a weight is not what its word says
        for (size_t k = 0; k < width; ++k) {
          const float x = from[k] * factor[k] * of_row;
          const auto whole = static_cast<int32_t>(x);
          const float part = x - static_cast<float>(whole);  // 0 above 2^23
          row[k] = whole + (part >= 0.5f ? 1 : 0) - (part <= -0.5f ? 1 : 0);
          difference[k] = bits_of(static_cast<float>(row[k])) ^ bits_of(x);
          lost |= difference[k];
        }
        for (size_t k = 0; lost != 0 && k < width; ++k) {
          if (difference[k] != 0) inexact.push_back({static_cast<uint32_t>(at) + static_cast<uint32_t>(k), from[k]});
        }
        for (size_t k = 0; k < width; ++k) chunk[k / 4].k[k % 4][lane] = row[k];
      }
      for (ptrdiff_t i = 0; i < n; ++i) {
        const ptrdiff_t step = block * packed->steps + first + i;
        encode(chunk[static_cast<size_t>(i)], words + step * GEMV24_STEP, rest + step * 4 * BLOCK);
      }
    }
  }
  packed->words = words;
  packed->rest = rest;
  packed->in_scale = in_scale;
  packed->out_scale = out_scale;
  inexact.shrink_to_fit();
  return packed;
}

void unpack_weights24(const Weights24& packed, float* weight) {
  Step s;
  for (int block = 0; block < packed.blocks(); ++block) {
    const int end = std::min(packed.oc - block * BLOCK, BLOCK);
    for (ptrdiff_t step = 0; step < packed.steps; ++step) {
      const ptrdiff_t at = block * packed.steps + step;
      decode(packed.words + at * GEMV24_STEP, packed.rest + at * 4 * BLOCK, s);
      for (ptrdiff_t k = 4 * step; k < std::min<ptrdiff_t>(4 * step + 4, packed.ic); ++k) {
        for (int lane = 0; lane < end; ++lane) {
          const int o = block * BLOCK + lane;
          weight[ptrdiff_t{o} * packed.ic + k] =
              static_cast<float>(s.k[k - 4 * step][lane]) * packed.in_scale[k] * packed.out_scale[o];
        }
      }
    }
  }
  for (const Weights24::Inexact& i : packed.inexact) weight[i.at] = i.weight;
}

}  // namespace fmn
