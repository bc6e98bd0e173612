#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "runtime/inner.h"

namespace fmn {

namespace {

// The power of two by which weights of this root mean square become as large as `size`, inverted.
double scale_of(double rms, double size) {
  if (!(rms > 0) || !std::isfinite(rms)) return 1;
  return std::ldexp(1.0, static_cast<int>(std::clamp(std::round(std::log2(rms / size)), -40.0, 40.0)));
}

struct Columns {
  const float* p;    // of the first channel
  ptrdiff_t stride;  // from one input channel to the next
  int lanes;         // output channels, the others of the block are zero
};

// The weights of one block, divided by scale[16], to `to`; init[16] is made of the result.
void scale_block(const Columns& from, float* to, ptrdiff_t stride, int ic, double size, float* init, float* scale) {
  double squares[BLOCK] = {}, products[BLOCK] = {};
  for (ptrdiff_t k = 0; k < ic; ++k) {
    for (int o = 0; o < from.lanes; ++o)
      squares[o] += double{from.p[k * from.stride + o]} * from.p[k * from.stride + o];
  }
  float factor[BLOCK];
  for (int o = 0; o < BLOCK; ++o) {
    scale[o] = static_cast<float>(scale_of(std::sqrt(squares[o] / ic), size));
    factor[o] = 1 / scale[o];
  }
  for (ptrdiff_t k = 0; k < ic; ++k) {
    for (int o = 0; o < from.lanes; ++o) to[k * stride + o] = from.p[k * from.stride + o] * factor[o];
  }
  for (ptrdiff_t k = 0; k < ic; k += BLOCK) {
    const int pairs = inner_pairs(static_cast<int>(std::min<ptrdiff_t>(BLOCK, ic - k)));
    for (int p = 0; p < pairs; ++p) {
      float* const w0 = to + (k + 2 * p) * stride;
      float* const w1 = w0 + stride;
      const int sign = p % 2 == 0 ? 1 : -1;
      for (int o = 0; o < from.lanes; ++o) {
        products[o] += sign * double{w0[o]} * w1[o];
        w0[o] *= static_cast<float>(sign);
        w1[o] *= static_cast<float>(sign);
      }
    }
  }
  for (int o = 0; o < BLOCK; ++o) init[o] = static_cast<float>(-products[o]);
}

void check_pointwise(const PackedWeights& w, double size) {
  if (w.depthwise || w.groups != 1 || w.kh * w.kw != 1) throw std::invalid_argument("not a 1x1 convolution");
  if (!(size > 0) || !std::isfinite(size)) throw std::invalid_argument("size must be positive");
}

}  // namespace

std::shared_ptr<const InnerWeights> inner_weights(const std::shared_ptr<const PackedWeights>& plain, double size) {
  const PackedWeights& w = *plain;
  check_pointwise(w, size);
  auto result = std::make_shared<InnerWeights>();
  result->plain = plain;
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
  for (const Panel& from : w.panels) {
    for (int b = 0; b < from.nb; ++b) {
      const int block = from.block + b;
      const Panel& to = half && block == whole ? result->panels.back() : result->panels[static_cast<size_t>(block / 2)];
      const int lane = (block - to.block) * BLOCK;
      const int lanes = std::min({from.width() - b * BLOCK, to.width() - lane, BLOCK});
      scale_block({w.panel(from) + b * BLOCK, from.width(), lanes}, weight + to.offset + lane, to.width(), w.ic, size,
                  init + block * BLOCK, scale + block * BLOCK);
    }
  }
  result->weight = weight;
  result->init = init;
  result->scale = scale;
  return result;
}

double inner_noise(const PackedWeights& plain, double size, const float* squares) {
  check_pointwise(plain, size);
  double sum = 0;
  int count = 0;
  for (const Panel& from : plain.panels) {
    for (int b = 0; b < from.nb; ++b) {
      const int lane = (from.block + b) * BLOCK, lanes = std::min(plain.oc - lane, BLOCK);
      const float* const w = plain.panel(from) + b * BLOCK;
      const ptrdiff_t stride = from.width();
      float norm[BLOCK] = {}, signal[BLOCK], noise[BLOCK], factor[BLOCK];
      for (ptrdiff_t k = 0; k < plain.ic; ++k) {
        for (int o = 0; o < lanes; ++o) norm[o] += w[k * stride + o] * w[k * stride + o];
      }
      for (int o = 0; o < lanes; ++o) {
        const auto f = static_cast<float>(1 / scale_of(std::sqrt(double{norm[o]} / plain.ic), size));
        factor[o] = f * f;
        noise[o] = signal[o] = plain.bias[lane + o] * plain.bias[lane + o] * factor[o];
      }
      for (int k = 0; k < plain.ic; k += 2) {
        const bool paired = k % BLOCK < 2 * inner_pairs(std::min<int>(BLOCK, plain.ic - k / BLOCK * BLOCK));
        const bool two = k + 1 < plain.ic;
        const float a0 = squares[k], a1 = two ? squares[k + 1] : 0;
        const float *const w0 = w + k * stride, *const w1 = two ? w0 + stride : w0;
        for (int o = 0; o < lanes; ++o) {
          const float b0 = w0[o] * w0[o] * factor[o], b1 = w1[o] * w1[o] * factor[o], result = a0 * b0 + a1 * b1;
          signal[o] += result;
          noise[o] += paired ? result + 2 * (a0 * a1 + b0 * b1) : result;
        }
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
