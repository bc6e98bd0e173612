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

template <int KU, int MR, int NV>
inline __attribute__((always_inline)) void u8_steps(VecI (&acc)[MR][NV], const uint8_t* a, ptrdiff_t xs,
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
      for (int j = 0; j < NV; ++j) dot(acc[i][j], word, bv[j]);
    }
  }
}

template <int MR, int NB, int XS>
void gemm_u8(const GemmU8Args& g) {
  constexpr int NV = NB * VECS;
  const ptrdiff_t xs = XS ? XS : g.xs;
  const WordSegment* const end = g.segs + g.n_segs;
  const char* soon = g.prefetch;
  for (ptrdiff_t tile = 0; tile < g.tiles; ++tile) {
    VecI acc[MR][NV];
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) acc[i][j] = load_i32(g.bias + j * LANES);
    }
    const uint8_t* const first = g.a + tile * MR * xs * 4;
    const int8_t* b = g.b;
    for (const WordSegment* s = g.segs; s != end; ++s) {
      const uint8_t* a = first + s->offset;
      ptrdiff_t k = s->len;
      for (; k >= 4; k -= 4, a += 16, b += 4 * NV * LANES * 4) {
        // As many cache lines a step of k as in gemm.h would be more than there is to fetch.
        prefetch(soon);
        prefetch(soon + 64);
        prefetch(soon + 128);
        prefetch(soon + 192);
        soon += 256;
        u8_steps<4>(acc, a, xs, b);
      }
      for (; k > 0; --k, a += 4, b += NV * LANES * 4) u8_steps<1>(acc, a, xs, b);
    }
    uint8_t* const c = g.c + tile * MR * BLOCK;
#pragma GCC unroll 4
    for (int block = 0; block < NB; ++block) {
      const Requantizer r(g.requant, g.scale + block * BLOCK);
      r.template store<MR, NV>(acc, block * VECS, c + block * g.c_stride);
    }
  }
}

double u8_peak(ptrdiff_t steps) {
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
