// Pooling: the mean over a map, and windows over it, for one block of 16 channels.
#pragma once

#include "runtime/kernel_table.h"

namespace fmn::FMN_ISA {
namespace {

// Four chains, so that the sum does not wait for the latency of the addition; their order is fixed.
void global_avg_pool(const PoolArgs& p) {
  const Vec count = set1(static_cast<float>(p.h * p.w));
  for (int v = 0; v < BLOCK; v += LANES) {
    Vec sum[4] = {zero(), zero(), zero(), zero()};
    for (ptrdiff_t y = 0; y < p.h; ++y) {
      const float* row = p.src + y * p.row_stride + v;
      ptrdiff_t x = 0;
      for (; x + 4 <= p.w; x += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[i] = plus(sum[i], load(row + (x + i) * BLOCK));
      }
      for (; x < p.w; ++x) sum[0] = plus(sum[0], load(row + x * BLOCK));
    }
    store(p.dst + v, over(plus(plus(sum[0], sum[1]), plus(sum[2], sum[3])), count));
  }
}

// One row of outputs. f(sum, pixel) collects, first is what it begins with, done(sum, count) the end. Sums go row by
// row.
template <class Collect, class Done>
inline void pool_window(const WindowPoolArgs& p, Vec first, Collect collect, Done done) {
  for (ptrdiff_t x = 0; x < p.ow; ++x) {
    const PoolSpan& span = p.spans[x];
    Vec acc[BLOCK / LANES];
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK / LANES; ++v) acc[v] = first;
    for (ptrdiff_t y = 0; y < p.rows; ++y) {
      const float* row = p.src + y * p.row_stride;
      for (ptrdiff_t sx = span.begin; sx < span.end; ++sx) {
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK / LANES; ++v) acc[v] = collect(acc[v], load(row + sx * BLOCK + v * LANES));
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK / LANES; ++v) store(p.dst + x * BLOCK + v * LANES, done(acc[v], span.count));
  }
}

// A whole 3x3 window, the usual one, without loops.
inline Vec max_3x3(const float* p, ptrdiff_t row_stride) {
  Vec rows[3];
#pragma GCC unroll 3
  for (int y = 0; y < 3; ++y) {
    const float* row = p + y * row_stride;
    rows[y] = max_or_nan(max_or_nan(load(row), load(row + BLOCK)), load(row + 2 * BLOCK));
  }
  return max_or_nan(max_or_nan(rows[0], rows[1]), rows[2]);
}

void pool_max(const WindowPoolArgs& p) {
  ptrdiff_t x = 0;
  const auto general = [&](ptrdiff_t count) {
    WindowPoolArgs part = p;
    part.spans += x;
    part.dst += x * BLOCK;
    part.ow = count;
    pool_window(
        part, set1(-INFINITY), [](Vec m, Vec v) { return max_or_nan(m, v); }, [](Vec m, float) { return m; });
    x += count;
  };
  while (x < p.ow) {
    ptrdiff_t whole = 0;
    while (p.rows == 3 && x + whole < p.ow && p.spans[x + whole].end - p.spans[x + whole].begin == 3) ++whole;
    for (ptrdiff_t end = x + whole; x < end; ++x) {
      const float* src = p.src + p.spans[x].begin * BLOCK;
#pragma GCC unroll 4
      for (int v = 0; v < BLOCK; v += LANES) store(p.dst + x * BLOCK + v, max_3x3(src + v, p.row_stride));
    }
    if (x < p.ow) general(p.rows == 3 ? 1 : p.ow - x);
  }
}

void pool_mean(const WindowPoolArgs& p) {
  pool_window(
      p, zero(), [](Vec sum, Vec v) { return plus(sum, v); },
      [&](Vec sum, float count) { return over(sum, set1(count * p.row_count)); });
}

}  // namespace
}  // namespace fmn::FMN_ISA
