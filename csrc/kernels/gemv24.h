// The matrix-vector product of gemv.h with weights of 24 bits, of which a run reads three quarters of the bytes: large
// dense layers do nothing but wait for their weights.
//
// A weight is an integer of 31 bits and a sign, of which the lowest byte is free to be anything: four steps of k of 16
// outputs lie in three rows of 16 words,
//
//   word 0 | word 1 | word 2: the weights of the first three, whose low bytes are the fourth
//
// and nobody takes the low bytes out of the three: they were made of what is left when these are given
// (runtime/weights24.h), so that a word is as near to its weight as without. The fourth costs three shifts, and moves
// of a word to a float are exact but for the rounding of large ones.
//
//   dst[o] = act(bias[o] + scale[o] * sum_k x[k] * word[k][o] + add[o])
#pragma once

#include "kernels/activation.h"
#include "kernels/gemm.h"

namespace fmn::FMN_ISA {
namespace {

constexpr ptrdiff_t FETCH_24 = 8 * GEMV24_STEP;  // as in gemv.h

template <int NB>
void gemv24_blocks(const Gemv24Args& g, ptrdiff_t block) {
  constexpr int NV = NB * VECS;
  const ptrdiff_t stride = g.steps * GEMV24_STEP;
  const int32_t* b = g.b + block * stride;
  const float* x = g.x;
  Vec even[NV], odd[NV];
#pragma GCC unroll 16
  for (int j = 0; j < NV; ++j) even[j] = odd[j] = zero();
  for (ptrdiff_t step = 0; step < g.steps; ++step, b += GEMV24_STEP, x += 4) {
    if (g.fetch_ahead) {
#pragma GCC unroll 16
      for (int j = 0; j < 3 * NB; ++j) {
        fetch(reinterpret_cast<const float*>(b + (j / 3) * stride + (j % 3) * BLOCK + FETCH_24));
      }
    }
    const Vec x0 = set1(x[0]), x1 = set1(x[1]), x2 = set1(x[2]), x3 = set1(x[3]);
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      const int32_t* const from = b + (j / VECS) * stride + (j % VECS) * LANES;
      const Words w0 = load_words(from), w1 = load_words(from + BLOCK), w2 = load_words(from + 2 * BLOCK);
      even[j] = fma(x0, to_floats(w0), even[j]);
      odd[j] = fma(x1, to_floats(w1), odd[j]);
      even[j] = fma(x2, to_floats(w2), even[j]);
      odd[j] = fma(x3, to_floats(low_bytes(w0, w1, w2)), odd[j]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < NV; ++j) {
    const ptrdiff_t at = block * BLOCK + j * LANES;
    Vec sum = fma(plus(even[j], odd[j]), load(g.scale + at), load(g.bias + at));
    if (g.add != nullptr) sum = plus(sum, load(g.add + at));
    store(g.dst + at, activate(sum, g.act));
  }
}

// So many blocks at a time that half of the registers are sums, which also gives several streams.
void gemv24(const Gemv24Args& g) {
  constexpr int NB = REGISTERS * LANES >= 512 ? 4 : REGISTERS * LANES >= 128 ? 2 : 1;
  ptrdiff_t block = 0;
  for (; block + NB <= g.n_blocks; block += NB) gemv24_blocks<NB>(g, block);
  for (; block < g.n_blocks; ++block) gemv24_blocks<1>(g, block);
}

}  // namespace
}  // namespace fmn::FMN_ISA
