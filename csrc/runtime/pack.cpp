#include "runtime/pack.h"

#include <algorithm>

#include "runtime/kernel_table.h"

namespace fmn {

std::shared_ptr<const PackedWeights> pack_weights(const std::shared_ptr<WeightStore>& store, const float* weight,
                                                  const float* bias, int oc, int kh, int kw, int ic, bool depthwise,
                                                  int panel_blocks) {
  auto packed = std::make_shared<PackedWeights>();
  packed->store = store;
  packed->oc = oc;
  packed->kh = kh;
  packed->kw = kw;
  packed->ic = ic;
  packed->depthwise = depthwise;
  packed->panel_blocks = depthwise ? 1 : panel_blocks;
  const ptrdiff_t k = packed->k(), blocks = packed->blocks();
  float* w = store->allocate(static_cast<size_t>(blocks * k * BLOCK));  // zeroed
  float* b = store->allocate(static_cast<size_t>(blocks * BLOCK));
  for (ptrdiff_t block = 0; block < blocks; ++block) {
    const ptrdiff_t first = block * BLOCK;
    const ptrdiff_t lanes = std::min<ptrdiff_t>(oc - first, BLOCK);
    const ptrdiff_t panel = block / packed->panel_blocks * packed->panel_blocks;  // its first block
    const ptrdiff_t width = std::min<ptrdiff_t>(packed->panel_blocks, blocks - panel) * BLOCK;
    float* dst = w + panel * k * BLOCK + (block - panel) * BLOCK;
    for (ptrdiff_t i = 0; i < k; ++i) {
      for (ptrdiff_t lane = 0; lane < lanes; ++lane) dst[i * width + lane] = weight[(first + lane) * k + i];
    }
    for (ptrdiff_t lane = 0; lane < lanes; ++lane) b[first + lane] = bias == nullptr ? 0.0f : bias[first + lane];
  }
  packed->weight = w;
  packed->bias = b;
  return packed;
}

}  // namespace fmn
