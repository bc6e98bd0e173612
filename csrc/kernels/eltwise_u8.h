// Quantised kernels that work byte by byte: sums and products of two maps, tables, and the sums of a mean.
#pragma once

#include "kernels/gemm_u8.h"

namespace fmn::FMN_ISA {
namespace {

// Calls f(i, j) for the first channel of each vector of pixel i, for M pixels, and stores what comes out as bytes.
template <int M, class F>
inline __attribute__((always_inline)) void byte_pixels(uint8_t* dst, const Requantizer& r, F f) {
  VecI out[M][VECS];
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) out[i][v] = f(i, v);
  }
  r.template store_rounded<M, VECS>(out, 0, dst);
}

template <int M = 4, class F>
inline __attribute__((always_inline)) void for_pixels(const EltU8Args& e, const Requantizer& r, F f) {
  const ptrdiff_t b_step = e.b_is_one_pixel ? 0 : BLOCK;
  ptrdiff_t p = 0;
  for (; p + M <= e.pixels; p += M) {
    byte_pixels<M>(e.dst + p * BLOCK, r, [&](int i, int v) {
      return f(e.a + (p + i) * BLOCK + v * LANES, e.b + (p + i) * b_step + v * LANES);
    });
  }
  for (; p < e.pixels; ++p) {
    byte_pixels<1>(e.dst + p * BLOCK, r,
                   [&](int, int v) { return f(e.a + p * BLOCK + v * LANES, e.b + p * b_step + v * LANES); });
  }
}

void add_u8(const EltU8Args& e) {
  const Requantizer r(e.requant);
  const VecI ma = set1_i32(e.ma), mb = set1_i32(e.mb);
  // a * ma + b * mb + constant: the zero points and the half of the rounding come at once.
  const VecI constant = set1_i32((int32_t{1} << (e.shift - 1)) - e.za * e.ma - e.zb * e.mb);
  for_pixels(e, r, [&](const uint8_t* a, const uint8_t* b) {
    const VecI first = add_i32(constant, mul_i32(load_u8(a), ma));
    return shift_right(add_i32(first, mul_i32(load_u8(b), mb)), e.shift);
  });
}

// The product of two differences of bytes is exact in float32 too.
void mul_u8(const EltU8Args& e) {
  const Requantizer r(e.requant);
  const VecI za = set1_i32(e.za), zb = set1_i32(e.zb);
  const VecF factor = set1_f32(e.factor);
  if (!e.b_is_one_pixel) {
    for_pixels(e, r, [&](const uint8_t* a, const uint8_t* b) {
      const VecF product = times(to_float(sub_i32(load_u8(a), za)), to_float(sub_i32(load_u8(b), zb)));
      return rounded(times(product, factor));
    });
    return;
  }
  VecF gate[VECS], less[VECS];  // a * gate + less
  for (int v = 0; v < VECS; ++v) {
    const VecI b = sub_i32(load_u8(e.b + v * LANES), zb);
    gate[v] = to_float(b);
    less[v] = to_float(sub_i32(zero_i32(), mul_i32(za, b)));
  }
  const auto f = [&](ptrdiff_t p, int v) {
    const VecF product = plus(times(to_float(load_u8(e.a + p * BLOCK + v * LANES)), gate[v]), less[v]);
    return rounded(times(product, factor));
  };
  ptrdiff_t p = 0;
  for (; p + 4 <= e.pixels; p += 4) byte_pixels<4>(e.dst + p * BLOCK, r, [&](int i, int v) { return f(p + i, v); });
  for (; p < e.pixels; ++p) byte_pixels<1>(e.dst + p * BLOCK, r, [&](int, int v) { return f(p, v); });
}

// The sum of two tensors as ONNX Runtime computes it: one multiply-add after the other, each rounded once.
void add_floats_u8(const EltU8Args& e) {
  const Requantizer r(e.requant);
  const VecI za = set1_i32(e.za), zb = set1_i32(e.zb);
  const VecF ra = set1_f32(e.ra), rb = set1_f32(e.rb), rest = set1_f32(e.rest);
  // Five constants besides those of r: with 16 registers there is room for two pixels.
  for_pixels<VECS == 1 ? 4 : 2>(e, r, [&](const uint8_t* a, const uint8_t* b) {
    const VecF first = fma_f32(to_float(sub_i32(load_u8(b), zb)), rb, rest);
    return rounded(fma_f32(to_float(sub_i32(load_u8(a), za)), ra, first));
  });
}

alignas(64) const int8_t ONES[64] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// sum[o] += bytes of `pixels` pixels of a row.
void sum_u8(const uint8_t* src, ptrdiff_t pixels, int32_t* sum) {
  constexpr int CHAINS = VECS == 1 ? 2 : 1;
  const VecI ones = load_weights(ONES);
  VecI total[CHAINS][VECS];
  for (int v = 0; v < VECS; ++v) {
    total[0][v] = load_i32(sum + v * LANES);
    if (CHAINS > 1) total[CHAINS - 1][v] = zero_i32();
  }
  ptrdiff_t p = 0;
  for (; p + 4 * CHAINS <= pixels; p += 4 * CHAINS) {
#pragma GCC unroll 2
    for (int chain = 0; chain < CHAINS; ++chain) {
      const Taps taps(src + (p + 4 * chain) * BLOCK);
      for (int v = 0; v < VECS; ++v) dot(total[chain][v], taps.word(v), ones);
    }
  }
  const VecI taken = set1_i32(static_cast<int32_t>(OFFSET * p));
  for (int v = 0; v < VECS; ++v) {
    VecI all = add_i32(total[0][v], taken);
    if (CHAINS > 1) all = add_i32(all, total[CHAINS - 1][v]);
    for (ptrdiff_t q = p; q < pixels; ++q) all = add_i32(all, load_u8(src + q * BLOCK + v * LANES));
    store_i32(sum + v * LANES, all);
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
