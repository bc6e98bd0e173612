// Channels of some blocks -> one block: what a channel shuffle, a split or a slice comes down to. A shuffle of two
// halves takes one permutation of each source a pixel.
#pragma once

#include "runtime/kernel_table.h"

namespace fmn::FMN_ISA {
namespace {

void gather(const GatherArgs& g) {
  // The first source writes all lanes, those behind it only their own.
  for (ptrdiff_t s = 0; s < g.n_sources; ++s) {
    const Pick pick(g.sources[s].lane);
    const float* src = g.sources[s].src;
    if (s == 0) {
      for (ptrdiff_t p = 0; p < g.pixels; ++p) pick.replace(g.dst + p * BLOCK, src + p * BLOCK);
    } else {
      for (ptrdiff_t p = 0; p < g.pixels; ++p) pick.merge(g.dst + p * BLOCK, src + p * BLOCK);
    }
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
