// Depthwise convolution of bytes for ISAs without a dot product of bytes: in 16 bits, where a multiply-add of pairs
// takes two rows of the window at once, and is exact for weights of -255 to 255.
//
//   out(x) += sum over kx of rows (0, 1) of column x + kx . [w0 w1] + rows (2, none) . [w2 0]
//
// Weights are [kx][pair of rows][16][2] of int16. A column is widened once for the outputs that use it.
#pragma once

#include "kernels/dwconv_u8.h"

namespace fmn::FMN_ISA {
namespace {

// N outputs side by side, from x on.
template <int K, int S, int N>
inline __attribute__((always_inline)) void dw_u8_pairs_tile(const DwU8Args& d, const uint8_t* const* rows, ptrdiff_t x,
                                                            uint8_t* dst, const Requantizer& requant) {
  constexpr int GROUPS = (K + 1) / 2;
  VecI acc[N][VECS];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) acc[i][v] = load_i32(d.bias + v * LANES);
  }
#pragma GCC unroll 16
  for (int column = 0; column < (N - 1) * S + K; ++column) {
    const ptrdiff_t at = (x * S + column) * BLOCK;
#pragma GCC unroll 3
    for (int group = 0; group < GROUPS; ++group) {
      VecI pair[VECS];
      if (2 * group + 1 < K) {
        pair_rows(rows[2 * group] + at, rows[2 * group + 1] + at, pair);
      } else {
#pragma GCC unroll 2
        for (int v = 0; v < VECS; ++v) pair[v] = load_u8(rows[2 * group] + at + v * LANES);
      }
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        const int kx = column - i * S;
        if (kx < 0 || kx >= K) continue;
#pragma GCC unroll 2
        for (int v = 0; v < VECS; ++v) {
          dot_pairs(acc[i][v], pair[v], d.w + ((kx * GROUPS + group) * VECS + v) * LANES * 4);
        }
      }
    }
  }
  requant.template store<N, VECS>(acc, 0, dst);
}

template <int K, int S>
void dw_u8_pairs(const DwU8Args& d) {
  const Requantizer requant(d.requant, d.scale);
  for (ptrdiff_t y = 0; y < d.oh; ++y) {
    const uint8_t* const* rows = d.rows + y * S;
    uint8_t* dst = d.dst + y * d.dst_stride;
    ptrdiff_t x = 0;
    for (; x + 4 <= d.ow; x += 4) dw_u8_pairs_tile<K, S, 4>(d, rows, x, dst + x * BLOCK, requant);
    if (d.ow - x == 3) dw_u8_pairs_tile<K, S, 3>(d, rows, x, dst + x * BLOCK, requant);
    if (d.ow - x == 2) dw_u8_pairs_tile<K, S, 2>(d, rows, x, dst + x * BLOCK, requant);
    if (d.ow - x == 1) dw_u8_pairs_tile<K, S, 1>(d, rows, x, dst + x * BLOCK, requant);
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
