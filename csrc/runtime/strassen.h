// Strassen's product of matrices in Winograd's form: seven products of halves instead of eight. What it multiplies on
// the side of the weights, made once, and the order of the seven products.
#pragma once

#include <memory>
#include <vector>

#include "runtime/pack.h"

namespace fmn {

// C = A B with A = [a11 a12; a21 a22], pixels by input channels, and B = [b11 b12; b21 b22], input by output channels.
// The factors of the products, in the order in which they are computed:
//
//   A:  a11  a12  s2  s3  a22  s1  s4      s1 = a21 + a22   s2 = s1 - a11    s3 = a11 - a21   s4 = a12 - s2
//   B:  b11  b21  t2  t3  t4   t1  b22     t1 = b12 - b11   t2 = b22 - t1    t3 = b22 - b12   t4 = b21 - t2
//
//   x = a11 b11                   y = x' + s3 t3        c21 = y + a22 t4         c12 = (w + x') + s4 b22
//   c11 = x + a12 b21             x' = x + s2 t2        w = s1 t1                c22 = w + y
constexpr int STRASSEN_PRODUCTS = 7;
constexpr int MAX_STRASSEN_LEVELS = 2;

// The seven factors of B, and where there are two levels the seven of each of them. Output channels are halved by
// panels: panel g of the first half goes with panel g + n of the second. Factors that are parts of B itself stay where
// the layer's weights are; the others lie in the order of their use.
struct StrassenWeights {
  std::shared_ptr<const PackedWeights> weights;
  std::shared_ptr<const float> floats;  // of them: some factors are a part of these
  int levels = 0;
  int groups = 0;                     // of 2^levels panels: g, g + groups, g + 2 groups ...
  std::vector<const float*> factors;  // [groups][7^levels], each [k / 2^levels][panel width]

  int products() const { return static_cast<int>(factors.size()) / groups; }
};

// Of a 1x1 convolution that is not grouped; panels beyond the first groups * 2^levels have no partner. Sums are made in
// float64 and rounded once. Throws std::invalid_argument where the layer cannot be halved so: fewer whole panels, or
// input channels that are no multiple of 16 * 2^levels.
std::shared_ptr<const StrassenWeights> strassen_weights(const std::shared_ptr<const PackedWeights>& weights, int levels,
                                                        int groups);

}  // namespace fmn
