// The tile of quantised convolutions: gemm.h with bytes for floats. A word of four channels is broadcast and multiplied
// into lanes of 32 bits:
//
//   sum[i][o] = bias[o] + sum_k dot4(a[i][k], b[k][o])     c = clamp(rint(float(sum) * scale[o]) + zero)
//
// B is packed once, in panels [k][NB * 16][4]. Sums are exact, so that every ISA gives the same bytes.
#pragma once

#include "runtime/u8_table.h"

namespace fmn::FMN_ISA {
namespace {

constexpr int BLOCK = 16;
constexpr int VECS = BLOCK / LANES;  // vectors in a block

// Step k adds to sum k % CHAINS: so many dot products follow each other without waiting.
template <int KU, int MR, int NV, int CHAINS>
inline __attribute__((always_inline)) void u8_steps(VecI (&acc)[CHAINS][MR][NV], const uint8_t* a, ptrdiff_t xs,
                                                    const int8_t* b) {
#pragma GCC unroll 8
  for (int k = 0; k < KU; ++k) {
    VecI bv[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) bv[j] = load_weights(b + (k * NV + j) * LANES * 4);
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      const Word word = load_word(a + (i * xs + k) * 4);
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) dot(acc[k % CHAINS][i][j], word, bv[j]);
    }
  }
}

template <int MR, int NB, int XS>
void gemm_u8(const GemmU8Args& g) {
  constexpr int NV = NB * VECS;
  // The latency is four; the sums of few pixels are split, which changes nothing: they are exact.
  constexpr int CHAINS = MR * NV <= 2 && REGISTERS >= 32 ? 4 : MR * NV <= 4 ? 2 : 1;
  const ptrdiff_t xs = XS ? XS : g.xs;
  const WordSegment* const end = g.segs + g.n_segs;
  const char* soon = g.prefetch;
  const uint8_t* row_a = g.a;
  uint8_t* row_c = g.c;
  const ptrdiff_t all = g.tiles * g.rows;
  for (ptrdiff_t done = 0, tile = 0; done < all; ++done) {
    VecI acc[CHAINS][MR][NV];
#pragma GCC unroll 4
    for (int s = 0; s < CHAINS; ++s) {
#pragma GCC unroll 32
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < NV; ++j) acc[s][i][j] = s == 0 ? load_i32(g.bias + j * LANES) : zero_i32();
      }
    }
    const uint8_t* const first = row_a + tile * MR * xs * 4;
    const int8_t* b = g.b;
    const WordSegment* s = g.segs;
    // Not a loop that may not run at all: GCC 12 then moves all sums to other registers and back.
    do {
      const uint8_t* a = first + s->offset;
      if (s->len == U8_WORDS) {
        // As many cache lines a step of k as in gemm.h would be more than there is to fetch.
        prefetch(soon);
        prefetch(soon + 64);
        prefetch(soon + 128);
        prefetch(soon + 192);
        soon += 256;
        u8_steps<U8_WORDS, MR, NV, CHAINS>(acc, a, xs, b);
        b += U8_WORDS * NV * LANES * 4;
      } else {
        for (ptrdiff_t k = s->len; k > 0; --k, a += 4, b += NV * LANES * 4) {
          u8_steps<1, MR, NV, CHAINS>(acc, a, xs, b);
        }
      }
    } while (++s != end);
#pragma GCC unroll 4
    for (int s = 1; s < CHAINS; ++s) {
#pragma GCC unroll 4
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[0][i][j] = add_i32(acc[0][i][j], acc[s][i][j]);
      }
    }
    uint8_t* const c = row_c + tile * MR * BLOCK;
    if (++tile == g.tiles) {
      tile = 0;
      row_a += g.a_row;
      row_c += g.c_row;
    }
#pragma GCC unroll 4
    for (int block = 0; block < NB; ++block) {
      const Requantizer r(g.requant, g.scale + block * BLOCK);
      r.template store<MR, NV>(acc[0], block * VECS, c + block * g.c_stride);
    }
  }
}

// The same for ISAs whose vectors are whole blocks, with room for two tiles: while a tile is multiplied, the sums of
// the one before it become bytes, a few after each of its first steps. The two take different ports, but too many
// instructions lie between them for the CPU to find that by itself: 60 to 70 cycles a tile of 28 vectors (Zen 4).
// 14 + 14 + 2 + 1 registers of 32; scales and bounds come from memory.
template <int PART, int MR, int NB>
inline __attribute__((always_inline)) void finish_part(const GemmU8Args& g, const VecI (&acc)[1][MR][NB], uint8_t* c) {
  constexpr int GROUPS = (MR + 3) / 4;
  if constexpr (PART < GROUPS * NB) {
    constexpr int block = PART / GROUPS, first = PART % GROUPS * 4, count = MR - first < 4 ? MR - first : 4;
    VecI some[count][1];
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i) some[i][0] = acc[0][first + i][block];
    const Requantizer r(g.requant, g.scale + block * BLOCK);
    r.template store<count, 1>(some, 0, c + block * g.c_stride + first * BLOCK);
  }
}

