// The transforms of Winograd's convolution F(4x4, 3x3): 16 outputs from 36 products instead of 144.
//
//   y = A^T [ (G g G^T) . (B^T d B) ] A        d: 6x6 inputs, g: 3x3 weights, y: 4x4 outputs
//
//         4  0 -5  0  1  0          1  1  1  1  1  0
//         0 -4 -4  1  1  0          0  1 -1  2 -2  0
//   B^T = 0  4 -4 -1  1  0    A^T = 0  1  1  4  4  0    (the points 0, 1, -1, 2, -2 and infinity)
//         0 -2 -1  2  1  0          0  1 -1  8 -8  1
//         0  2 -1 -2  1  0
//         0  4  0 -5  0  1          G: runtime/winograd.cpp
//
// Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015. A tile's input is transformed once for
// each block of input channels, and the sums over the channels are 36 products of matrices, (tiles x ic) by
// (ic x oc), which gemm.h does. Element e = 6 i + j of the transformed 6x6 lies e * stride floats after the first.
//
// One dimension of B^T is 6 additions and 6 multiply-adds, of A^T 7 and 3. Of the first dimension only the one or two
// rows of the result are made that share their terms, and the second dimension is done with these at once: no more
// than 12 values are alive, and nothing but the result is stored. Inputs are loaded up to 84 times instead of 36,
// mostly as operands of the additions. Registers: 12 + 4 terms + 5 constants = 21 of 32; with 16 registers one row at
// a time: 6 + 4 + 5 = 15. Tails: none here; the op gives tiles that cross the border a copy with zeros around.
#pragma once

#include "kernels/activation.h"

