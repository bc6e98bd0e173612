#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "runtime/inner.h"

namespace fmn {

namespace {

// The power of two by which weights of this root mean square become as large as `size`, inverted.
double scale_of(double rms, double size) {
  if (!(rms > 0) || !std::isfinite(rms)) return 1;
  return std::ldexp(1.0, static_cast<int>(std::clamp(std::round(std::log2(rms / size)), -40.0, 40.0)));
}

// 16 output channels of a layer, of which `lanes` exist.
struct Columns {
  const float* p;    // of the first input channel
  ptrdiff_t stride;  // from one input channel to the next
  int lanes;

  // Loops over all 16 are a few instructions each: loading a network waits for them.
  void read(ptrdiff_t k, float (&v)[BLOCK]) const {
    const float* const from = p + k * stride;
    if (lanes == BLOCK) {
      std::copy_n(from, BLOCK, v);
    } else {
      for (int o = 0; o < BLOCK; ++o) v[o] = o < lanes ? from[o] : 0;
    }
  }
  std::array<float, BLOCK> factors(int ic, double size) const {
    double squares[BLOCK] = {};
    float v[BLOCK];
    for (ptrdiff_t k = 0; k < ic; ++k) {
      read(k, v);
      for (int o = 0; o < BLOCK; ++o) squares[o] += double{v[o]} * v[o];
    }
    std::array<float, BLOCK> factor;
    for (int o = 0; o < BLOCK; ++o) {
      factor[static_cast<size_t>(o)] = static_cast<float>(1 / scale_of(std::sqrt(squares[o] / ic), size));
    }
    return factor;
  }
};

constexpr float MOST_BIAS = 1e30f;  // divided by its scale: far from infinity

// The weights of one block, divided by scale[16], to `to`; init[16] is made of the result and of bias[16].
void scale_block(const Columns& from, const float* bias, float* to, ptrdiff_t stride, const std::vector<int>& pieces,
                 double size, float* init, float* scale) {
  const int ic = std::accumulate(pieces.begin(), pieces.end(), 0);
  std::array<float, BLOCK> factor = from.factors(ic, size);
  const float* const f = factor.data();
  for (int o = 0; o < BLOCK; ++o) {
    if (!(std::abs(bias[o] * f[o]) < MOST_BIAS)) factor[static_cast<size_t>(o)] = 1;
  }
  double products[BLOCK] = {};
  float v[2][BLOCK];
  const auto write = [&](ptrdiff_t k, const float(&values)[BLOCK]) {
    if (from.lanes == BLOCK) {
      std::copy_n(values, BLOCK, to + k * stride);
    } else {
      std::copy_n(values, from.lanes, to + k * stride);
    }
  };
  ptrdiff_t begin = 0;
  for (const int piece : pieces) {
    const ptrdiff_t end = begin + piece, paired = begin + 2 * inner_pairs(piece);
    for (ptrdiff_t k = begin; k < paired; k += 2) {
      const float sign = (k - begin) % 4 == 0 ? 1.0f : -1.0f;
      for (int i = 0; i < 2; ++i) {
        from.read(k + i, v[i]);
        for (int o = 0; o < BLOCK; ++o) v[i][o] *= f[o] * sign;
        write(k + i, v[i]);
      }
      for (int o = 0; o < BLOCK; ++o) products[o] += double{v[0][o]} * v[1][o] * sign;
    }
    for (ptrdiff_t k = paired; k < end; ++k) {
      from.read(k, v[0]);
      for (int o = 0; o < BLOCK; ++o) v[0][o] *= f[o];
      write(k, v[0]);
    }
    begin = end;
  }
  for (int o = 0; o < BLOCK; ++o) {
    init[o] = static_cast<float>(double{bias[o]} * f[o] - products[o]);
    scale[o] = 1 / f[o];
  }
}

void check_pointwise(const PackedWeights& w, double size) {
  if (w.depthwise || w.groups != 1 || w.kh * w.kw != 1) throw std::invalid_argument("not a 1x1 convolution");
  if (!(size > 0) || !std::isfinite(size)) throw std::invalid_argument("size must be positive");
}

}  // namespace

std::shared_ptr<const InnerWeights> inner_weights(const std::shared_ptr<const PackedWeights>& plain, double size,
                                                  const std::vector<int>& pieces) {
  const PackedWeights& w = *plain;
  check_pointwise(w, size);
  auto result = std::make_shared<InnerWeights>();
  result->plain = plain;
  result->pieces = pieces_of(w, pieces);
  const auto ic = static_cast<size_t>(w.ic);
  const auto lanes = static_cast<size_t>(w.blocks()) * BLOCK;
  float* const weight = w.store->allocate(lanes * ic);  // zeroed
  float* const init = w.store->allocate(lanes);
  float* const scale = w.store->allocate(lanes);
  const bool half = w.oc % BLOCK != 0 && w.oc % BLOCK <= BLOCK / 2;
  const int whole = w.blocks() - (half ? 1 : 0);
  for (int block = 0; block < whole; block += 2) {
    result->panels.push_back({block, std::min(2, whole - block), false, 0, w.ic, ptrdiff_t{block} * BLOCK * w.ic});
  }
  if (half) result->panels.push_back({whole, 1, true, 0, w.ic, ptrdiff_t{whole} * BLOCK * w.ic});
  const std::shared_ptr<const float> floats = w.floats.get();
  for (const Panel& from : w.panels) {
    for (int b = 0; b < from.nb; ++b) {
      const int block = from.block + b;
      const Panel& to = half && block == whole ? result->panels.back() : result->panels[static_cast<size_t>(block / 2)];
      const int lane = (block - to.block) * BLOCK;
      const int lanes = std::min({from.width() - b * BLOCK, to.width() - lane, BLOCK});
      scale_block({floats.get() + from.offset + b * BLOCK, from.width(), lanes}, w.bias + block * BLOCK,
                  weight + to.offset + lane, to.width(), result->pieces, size, init + block * BLOCK,
                  scale + block * BLOCK);
    }
  }
  result->weight = weight;
  result->init = init;
  result->scale = scale;
  return result;
}

double inner_noise(const PackedWeights& plain, double size, const float* squares, const std::vector<int>& pieces) {
  check_pointwise(plain, size);
  const std::vector<int> together = pieces_of(plain, pieces);
  double sum = 0;
  int count = 0;
  const std::shared_ptr<const float> floats = plain.floats.get();
  for (const Panel& from : plain.panels) {
    for (int b = 0; b < from.nb; ++b) {
      const int lane = (from.block + b) * BLOCK, lanes = std::min(plain.oc - lane, BLOCK);
      const Columns columns{floats.get() + from.offset + b * BLOCK, from.width(), lanes};
      const std::array<float, BLOCK> factor = columns.factors(plain.ic, size);
      const float* const f = factor.data();
      float norm[BLOCK] = {}, signal[BLOCK] = {}, noise[BLOCK] = {}, v[2][BLOCK];
      int begin = 0;
      for (const int piece : together) {
        const int end = begin + piece, paired = begin + 2 * inner_pairs(piece);
        const auto add = [&](int k, float(&values)[BLOCK]) {
          columns.read(k, values);
          for (int o = 0; o < BLOCK; ++o) {
            values[o] *= f[o];
            values[o] *= values[o];
            norm[o] += values[o];
            signal[o] += values[o] * squares[k];
          }
        };
        for (int k = begin; k < paired; k += 2) {
          add(k, v[0]);
          add(k + 1, v[1]);
          const float pixel = squares[k] * squares[k + 1];
          for (int o = 0; o < BLOCK; ++o) noise[o] += 2 * (pixel + v[0][o] * v[1][o]);
        }
        for (int k = paired; k < end; ++k) add(k, v[0]);
        begin = end;
      }
      for (int o = 0; o < lanes; ++o) {
        const float bias = plain.bias[lane + o] * f[o];
        signal[o] += bias * bias;
        noise[o] += signal[o];
      }
      for (int o = 0; o < lanes; ++o) {
        if (norm[o] == 0) continue;  // the result is the bias
        sum += double{noise[o]} / signal[o];
        ++count;
      }
    }
  }
  return count > 0 ? std::sqrt(sum / count) : 1;
}

}  // namespace fmn
