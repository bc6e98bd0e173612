// Channels of some blocks -> one block: what a channel shuffle, a split or a slice comes down to. A shuffle of two
// halves takes one permutation of each source a pixel.
#pragma once

#include "runtime/kernel_table.h"

namespace fmn::FMN_ISA {
namespace {

// Calls f(dst, p) for the place of every pixel in the destination, and p floats into each source.
template <class F>
inline void gather_pixels(const GatherArgs& g, F f) {
  for (ptrdiff_t p = 0; p < g.pixels * BLOCK; p += BLOCK) f(g.dst + p, p);
}

void gather(const GatherArgs& g) {
  // Two sources at a time. The first walk writes all lanes, those behind it only their own.
  for (ptrdiff_t s = 0; s < g.n_sources; s += 2) {
    const float* const src = g.sources[s].src;
    if (s + 1 < g.n_sources) {
      const float* const other = g.sources[s + 1].src;
      const PickTwo pick(g.sources[s].lane, g.sources[s + 1].lane);
      if (s == 0) {
        gather_pixels(g, [&](float* dst, ptrdiff_t p) { pick.replace(dst, src + p, other + p); });
      } else {
        gather_pixels(g, [&](float* dst, ptrdiff_t p) { pick.merge(dst, src + p, other + p); });
      }
    } else {
      const Pick pick(g.sources[s].lane);
      if (s == 0) {
        gather_pixels(g, [&](float* dst, ptrdiff_t p) { pick.replace(dst, src + p); });
      } else {
        gather_pixels(g, [&](float* dst, ptrdiff_t p) { pick.merge(dst, src + p); });
      }
    }
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