namespace fmn::FMN_ISA {
namespace {

constexpr int WINOGRAD = 6;  // rows and columns of a transformed tile
constexpr bool TWO_ROWS = REGISTERS >= 32;

// One row of the result, from a row of B^T d: its product with B.
inline __attribute__((always_inline)) void winograd_input_row(const Vec (&d)[WINOGRAD], float* dst, ptrdiff_t stride) {
  const Vec c = minus(d[4], d[2]), e = minus(d[3], d[1]);
  const Vec p = fma(set1(-4.0f), d[2], d[4]), q = fma(set1(-4.0f), d[1], d[3]);
  store(dst, fma(set1(4.0f), minus(d[0], d[2]), c));
  store(dst + stride, plus(p, q));
  store(dst + 2 * stride, minus(p, q));
  store(dst + 3 * stride, fma(set1(2.0f), e, c));
  store(dst + 4 * stride, fma(set1(-2.0f), e, c));
  store(dst + 5 * stride, fma(set1(-4.0f), e, minus(d[5], d[3])));
}

// Row I of B^T d times B, and row I + 1 with it if PAIR. The inputs of row r of the tile start at rows[r] + at.
template <int I, bool PAIR>
inline __attribute__((always_inline)) void winograd_input_rows(const float* const* rows, ptrdiff_t at, float* dst,
                                                               ptrdiff_t stride) {
  Vec a[WINOGRAD], b[WINOGRAD];
#pragma GCC unroll 6
  for (int x = 0; x < WINOGRAD; ++x) {
    const auto d = [&](int r) __attribute__((always_inline)) { return load(rows[r] + at + x * BLOCK); };
    if constexpr (I == 0) {
      a[x] = fma(set1(4.0f), minus(d(0), d(2)), minus(d(4), d(2)));
    } else if constexpr (I == 5) {
      a[x] = fma(set1(-4.0f), minus(d(3), d(1)), minus(d(5), d(3)));
    } else if constexpr (I < 3) {
      const Vec p = fma(set1(-4.0f), d(2), d(4)), q = fma(set1(-4.0f), d(1), d(3));
      a[x] = I == 1 ? plus(p, q) : minus(p, q);
      if constexpr (PAIR) b[x] = minus(p, q);
    } else {
      const Vec c = minus(d(4), d(2)), e = minus(d(3), d(1));
      a[x] = fma(set1(I == 3 ? 2.0f : -2.0f), e, c);
      if constexpr (PAIR) b[x] = fma(set1(-2.0f), e, c);
    }
  }
  winograd_input_row(a, dst + I * WINOGRAD * stride, stride);
  if constexpr (PAIR) winograd_input_row(b, dst + (I + 1) * WINOGRAD * stride, stride);
}

void winograd_input(const WinogradInputArgs& g) {
  for (int v = 0; v < BLOCK; v += LANES) {
    for (ptrdiff_t t = 0; t < g.tiles; ++t) {
      const ptrdiff_t at = t * 4 * BLOCK + v;
      float* const dst = g.dst + t * BLOCK + v;
      winograd_input_rows<0, false>(g.rows, at, dst, g.dst_stride);
      winograd_input_rows<1, TWO_ROWS>(g.rows, at, dst, g.dst_stride);
      if constexpr (!TWO_ROWS) winograd_input_rows<2, false>(g.rows, at, dst, g.dst_stride);
      winograd_input_rows<3, TWO_ROWS>(g.rows, at, dst, g.dst_stride);
      if constexpr (!TWO_ROWS) winograd_input_rows<4, false>(g.rows, at, dst, g.dst_stride);
      winograd_input_rows<5, false>(g.rows, at, dst, g.dst_stride);
    }
  }
}

// Four outputs from a row of A^T m: its product with A, and what comes behind a convolution.
template <bool ADD, bool SWISH>
inline __attribute__((always_inline)) void winograd_output_row(const Vec (&z)[WINOGRAD], const float* add, float* dst,
                                                               const Act& act) {
  const Vec s1 = plus(z[1], z[2]), d1 = minus(z[1], z[2]), s2 = plus(z[3], z[4]), d2 = minus(z[3], z[4]);
  Vec y[4] = {plus(plus(z[0], s1), s2), fma(set1(2.0f), d2, d1), fma(set1(4.0f), s2, s1),
              plus(fma(set1(8.0f), d2, d1), z[5])};
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    if constexpr (ADD) y[x] = plus(y[x], load(add + x * BLOCK));
    if constexpr (SWISH) {
      y[x] = times(y[x], hard_sigmoid(y[x], set1(act.alpha), set1(act.beta)));
    } else {
      y[x] = clamp(y[x], set1(act.lo), set1(act.hi));
    }
    store(dst + x * BLOCK, y[x]);
  }
}

// Output row I, and row I + 2 with it if PAIR.
template <int I, bool PAIR, bool ADD, bool SWISH>
inline __attribute__((always_inline)) void winograd_output_rows(const WinogradOutputArgs& g, const float* src,
                                                                ptrdiff_t at) {
  Vec a[WINOGRAD], b[WINOGRAD];
#pragma GCC unroll 6
  for (int j = 0; j < WINOGRAD; ++j) {
    const auto m = [&](int i) __attribute__((always_inline)) { return load(src + (i * WINOGRAD + j) * g.src_stride); };
    if constexpr (I % 2 == 0) {
      const Vec s1 = plus(m(1), m(2)), s2 = plus(m(3), m(4));
      a[j] = I == 0 ? plus(plus(m(0), s1), s2) : fma(set1(4.0f), s2, s1);
      if constexpr (PAIR) b[j] = fma(set1(4.0f), s2, s1);
    } else {
      const Vec d1 = minus(m(1), m(2)), d2 = minus(m(3), m(4));
      a[j] = I == 1 ? fma(set1(2.0f), d2, d1) : plus(fma(set1(8.0f), d2, d1), m(5));
      if constexpr (PAIR) b[j] = plus(fma(set1(8.0f), d2, d1), m(5));
    }
  }
  const auto add = [&](int y) __attribute__((always_inline)) { return ADD ? g.add[y] + at : nullptr; };
  winograd_output_row<ADD, SWISH>(a, add(I), g.rows[I] + at, g.act);
  if constexpr (PAIR) winograd_output_row<ADD, SWISH>(b, add(I + 2), g.rows[I + 2] + at, g.act);
}

template <bool ADD, bool SWISH>
void winograd_output_tiles(const WinogradOutputArgs& g) {
  for (int v = 0; v < BLOCK; v += LANES) {
    for (ptrdiff_t t = 0; t < g.tiles; ++t) {
      const ptrdiff_t at = t * 4 * BLOCK + v;
      const float* const src = g.src + t * BLOCK + v;
      winograd_output_rows<0, TWO_ROWS, ADD, SWISH>(g, src, at);
      winograd_output_rows<1, TWO_ROWS, ADD, SWISH>(g, src, at);
      if constexpr (!TWO_ROWS) winograd_output_rows<2, false, ADD, SWISH>(g, src, at);
      if constexpr (!TWO_ROWS) winograd_output_rows<3, false, ADD, SWISH>(g, src, at);
    }
  }
}

void winograd_output(const WinogradOutputArgs& g) {
  const bool swish = g.act.kind != ActKind::clamp;
  if (g.add != nullptr) return swish ? winograd_output_tiles<true, true>(g) : winograd_output_tiles<true, false>(g);
  return swish ? winograd_output_tiles<false, true>(g) : winograd_output_tiles<false, false>(g);
}

// --- stride 2 ---------------------------------------------------------------------------------------------
//
// In one dimension y[i] = x[2i] g0 + x[2i+2] g2 + x[2i+1] g1: a convolution of two taps over the even inputs, for which
// F(4, 2) needs 5 products, and one of one tap over the odd ones, 4 products that need no transform. That is 81
// products of a tile of 9x9 inputs for 4x4 outputs instead of 144. Elements 0 to 4 of a dimension are those of the even
// inputs, 5 to 8 the odd inputs; in both dimensions, so that element (i, j) is 9 i + j.
//
//         2 -1 -2  1  0          1  1  1  1  0
//   B^T = 0 -2 -1  1  0    A^T = 0  1 -1  2  0    (the points 0, 1, -1, 2 and infinity)
//         0  2 -3  1  0          0  1  1  4  0
//         0 -1  0  1  0          0  1 -1  8  1
//         0  2 -1 -2  1
//
// One row of the result at a time, of which the odd columns need not be kept: 5 values and 5 terms.

constexpr int WINOGRAD_S2 = 9;

// Element I of five even inputs d(0), d(1) ..
template <int I, class D>
inline __attribute__((always_inline)) Vec winograd_s2_element(D d) {
  if constexpr (I == 0) return fma(set1(2.0f), minus(d(0), d(2)), minus(d(3), d(1)));
  if constexpr (I == 1) return fma(set1(-2.0f), d(1), minus(d(3), d(2)));
  if constexpr (I == 2) return fma(set1(2.0f), d(1), fma(set1(-3.0f), d(2), d(3)));
  if constexpr (I == 3) return minus(d(3), d(1));
  return fma(set1(-2.0f), minus(d(3), d(1)), minus(d(4), d(2)));
}

// Row I of the 9 x 9 elements.
template <int I>
inline __attribute__((always_inline)) void winograd_input_s2_row(const float* const* rows, ptrdiff_t at, float* dst,
                                                                 ptrdiff_t stride) {
  const auto column = [&](int x) __attribute__((always_inline)) {
    if constexpr (I >= 5) {
      return load(rows[2 * (I - 5) + 1] + at + x * BLOCK);
    } else {
      return winograd_s2_element<I>([&](int r)
                                        __attribute__((always_inline)) { return load(rows[2 * r] + at + x * BLOCK); });
    }
  };
  Vec even[5];
#pragma GCC unroll 5
  for (int j = 0; j < 5; ++j) even[j] = column(2 * j);
  const auto d = [&](int j) __attribute__((always_inline)) { return even[j]; };
  store(dst, winograd_s2_element<0>(d));
  store(dst + stride, winograd_s2_element<1>(d));
  store(dst + 2 * stride, winograd_s2_element<2>(d));
  store(dst + 3 * stride, winograd_s2_element<3>(d));
  store(dst + 4 * stride, winograd_s2_element<4>(d));
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) store(dst + (5 + j) * stride, column(2 * j + 1));
}

