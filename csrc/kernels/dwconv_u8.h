// Depthwise convolution of bytes for one block of 16 channels. Four neighbouring pixels are transposed, so that the
// four bytes of a channel are one word, and a dot product with a word of weights does four columns of the window:
//
//   T(x) = channels 0 .. 15 of pixels x .. x + 3
//   3x3, stride 1: out(x) += T(x) . [w0 w1 w2 0]                            out(x + 1) += T(x) . [0 w0 w1 w2]
//   5x5, stride 1: out(x) += T(x) . [w0 w1 w2 w3] + T(x + 4) . [w4 0 0 0]   out(x + 1) += T(x) . [0 w0 w1 w2] + ...
//
// The rows carry their padding, which is the zero point, and a row outside of the map is a row of it: no border cases.
#pragma once

#include "kernels/gemm_u8.h"

namespace fmn::FMN_ISA {
namespace {

constexpr int DW_WORD = BLOCK * 4;  // bytes of a word of weights for all channels of a block

// What word `group` of a row of pixels, from where the first of N outputs begins, is multiplied with for output i:
// the number of the word of weights, -1 for none. See dw_words() for their order.
template <int K, int S>
constexpr int dw_word_of(int group, int i) {
  constexpr int PHASES = K == 5 ? 4 / S : 1;
  const int behind = group - i / PHASES;  // in words, from where the window of output i begins
  return behind < 0 || behind > 1 ? -1 : i % PHASES * 2 + behind;
}

// N outputs side by side, from x on.
template <int K, int S, int N>
inline __attribute__((always_inline)) void dw_u8_tile(const DwU8Args& d, const uint8_t* const* rows, ptrdiff_t x,
                                                      uint8_t* dst, const Requantizer& requant) {
  constexpr bool PAIRS = K == 3 && S == 1;  // two outputs a transposed vector
  constexpr int WORDS = K == 5 ? 2 * (4 / S) : PAIRS ? 2 : 1;
  VecI acc[N][VECS];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) acc[i][v] = load_i32(d.bias + v * LANES);
  }
  const int8_t* w = d.w;
  for (ptrdiff_t pass = 0; pass < d.passes; ++pass) {
    const auto one_row = [&](int ky) __attribute__((always_inline)) {
      const uint8_t* row = rows[ky] + x * S * BLOCK;
      const int8_t* wk = w + ky * WORDS * DW_WORD;
      if constexpr (K == 5) {
        constexpr int GROUPS = ((N - 1) * S + K + 3) / 4;
#pragma GCC unroll 4
        for (int group = 0; group < GROUPS; ++group) {
          const Taps taps(row + 4 * group * BLOCK);
#pragma GCC unroll 4
          for (int v = 0; v < VECS; ++v) {
            const Word word = taps.word(v);
#pragma GCC unroll 8
            for (int i = 0; i < N; ++i) {
              const int of = dw_word_of<K, S>(group, i);
              if (of >= 0) dot(acc[i][v], word, load_weights(wk + of * DW_WORD + v * LANES * 4));
            }
          }
        }
      } else {
#pragma GCC unroll 8
        for (int i = 0; i < N; i += PAIRS ? 2 : 1) {
          const Taps taps(row + i * S * BLOCK);
#pragma GCC unroll 4
          for (int v = 0; v < VECS; ++v) {
            const Word word = taps.word(v);
            dot(acc[i][v], word, load_weights(wk + v * LANES * 4));
            if (PAIRS && i + 1 < N) dot(acc[i + 1][v], word, load_weights(wk + DW_WORD + v * LANES * 4));
          }
        }
      }
    };
    if constexpr (TAPS_IN_ORDER) {
#pragma GCC unroll 5
      for (int ky = 0; ky < K; ++ky) one_row(ky);
    } else {
#pragma GCC unroll 1  // unrolled, GCC 12 transposes all pixels first, and spills them
      for (int ky = 0; ky < K; ++ky) one_row(ky);
    }
    w += K * WORDS * DW_WORD;
  }
  requant.template store<N, VECS>(acc, 0, dst);
}

// Two rows of N outputs of a 3x3 window of stride 1, for registers that hold a block and all its weights: a transposed
// vector serves up to four outputs. 8 + 6 + 1 registers of 32, and 6 of the requantisation.
template <int N>
inline __attribute__((always_inline)) void dw_u8_two_rows(const DwU8Args& d, const uint8_t* const* rows, ptrdiff_t x,
                                                          uint8_t* dst, const VecI (&w)[3][2],
                                                          const Requantizer& requant) {
  VecI acc[2][N][1];
#pragma GCC unroll 2
  for (int y = 0; y < 2; ++y) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) acc[y][i][0] = load_i32(d.bias);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < N; i += 2) {
      const Word word = Taps(rows[r] + (x + i) * BLOCK).word(0);
#pragma GCC unroll 2
      for (int y = 0; y < 2; ++y) {
        if (r - y < 0 || r - y > 2) continue;
        dot(acc[y][i][0], word, w[r - y][0]);
        if (i + 1 < N) dot(acc[y][i + 1][0], word, w[r - y][1]);
      }
    }
  }
  requant.template store<N, 1>(acc[0], 0, dst);
  requant.template store<N, 1>(acc[1], 0, dst + d.dst_stride);
}

// As many pairs of rows as there are; returns their rows.
inline ptrdiff_t dw_u8_pairs_of_rows(const DwU8Args& d, const Requantizer& requant) {
  if (d.passes != 1) return 0;
  VecI w[3][2];
#pragma GCC unroll 3
  for (int ky = 0; ky < 3; ++ky) {
    w[ky][0] = load_weights(d.w + 2 * ky * DW_WORD);
    w[ky][1] = load_weights(d.w + (2 * ky + 1) * DW_WORD);
  }
  ptrdiff_t y = 0;
  for (; y + 2 <= d.oh; y += 2) {
    const uint8_t* const* rows = d.rows + y;
    uint8_t* dst = d.dst + y * d.dst_stride;
    ptrdiff_t x = 0;
    for (; x + 4 <= d.ow; x += 4) dw_u8_two_rows<4>(d, rows, x, dst + x * BLOCK, w, requant);
    if (d.ow - x == 3) dw_u8_two_rows<3>(d, rows, x, dst + x * BLOCK, w, requant);
    if (d.ow - x == 2) dw_u8_two_rows<2>(d, rows, x, dst + x * BLOCK, w, requant);
    if (d.ow - x == 1) dw_u8_two_rows<1>(d, rows, x, dst + x * BLOCK, w, requant);
  }
  return y;
}

template <int K, int S>
void dw_u8(const DwU8Args& d) {
  const Requantizer requant(d.requant, d.scale);
  ptrdiff_t y = 0;
  if constexpr (K == 3 && S == 1 && VECS == 1 && REGISTERS >= 32) y = dw_u8_pairs_of_rows(d, requant);
  for (; y < d.oh; ++y) {
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