template <int MR, int NB, int XS>
void gemm_u8_overlapped(const GemmU8Args& g) {
  constexpr int FIRST =
      XS == 2 ? 3 : U8_WORDS;  // words of a usual first segment: a row of 3x3 of a picture, or a block
  const ptrdiff_t xs = XS ? XS : g.xs;
  const WordSegment* const end = g.segs + g.n_segs;
  const char* soon = g.prefetch;
  const uint8_t* row_a = g.a;
  uint8_t* row_c = g.c;
  uint8_t* c_before = nullptr;
  VecI before[1][MR][NB];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NB; ++j) before[0][i][j] = zero_i32();
  }
  const ptrdiff_t all = g.tiles * g.rows;
  for (ptrdiff_t done = 0, tile = 0; done < all; ++done) {
    VecI acc[1][MR][NB];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < NB; ++j) acc[0][i][j] = load_i32(g.bias + j * LANES);
    }
    const uint8_t* const first = row_a + tile * MR * xs * 4;
    const int8_t* b = g.b;
    const WordSegment* s = g.segs;
    const uint8_t* a = first + s->offset;
    if (s->len == FIRST) {
      prefetch(soon);
      prefetch(soon + 64);
      soon += 128;
      u8_steps<1, MR, NB, 1>(acc, a, xs, b);
      if (c_before != nullptr) finish_part<0, MR, NB>(g, before, c_before);
      u8_steps<1, MR, NB, 1>(acc, a + 4, xs, b + NB * 64);
      if (c_before != nullptr) finish_part<1, MR, NB>(g, before, c_before);
      u8_steps<1, MR, NB, 1>(acc, a + 8, xs, b + 2 * NB * 64);
      if (c_before != nullptr) finish_part<2, MR, NB>(g, before, c_before);
      if constexpr (FIRST == 4) u8_steps<1, MR, NB, 1>(acc, a + 12, xs, b + 3 * NB * 64);
      if (c_before != nullptr) finish_part<3, MR, NB>(g, before, c_before);
      b += FIRST * NB * 64;
    } else {
      for (ptrdiff_t k = s->len; k > 0; --k, a += 4, b += NB * 64) u8_steps<1, MR, NB, 1>(acc, a, xs, b);
      if (c_before != nullptr) {
        finish_part<0, MR, NB>(g, before, c_before);
        finish_part<1, MR, NB>(g, before, c_before);
        finish_part<2, MR, NB>(g, before, c_before);
        finish_part<3, MR, NB>(g, before, c_before);
      }
    }
    while (++s != end) {
      a = first + s->offset;
      if (s->len == FIRST) {
        prefetch(soon);
        prefetch(soon + 64);
        soon += 128;
        u8_steps<FIRST, MR, NB, 1>(acc, a, xs, b);
        b += FIRST * NB * 64;
      } else {
        for (ptrdiff_t k = s->len; k > 0; --k, a += 4, b += NB * 64) u8_steps<1, MR, NB, 1>(acc, a, xs, b);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < NB; ++j) before[0][i][j] = acc[0][i][j];
    }
    c_before = row_c + tile * MR * BLOCK;
    if (++tile == g.tiles) {
      tile = 0;
      row_a += g.a_row;
      row_c += g.c_row;
    }
  }
  finish_part<0, MR, NB>(g, before, c_before);
  finish_part<1, MR, NB>(g, before, c_before);
  finish_part<2, MR, NB>(g, before, c_before);
  finish_part<3, MR, NB>(g, before, c_before);
}

// The kernel of a tile: overlapped where the ISA has the registers and the tile is not too small.
template <int MR, int NB, int XS>
constexpr GemmU8Fn gemm_u8_kernel() {
  if constexpr (VECS == 1 && REGISTERS >= 32 && MR >= 4 && MR * NB <= 14) {
    return gemm_u8_overlapped<MR, NB, XS>;
  } else {
    return gemm_u8<MR, NB, XS>;
  }
}

[[maybe_unused]] double u8_peak(ptrdiff_t steps) {
  constexpr int CHAINS = REGISTERS >= 32 ? 24 : 10;
  alignas(64) uint8_t bytes[64];
  alignas(64) int8_t weights[64];
  for (int i = 0; i < 64; ++i) {
    bytes[i] = static_cast<uint8_t>(i);
    weights[i] = static_cast<int8_t>(i);
  }
  const Word word = load_word(bytes);
  const VecI w = load_weights(weights);
  VecI acc[CHAINS];
#pragma GCC unroll 24
  for (int i = 0; i < CHAINS; ++i) acc[i] = zero_i32();
  for (ptrdiff_t s = 0; s < steps; ++s) {
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; ++i) {
      acc[i] = opaque(acc[i]);
      dot(acc[i], word, w);
    }
  }
  alignas(64) int32_t sink[16];
  VecI sum = acc[0];
#pragma GCC unroll 24
  for (int i = 1; i < CHAINS; ++i) sum = add_i32(sum, acc[i]);
  store_i32(sink, sum);
  volatile int32_t keep = sink[0];
  (void)keep;
  return 2.0 * 4 * LANES * CHAINS * static_cast<double>(steps);
}

}  // namespace
}  // namespace fmn::FMN_ISA