void winograd_input_s2(const WinogradInputArgs& g) {
  const ptrdiff_t row = WINOGRAD_S2 * g.dst_stride;
  for (int v = 0; v < BLOCK; v += LANES) {
    for (ptrdiff_t t = 0; t < g.tiles; ++t) {
      const ptrdiff_t at = t * 8 * BLOCK + v;
      float* const dst = g.dst + t * BLOCK + v;
      winograd_input_s2_row<0>(g.rows, at, dst, g.dst_stride);
      winograd_input_s2_row<1>(g.rows, at, dst + row, g.dst_stride);
      winograd_input_s2_row<2>(g.rows, at, dst + 2 * row, g.dst_stride);
      winograd_input_s2_row<3>(g.rows, at, dst + 3 * row, g.dst_stride);
      winograd_input_s2_row<4>(g.rows, at, dst + 4 * row, g.dst_stride);
      winograd_input_s2_row<5>(g.rows, at, dst + 5 * row, g.dst_stride);
      winograd_input_s2_row<6>(g.rows, at, dst + 6 * row, g.dst_stride);
      winograd_input_s2_row<7>(g.rows, at, dst + 7 * row, g.dst_stride);
      winograd_input_s2_row<8>(g.rows, at, dst + 8 * row, g.dst_stride);
    }
  }
}

