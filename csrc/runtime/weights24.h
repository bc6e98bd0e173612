// Weights of large dense layers in 24 bits (kernels/gemv24.h), and what it takes to give them back as they were.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/kernel_table.h"
#include "runtime/memory.h"

namespace fmn {

// Weight (o, k) is in_scale[k] * out_scale[o] * word, a power of two each, where a word is off by 128 at most and the
// largest of an output is 2^30 or more: as near to it as the rounding of a float near the largest would be.
struct Weights24 {
  struct Inexact {
    uint32_t at;  // o * ic + k
    float weight;
  };

  int oc = 0, ic = 0;
  ptrdiff_t steps = 0;               // of four k
  const int32_t* words = nullptr;    // [ceil(oc / 16)][steps][GEMV24_STEP]
  const float* in_scale = nullptr;   // [4 * steps], zeros behind the last
  const float* out_scale = nullptr;  // [ceil(oc / 16) * 16]
  // A run does not read these: what is missing of the words [ceil(oc / 16)][steps][4][16], and weights of more bits,
  // which are smaller than 1/128 of the largest.
  const int8_t* rest = nullptr;
  std::vector<Inexact> inexact;

  int blocks() const { return (oc + BLOCK - 1) / BLOCK; }
  ptrdiff_t floats() const { return blocks() * steps * GEMV24_STEP; }  // of `words`, which are as large as floats
};

// weight: (oc, ic), contiguous. Null where 24 bits are not as good as floats: where a weight is not finite, or the
// weights of an output are of very unlike size after those of every input have been made alike.
std::shared_ptr<const Weights24> weights24(const std::shared_ptr<WeightStore>& store, const float* weight, int oc,
                                           int ic);

// The weights as they were given: (oc, ic).
void unpack_weights24(const Weights24& packed, float* weight);

}  // namespace fmn
