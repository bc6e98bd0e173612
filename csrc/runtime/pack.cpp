#include "runtime/pack.h"

#include "runtime/kernel_table.h"

namespace fmn {

std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, int oc, int kh, int kw, int ic, bool depthwise) {
  auto packed = std::make_shared<PackedWeights>();
  packed->store = store;
  packed->oc = oc;
  packed->kh = kh;
  packed->kw = kw;
  packed->ic = ic;
  packed->depthwise = depthwise;
  const ptrdiff_t k = packed->k(), blocks = packed->blocks();
  float* w = store->allocate(static_cast<size_t>(blocks * k * BLOCK));  // zeroed
  float* b = store->allocate(static_cast<size_t>(blocks * BLOCK));
  for (ptrdiff_t block = 0; block < blocks; ++block) {
    const ptrdiff_t first = block * BLOCK;
    const ptrdiff_t lanes = oc - first < BLOCK ? oc - first : BLOCK;
    float* dst = w + block * k * BLOCK;
    for (ptrdiff_t i = 0; i < k; ++i) {
      for (ptrdiff_t lane = 0; lane < lanes; ++lane) dst[i * BLOCK + lane] = weight[(first + lane) * k + i];
    }
    for (ptrdiff_t lane = 0; lane < lanes; ++lane) b[first + lane] = bias == nullptr ? 0.0f : bias[first + lane];
  }
  packed->weight = w;
  packed->bias = b;
  return packed;
}

}  // namespace fmn
