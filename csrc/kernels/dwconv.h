// Depthwise convolution of one block of 16 channels: rows of input pixels in, rows of output pixels out.
//
//   dst[y][x] = act(bias + sum_ky,kx rows[y * S + ky][x * S + kx] * w[ky][kx])
//
// The rows carry their left and right padding with them (the planner leaves room in the tensor), and a row
// above or below the picture is a row of zeros: there is no border case here.
//
// A tile is RH x RW outputs, and every input pixel of it is loaded once:
//   AVX-512 and NEON, 3x3: 2 x 7 outputs: 14 accumulators + 9 weights + 1 pixel = 24 of 32 registers,
//   the same, 5x5: 14 accumulators + the weights of a kernel row for each row of outputs, 10, + 1 pixel = 25 of 32,
//   5x5 of stride 2: 2 x 5 outputs (2 x 7 would spill), 7 % faster than 1 x 7 on Zen 4,
//   one row of outputs (RH = 1) reloads the K weights of a kernel row: 7 + K + 1 of 16 registers (AVX2).
// Each output sums ky outermost, kx inside, in one accumulator that starts from the bias.
// Tails: a row of ow outputs is cut into tiles of nearly equal width, each with code of its own.
#pragma once

#include "kernels/activation.h"

namespace fmn::FMN_ISA {
namespace {

constexpr int DW_MAX_WIDTH = 7;

// One vector (LANES channels) of a tile.
template <int K, int S, int RH, int RW>
inline __attribute__((always_inline)) void dw_tile(const float* const* rows, ptrdiff_t at, const float* w, Vec bias,
                                                   float* dst, ptrdiff_t dst_stride, const Finish& finish) {
  Vec acc[RH][RW];
#pragma GCC unroll 8
  for (int q = 0; q < RH; ++q) {
#pragma GCC unroll 8
    for (int x = 0; x < RW; ++x) acc[q][x] = bias;
  }
  constexpr bool KEEP = RH > 1 && K <= 3;  // all weights stay in registers
  Vec wv[KEEP ? K * K : RH * K];
  if constexpr (KEEP) {
#pragma GCC unroll 9
    for (int t = 0; t < K * K; ++t) wv[t] = load(w + t * BLOCK);
  }
#pragma GCC unroll 8
  for (int r = 0; r < (RH - 1) * S + K; ++r) {
    if constexpr (!KEEP) {
#pragma GCC unroll 8
      for (int q = 0; q < RH; ++q) {
        const int ky = r - q * S;
#pragma GCC unroll 8
        for (int t = 0; t < K; ++t) {
          if (ky >= 0 && ky < K) wv[q * K + t] = load(w + (ky * K + t) * BLOCK);
        }
      }
    }
    const float* row = rows[r] + at;
#pragma GCC unroll 32
    for (int c = 0; c < (RW - 1) * S + K; ++c) {
      const Vec v = load(row + c * BLOCK);
#pragma GCC unroll 8
      for (int q = 0; q < RH; ++q) {
#pragma GCC unroll 8
        for (int x = 0; x < RW; ++x) {
          const int ky = r - q * S, kx = c - x * S;
          if (ky >= 0 && ky < K && kx >= 0 && kx < K)
            acc[q][x] = fma(v, wv[KEEP ? ky * K + kx : q * K + kx], acc[q][x]);
        }
      }
    }
  }
  finish_tile(
      acc,
      finish, [&](int q, int x, Vec y) __attribute__((always_inline)) { store(dst + q * dst_stride + x * BLOCK, y); });
}

// RH rows of outputs, in tiles of width RW and, where ow leaves no other way, RW - 1.
template <int K, int S, int RH, int RW>
void dw_rows(const float* const* rows, const DwArgs& d, float* dst) {
  const ptrdiff_t tiles = (d.ow + RW - 1) / RW;
  const ptrdiff_t wide = tiles - (tiles * RW - d.ow);  // the others are one narrower
  const Finish finish(d.act);
  for (int v = 0; v < BLOCK; v += LANES) {
    const Vec bias = load(d.bias + v);
    ptrdiff_t x = 0;
    for (ptrdiff_t t = 0; t < tiles; ++t) {
      if (t < wide) {
        dw_tile<K, S, RH, RW>(rows, x * S * BLOCK + v, d.w + v, bias, dst + x * BLOCK + v, d.dst_stride, finish);
        x += RW;
      } else if constexpr (RW > 1) {
        dw_tile<K, S, RH, RW - 1>(rows, x * S * BLOCK + v, d.w + v, bias, dst + x * BLOCK + v, d.dst_stride, finish);
        x += RW - 1;
      }
    }
  }
}

template <int K, int S, int RH, int RW>
void dw_strip(const DwArgs& d) {
  ptrdiff_t y = 0;
  for (; y + RH <= d.oh; y += RH) dw_rows<K, S, RH, RW>(d.rows + y * S, d, d.dst + y * d.dst_stride);
  if constexpr (RH > 1) {
    for (; y < d.oh; ++y) dw_rows<K, S, 1, RW>(d.rows + y * S, d, d.dst + y * d.dst_stride);
  }
}

// The least RW <= MOST that needs no more tiles than RW = MOST does: then the tiles are RW or RW - 1 wide.
template <int K, int S, int RH>
void dw(const DwArgs& d) {
  constexpr int MOST = K == 5 && S == 2 && RH == 2 ? 5 : DW_MAX_WIDTH;
  const ptrdiff_t tiles = (d.ow + MOST - 1) / MOST;
  switch ((d.ow + tiles - 1) / tiles) {
    case 7:
      if constexpr (MOST >= 7) return dw_strip<K, S, RH, 7>(d);
      break;
    case 6:
      if constexpr (MOST >= 6) return dw_strip<K, S, RH, 6>(d);
      break;
    case 5: return dw_strip<K, S, RH, 5>(d);
    case 4: return dw_strip<K, S, RH, 4>(d);
    case 3: return dw_strip<K, S, RH, 3>(d);
    case 2: return dw_strip<K, S, RH, 2>(d);
    default: return dw_strip<K, S, RH, 1>(d);
  }
}

// Any kernel size, stride and dilation, one output at a time.
void dw_any(const DwArgs& d) {
  for (ptrdiff_t y = 0; y < d.oh; ++y) {
    for (ptrdiff_t x = 0; x < d.ow; ++x) {
      for (int v = 0; v < BLOCK; v += LANES) {
        Vec acc = load(d.bias + v);
        for (ptrdiff_t ky = 0; ky < d.kh; ++ky) {
          const float* row = d.rows[y * d.kh + ky] + x * d.stride_w * BLOCK + v;
          for (ptrdiff_t kx = 0; kx < d.kw; ++kx) {
            acc = fma(load(row + kx * d.dilation_w * BLOCK), load(d.w + (ky * d.kw + kx) * BLOCK + v), acc);
          }
        }
        store(d.dst + y * d.dst_stride + x * BLOCK + v, activate(acc, d.act));
      }
    }
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
