// The functions behind a layer (Act in runtime/kernel_table.h), on vectors. All pass NaN on.
#pragma once

#include "runtime/kernel_table.h"

namespace fmn::FMN_ISA {
namespace {

inline __attribute__((always_inline)) Vec hard_sigmoid(Vec x, Vec alpha, Vec beta) {
  return clamp(fma(x, alpha, beta), zero(), set1(1.0f));
}

// Hard swish of a tile that was just stored, and clamped from below to where the function is 0: MR pixels of NB blocks.
// A function of its own, because GCC 12 otherwise spills accumulators in the loops before it.
template <int MR, int NB>
__attribute__((noinline)) void swish_tile(float* c, ptrdiff_t c_stride, const Act& act) {
  const Vec alpha = set1(act.alpha), beta = set1(act.beta), one = set1(1.0f);
  for (int b = 0; b < NB; ++b, c += c_stride) {
    for (int i = 0; i < MR * BLOCK; i += LANES) {
      const Vec x = load(c + i);
      store(c + i, times(x, clamp_above(fma(x, alpha, beta), one)));
    }
  }
}

// What the depthwise kernels apply while a result is in its register: a clamp or a hard swish.
struct Finish {
  bool swish;
  Vec p, q;  // lo and hi, or alpha and beta

  explicit Finish(const Act& act)
      : swish(act.kind != ActKind::clamp), p(set1(swish ? act.alpha : act.lo)), q(set1(swish ? act.beta : act.hi)) {}
};

// Calls put(i, j, y) with y = finish(acc[i][j]); one test of the kind for the whole tile.
template <int M, int N, class Put>
inline __attribute__((always_inline)) void finish_tile(const Vec (&acc)[M][N], const Finish& f, Put put) {
  if (f.swish) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) put(i, j, times(acc[i][j], hard_sigmoid(acc[i][j], f.p, f.q)));
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) put(i, j, clamp(acc[i][j], f.p, f.q));
    }
  }
}

// 1 / (1 + h * h), h = exp(-x / 2) = 2^n * exp(r): n is -x / 2 / ln 2 rounded, r what is left, |r| <= ln 2 / 2, in two
// parts so that it is exact (Cody and Waite, 1980); the polynomial is Taylor's to r^7, off by less than 1e-8 of the
// value. The square of h may be infinite where h is not: then the result is 0, as it should be.
inline Vec sigmoid(Vec x) {
  const Vec y = clamp(times(x, set1(-0.5f)), set1(-87.0f), set1(87.0f));
  const Vec magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const Vec shifted = fma(y, set1(1.44269504f), magic);
  const Vec n = minus(shifted, magic);
  const Vec r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), y));
  Vec p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  const Vec h = times_power_of_two(p, shifted);
  const Vec nan = times(y, zero());  // 0, or NaN for NaN, whose bits the line above has changed
  return over(set1(1.0f), fma(h, h, plus(set1(1.0f), nan)));
}

// Any function.
inline Vec activate(Vec x, const Act& act) {
  switch (act.kind) {
    case ActKind::clamp: return clamp(x, set1(act.lo), set1(act.hi));
    case ActKind::hard_sigmoid: return hard_sigmoid(x, set1(act.alpha), set1(act.beta));
    case ActKind::hard_swish: return times(x, hard_sigmoid(x, set1(act.alpha), set1(act.beta)));
    case ActKind::sigmoid: return sigmoid(x);
    default: return times(x, sigmoid(x));
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
