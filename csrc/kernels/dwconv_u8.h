// Depthwise convolution of bytes for one block of 16 channels. Four neighbouring pixels are transposed, so that the
// four bytes of a channel are one word, and a dot product with a word of weights does four columns of the window:
//
//   T(x) = channels 0 .. 15 of pixels x .. x + 3       3x3, stride 1: out(x) += T . [w0 w1 w2 0]
//                                                                 out(x + 1) += T . [0 w0 w1 w2]
//
// The rows carry their padding, which is the zero point, and a row outside of the map is a row of it: no border cases.
#pragma once

#include "kernels/gemm_u8.h"

namespace fmn::FMN_ISA {
namespace {

constexpr int DW_WORD = BLOCK * 4;  // bytes of a word of weights for all channels of a block

// N outputs side by side, from x on. PAIRS: of two outputs a transposed vector.
template <int K, int S, int N>
inline __attribute__((always_inline)) void dw_u8_tile(const DwU8Args& d, const uint8_t* const* rows, ptrdiff_t x,
                                                      uint8_t* dst, const Requantizer& requant) {
  constexpr bool PAIRS = K == 3 && S == 1;
  constexpr int WORDS = PAIRS ? 2 : (K + 3) / 4;
  VecI acc[N][VECS];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) acc[i][v] = load_i32(d.bias + v * LANES);
  }
  const int8_t* w = d.w;
  for (ptrdiff_t pass = 0; pass < d.passes; ++pass) {
#pragma GCC unroll 1  // unrolled, GCC 12 transposes all pixels first, and spills them
    for (int ky = 0; ky < K; ++ky, w += WORDS * DW_WORD) {
      const uint8_t* row = rows[ky] + x * S * BLOCK;
#pragma GCC unroll 8
      for (int i = 0; i < N; i += PAIRS ? 2 : 1) {
#pragma GCC unroll 2
        for (int group = 0; group < (PAIRS ? 1 : WORDS); ++group) {
          const Taps taps(row + (i * S + 4 * group) * BLOCK);
#pragma GCC unroll 4
          for (int v = 0; v < VECS; ++v) {
            const Word word = taps.word(v);
            dot(acc[i][v], word, load_weights(w + group * DW_WORD + v * LANES * 4));
            if (PAIRS && i + 1 < N) dot(acc[i + 1][v], word, load_weights(w + DW_WORD + v * LANES * 4));
          }
        }
      }
    }
  }
  requant.template store<N, VECS>(acc, 0, dst);
}

template <int K, int S>
void dw_u8(const DwU8Args& d) {
  const Requantizer requant(d.requant, d.scale);
  for (ptrdiff_t y = 0; y < d.oh; ++y) {
    const uint8_t* const* rows = d.rows + y * S;
    uint8_t* dst = d.dst + y * d.dst_stride;
    ptrdiff_t x = 0;
    constexpr int N = VECS == 1 ? 4 : 2;  // sixteen registers hold no more
    for (; x + N <= d.ow; x += N) dw_u8_tile<K, S, N>(d, rows, x, dst + x * BLOCK, requant);
    if constexpr (N == 4) {
      if (d.ow - x == 3) dw_u8_tile<K, S, 3>(d, rows, x, dst + x * BLOCK, requant);
      if (d.ow - x == 2) dw_u8_tile<K, S, 2>(d, rows, x, dst + x * BLOCK, requant);
    }
    if (d.ow - x == 1) dw_u8_tile<K, S, 1>(d, rows, x, dst + x * BLOCK, requant);
  }
}

// Any kernel size, stride and dilation: one column a word.
void dw_u8_any(const DwU8Args& d) {
  const Requantizer requant(d.requant, d.scale);
  for (ptrdiff_t y = 0; y < d.oh; ++y) {
    for (ptrdiff_t x = 0; x < d.ow; ++x) {
      VecI acc[1][VECS];
      for (int v = 0; v < VECS; ++v) acc[0][v] = load_i32(d.bias + v * LANES);
      const int8_t* w = d.w;
      for (ptrdiff_t pass = 0; pass < d.passes; ++pass) {
        for (ptrdiff_t ky = 0; ky < d.kh; ++ky) {
          const uint8_t* row = d.rows[y * d.kh + ky] + x * d.stride_w * BLOCK;
          for (ptrdiff_t kx = 0; kx < d.kw; ++kx, w += DW_WORD) {
            for (int v = 0; v < VECS; ++v) {
              const Word word = load_bytes(row + kx * d.dilation_w * BLOCK + v * LANES);
              dot(acc[0][v], word, load_weights(w + v * LANES * 4));
            }
          }
        }
      }
      requant.template store<1, VECS>(acc, 0, d.dst + y * d.dst_stride + x * BLOCK);
    }
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