// Row I of A^T m, and the odd element with it.
template <int I, class M>
inline __attribute__((always_inline)) Vec winograd_s2_sum(M m) {
  if constexpr (I == 0) return plus(plus(plus(m(0), m(1)), plus(m(2), m(3))), m(5));
  if constexpr (I == 1) return plus(fma(set1(2.0f), m(3), minus(m(1), m(2))), m(6));
  if constexpr (I == 2) return plus(fma(set1(4.0f), m(3), plus(m(1), m(2))), m(7));
  return plus(fma(set1(8.0f), m(3), minus(m(1), m(2))), plus(m(4), m(8)));
}

template <int I, bool ADD, bool SWISH>
inline __attribute__((always_inline)) void winograd_output_s2_row(const WinogradOutputArgs& g, const float* src,
                                                                  ptrdiff_t at) {
  const auto z = [&](int j) __attribute__((always_inline)) {
    return winograd_s2_sum<I>([&](int i) __attribute__((always_inline)) {
      return load(src + (i * WINOGRAD_S2 + j) * g.src_stride);
    });
  };
  const Vec z1 = z(1), z2 = z(2), z3 = z(3), s = plus(z1, z2), d = minus(z1, z2);
  Vec y[4] = {plus(s, z3), fma(set1(2.0f), z3, d), fma(set1(4.0f), z3, s), fma(set1(8.0f), z3, d)};
  y[0] = plus(y[0], z(0));
  y[3] = plus(y[3], z(4));
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    y[x] = plus(y[x], z(5 + x));
    if constexpr (ADD) y[x] = plus(y[x], load(g.add[I] + at + x * BLOCK));
    if constexpr (SWISH) {
      y[x] = times(y[x], hard_sigmoid(y[x], set1(g.act.alpha), set1(g.act.beta)));
    } else {
      y[x] = clamp(y[x], set1(g.act.lo), set1(g.act.hi));
    }
    store(g.rows[I] + at + x * BLOCK, y[x]);
  }
}

template <bool ADD, bool SWISH>
void winograd_output_s2_tiles(const WinogradOutputArgs& g) {
  for (int v = 0; v < BLOCK; v += LANES) {
    for (ptrdiff_t t = 0; t < g.tiles; ++t) {
      const ptrdiff_t at = t * 4 * BLOCK + v;
      const float* const src = g.src + t * BLOCK + v;
      winograd_output_s2_row<0, ADD, SWISH>(g, src, at);
      winograd_output_s2_row<1, ADD, SWISH>(g, src, at);
      winograd_output_s2_row<2, ADD, SWISH>(g, src, at);
      winograd_output_s2_row<3, ADD, SWISH>(g, src, at);
    }
  }
}

void winograd_output_s2(const WinogradOutputArgs& g) {
  const bool swish = g.act.kind != ActKind::clamp;
  if (g.add != nullptr) {
    return swish ? winograd_output_s2_tiles<true, true>(g) : winograd_output_s2_tiles<true, false>(g);
  }
  return swish ? winograd_output_s2_tiles<false, true>(g) : winograd_output_s2_tiles<false, false>(g);
}

}  // namespace
}  // namespace fmn::FMN_ISA
