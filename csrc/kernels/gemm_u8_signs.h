// The tile of quantised convolutions for ISAs without a dot product of bytes: gemm_u8.h with magnitudes and signs.
//
// The AVX2 instruction that adds two products of bytes takes an unsigned and a signed one, and saturates at 16 bits.
// With x = a - 128, m = |x|, s = -1 where x < 0 and 0 elsewhere, bit by bit:
//
//   x * w = m * (w ^ s) + (x < 0 ? m : 0)           as -w = (w ^ -1) + 1
//
// Two products are within 2 * 128 * -128 and 2 * 128 * 127: all sums are exact, for all weights. The second term does
// not depend on the weights: its sum is added once for a pixel. m and s of a tile's pixels, and that sum, are made once
// for all blocks of a panel; the weights of a panel are [block][k][16][4]. The bias makes up for the 128 (OFFSET).
#pragma once

#include "kernels/gemm_u8.h"

namespace fmn::FMN_ISA {
namespace {

// MR pixels, `row` bytes from each other, with m and s of a word side by side, by KU words of weights.
template <int KU, int MR>
inline __attribute__((always_inline)) void sign_steps(VecI (&acc)[MR][VECS], const uint8_t* a, ptrdiff_t row,
                                                      const int8_t* b) {
#pragma GCC unroll 8
  for (int k = 0; k < KU; ++k) {
    VecI w[VECS];
#pragma GCC unroll 2
    for (int j = 0; j < VECS; ++j) w[j] = load_weights(b + (k * VECS + j) * LANES * 4);
#pragma GCC unroll 5
    for (int i = 0; i < MR; ++i) dot_signs(acc[i], a + i * row + k * SIGNS_WORD, w);
  }
}

template <int MR>
void gemm_u8_signs(const GemmU8Args& g) {
  constexpr ptrdiff_t STEP = VECS * LANES * 4;  // bytes of weights for a word
  const WordSegment* const end = g.segs + g.n_segs;
  const char* soon = g.prefetch;
  const uint8_t* row_a = g.a;
  uint8_t* row_c = g.c;
  const ptrdiff_t all = g.tiles * g.rows;
  for (ptrdiff_t done = 0, tile = 0; done < all; ++done) {
    const uint8_t* const first = row_a + tile * MR * g.xs * 4;
    uint8_t* signs = g.signs;
    VecI below[(MR + 1) / 2];
#pragma GCC unroll 3
    for (int i = 0; i < MR; i += 2) below[i / 2] = zero_i32();
    for (const WordSegment* s = g.segs; s != end; ++s) {
      for (ptrdiff_t k = 0; k < s->len; k += U8_WORDS) {
        const uint8_t* a = first + s->offset + k * 4;
        const ptrdiff_t words = s->len - k < U8_WORDS ? s->len - k : U8_WORDS;
        const VecI mask = words_mask(words);
#pragma GCC unroll 3
        for (int i = 0; i < MR; i += 2) {  // the last of an odd number is done twice
          const int j = i + 1 < MR ? i + 1 : i;
          const VecI sums =
              split_signs(a + i * g.xs * 4, a + j * g.xs * 4, mask, signs + i * g.signs_row, signs + j * g.signs_row);
          below[i / 2] = add_sums(below[i / 2], sums);
        }
        signs += words * SIGNS_WORD;
      }
    }
    const ptrdiff_t words = (signs - g.signs) / SIGNS_WORD;
    VecI extra[MR + 1];
#pragma GCC unroll 3
    for (int i = 0; i < MR; i += 2) sums_of_pixels(below[i / 2], &extra[i], &extra[i + 1]);
    uint8_t* c = row_c + tile * MR * BLOCK;
    const int8_t* b = g.b;
    for (ptrdiff_t block = 0; block < g.blocks; ++block, c += g.c_stride) {
      VecI acc[MR][VECS];
#pragma GCC unroll 5
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < VECS; ++j) {
          acc[i][j] = add_i32(load_i32(g.bias + block * BLOCK + j * LANES), extra[i]);
        }
      }
      const uint8_t* a = g.signs;
      ptrdiff_t left = words;
      for (; left >= U8_WORDS; left -= U8_WORDS, a += U8_WORDS * SIGNS_WORD, b += U8_WORDS * STEP, soon += 128) {
        prefetch(soon);
        prefetch(soon + 64);
        sign_steps<U8_WORDS, MR>(acc, a, g.signs_row, b);
      }
      for (; left > 0; --left, a += SIGNS_WORD, b += STEP) sign_steps<1, MR>(acc, a, g.signs_row, b);
      const Requantizer r(g.requant, g.scale + block * BLOCK);
      r.template store<MR, VECS>(acc, 0, c);
    }
    if (++tile == g.tiles) {
      tile = 0;
      row_a += g.a_row;
      row_c += g.c_row;
    }
  }
}

double signs_peak(ptrdiff_t steps) {
  constexpr int CHAINS = 5;
  static const uint8_t word[SIGNS_WORD] = {};  // the time does not depend on the values
  static const int8_t weights[VECS * LANES * 4] = {};
  const VecI w[VECS] = {load_weights(weights), load_weights(weights + LANES * 4)};
  VecI acc[CHAINS][VECS];
#pragma GCC unroll 5
  for (int i = 0; i < CHAINS; ++i) acc[i][0] = acc[i][1] = zero_i32();
  for (ptrdiff_t s = 0; s < steps; ++s) {
#pragma GCC unroll 5
    for (int i = 0; i < CHAINS; ++i) dot_signs(acc[i], word, w);
  }
  alignas(64) int32_t sink[16];
  VecI sum = zero_i32();
#pragma GCC unroll 5
  for (int i = 0; i < CHAINS; ++i) sum = add_i32(sum, add_i32(acc[i][0], acc[i][1]));
  store_i32(sink, sum);
  volatile int32_t keep = sink[0];
  (void)keep;
  return 2.0 * 4 * LANES * VECS * CHAINS * static_cast<double>(steps);
}

}  // namespace
}  // namespace fmn::FMN_ISA
