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

template <class F>
inline __attribute__((always_inline)) void for_pixels(const EltU8Args& e, const Requantizer& r, F f) {
  const ptrdiff_t b_step = e.b_is_one_pixel ? 0 : BLOCK;
  ptrdiff_t p = 0;
  for (; p + 4 <= e.pixels; p += 4) {
    byte_pixels<4>(e.dst + p * BLOCK, r, [&](int i, int v) {
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
  const VecI za = set1_i32(e.za), zb = set1_i32(e.zb), ma = set1_i32(e.ma), mb = set1_i32(e.mb);
  const VecI half = set1_i32(int32_t{1} << (e.shift - 1));
  for_pixels(e, r, [&](const uint8_t* a, const uint8_t* b) {
    const VecI first = add_i32(half, mul_i32(sub_i32(load_u8(a), za), ma));
    return shift_right(add_i32(first, mul_i32(sub_i32(load_u8(b), zb), mb)), e.shift);
  });
}

void mul_u8(const EltU8Args& e) {
  const Requantizer r(e.requant);
  const VecI za = set1_i32(e.za), zb = set1_i32(e.zb);
  const VecF factor = set1_f32(e.factor);
  for_pixels(e, r, [&](const uint8_t* a, const uint8_t* b) {
    // The product of two differences of bytes is exact in float32 too.
    const VecF product = times(to_float(sub_i32(load_u8(a), za)), to_float(sub_i32(load_u8(b), zb)));
    return rounded(times(product, factor));
  });
}

// The sum of two tensors as ONNX Runtime computes it: one multiply-add after the other, each rounded once.
void add_floats_u8(const EltU8Args& e) {
  const Requantizer r(e.requant);
  const VecI za = set1_i32(e.za), zb = set1_i32(e.zb);
  const VecF ra = set1_f32(e.ra), rb = set1_f32(e.rb), rest = set1_f32(e.rest);
  for_pixels(e, r, [&](const uint8_t* a, const uint8_t* b) {
    const VecF first = fma_f32(to_float(sub_i32(load_u8(b), zb)), rb, rest);
    return rounded(fma_f32(to_float(sub_i32(load_u8(a), za)), ra, first));
  });
}

// sum[o] += bytes of `pixels` pixels of a row.
void sum_u8(const uint8_t* src, ptrdiff_t pixels, int32_t* sum) {
  for (int v = 0; v < VECS; ++v) {
    VecI total = load_i32(sum + v * LANES);
    for (ptrdiff_t p = 0; p < pixels; ++p) total = add_i32(total, load_u8(src + p * BLOCK + v * LANES));
    store_i32(sum + v * LANES, total);
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
