#include <algorithm>
#include <stdexcept>

#include "runtime/kernel_table.h"
#include "runtime/strassen.h"

namespace fmn {

namespace {

// A factor of B on its way down: 2^levels panels of [k][width], in float64 where it is not a part of B itself.
struct Factor {
  std::vector<const float*> original;  // of every panel, or empty
  std::vector<std::vector<double>> sums;
};

class Maker {
 public:
  Maker(StrassenWeights& result, ptrdiff_t width) : result_(result), width_(width) {}

  void walk(const Factor& b, int levels, ptrdiff_t k) {
    if (levels == 0) return keep(b, k);
    const auto half = static_cast<size_t>(1) << (levels - 1);
    const ptrdiff_t n = k / 2 * width_;
    const Factor b11 = quarter(b, 0, 0, half, n), b12 = quarter(b, 0, half, half, n);
    const Factor b21 = quarter(b, n, 0, half, n), b22 = quarter(b, n, half, half, n);
    const auto difference = [&](const Factor& x, const Factor& y) {
      Factor d;
      for (size_t p = 0; p < half; ++p) {
        const std::vector<double> vx = values(x, p, n), vy = values(y, p, n);
        std::vector<double> v(static_cast<size_t>(n));
        std::transform(vx.begin(), vx.end(), vy.begin(), v.begin(), [](double s, double t) { return s - t; });
        d.sums.push_back(std::move(v));
      }
      return d;
    };
    const Factor t1 = difference(b12, b11), t2 = difference(b22, t1), t3 = difference(b22, b12);
    const Factor t4 = difference(b21, t2);
    for (const Factor* f : {&b11, &b21, &t2, &t3, &t4, &t1, &b22}) walk(*f, levels - 1, k / 2);
  }

 private:
  static Factor quarter(const Factor& b, ptrdiff_t from, size_t first, size_t count, ptrdiff_t n) {
    Factor q;
    for (size_t p = first; p < first + count; ++p) {
      if (!b.original.empty()) {
        q.original.push_back(b.original[p] + from);
      } else {
        q.sums.emplace_back(b.sums[p].begin() + from, b.sums[p].begin() + from + n);
      }
    }
    return q;
  }

  static std::vector<double> values(const Factor& f, size_t p, ptrdiff_t n) {
    return f.original.empty() ? f.sums[p] : std::vector<double>(f.original[p], f.original[p] + n);
  }

  void keep(const Factor& b, ptrdiff_t k) {
    if (!b.original.empty()) return result_.factors.push_back(b.original.front());
    const std::vector<double>& sums = b.sums.front();
    float* w = result_.weights->store->allocate(static_cast<size_t>(k * width_));
    std::transform(sums.begin(), sums.end(), w, [](double v) { return static_cast<float>(v); });
    result_.factors.push_back(w);
  }

  StrassenWeights& result_;
  const ptrdiff_t width_;
};

}  // namespace

std::shared_ptr<const StrassenWeights> strassen_weights(const std::shared_ptr<const PackedWeights>& weights, int levels,
                                                        int groups) {
  const PackedWeights& w = *weights;
  if (levels < 1 || levels > MAX_STRASSEN_LEVELS) throw std::invalid_argument("levels must be 1 or 2");
  if (w.depthwise || w.groups != 1 || w.kh * w.kw != 1) throw std::invalid_argument("not a 1x1 convolution");
  if (w.ic % (BLOCK << levels) != 0) throw std::invalid_argument("the input channels cannot be halved");
  auto result = std::make_shared<StrassenWeights>();
  result->weights = weights;
  result->floats = w.floats.get();
  result->levels = levels;
  result->groups = groups;
  if (groups < 1 || groups > w.whole_panels() >> levels)
    throw std::invalid_argument("the output channels cannot be halved");
  Maker maker(*result, ptrdiff_t{w.panel_blocks} * BLOCK);
  for (int g = 0; g < result->groups; ++g) {
    Factor b;
    for (int p = 0; p < 1 << levels; ++p) {
      b.original.push_back(result->floats.get() + w.panels[static_cast<size_t>(g + p * result->groups)].offset);
    }
    maker.walk(b, levels, w.ic);
  }
  return result;
}

}  // namespace fmn
