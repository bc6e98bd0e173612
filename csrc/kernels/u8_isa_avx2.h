// AVX2 without VNNI. vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits, with saturation. With
// the magnitude of the activation (0 to 128 after 128 is taken off) as the unsigned factor and the weight, -127 to 127,
// with the activation's sign as the signed one, two products are at most 2 * 128 * 127 = 32512: nothing saturates, and
// the sum is exact. Convolutions have ways that are faster: gemm_u8_signs.h, dwconv_u8_pairs.h.
#pragma once

#include "kernels/u8_isa_ymm.h"

namespace fmn::FMN_ISA {
namespace {

struct Word {
  __m256i centred, magnitude;
};
constexpr int OFFSET = 128;
constexpr bool NEEDS_127 = true;
constexpr bool PAIRWISE = true;
constexpr int PANEL_BLOCKS = 32;
constexpr int SIGNS_WORD = 8;  // bytes of four magnitudes and their signs

inline Word centre(__m256i bytes) {
  const __m256i centred = _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
  return {centred, _mm256_abs_epi8(centred)};
}
inline Word load_bytes(const uint8_t* p) { return centre(widen_bytes(p)); }

#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
// Volatile, so that they stay in order: GCC 12 otherwise moves loads ahead and spills.
inline Word load_word(const uint8_t* p) {
  __m256i centred, magnitude;
  asm volatile("vpbroadcastd %[p], %[c]\n\tvpxor %[x], %[c], %[c]\n\tvpabsb %[c], %[m]"
               : [c] "=&x"(centred), [m] "=x"(magnitude)
               : [p] "m"(*reinterpret_cast<const uint32_t*>(p)), [x] "x"(_mm256_set1_epi8(static_cast<char>(0x80))));
  return {centred, magnitude};
}
inline __attribute__((always_inline)) void dot(VecI& acc, Word a, VecI w) {
  __m256i t;
  asm volatile(
      "vpsignb %[s], %[w], %[t]\n\tvpmaddubsw %[t], %[m], %[t]\n\tvpmaddwd %[o], %[t], %[t]\n\t"
      "vpaddd %[t], %[acc], %[acc]"
      : [acc] "+x"(acc), [t] "=&x"(t)
      : [w] "x"(w), [s] "x"(a.centred), [m] "x"(a.magnitude), [o] "x"(_mm256_set1_epi16(1)));
}
// One word by two vectors of weights. Ten sums, two vectors of weights and the ones leave three registers: GCC 12
// spills if it may choose.
inline __attribute__((always_inline)) void dot_signs(VecI (&acc)[2], const uint8_t* p, const VecI (&w)[2]) {
  struct Pair {
    uint32_t magnitudes, signs;
  };
  asm volatile(
      "vpbroadcastd %[m], %%ymm13\n\tvpbroadcastd 4+%[m], %%ymm14\n\t"
      "vpxor %[w0], %%ymm14, %%ymm15\n\tvpmaddubsw %%ymm15, %%ymm13, %%ymm15\n\t"
      "vpxor %[w1], %%ymm14, %%ymm14\n\tvpmaddubsw %%ymm14, %%ymm13, %%ymm14\n\t"
      "vpmaddwd %[o], %%ymm15, %%ymm15\n\tvpaddd %%ymm15, %[acc0], %[acc0]\n\t"
      "vpmaddwd %[o], %%ymm14, %%ymm14\n\tvpaddd %%ymm14, %[acc1], %[acc1]"
      : [acc0] "+x"(acc[0]), [acc1] "+x"(acc[1])
      : [m] "m"(*reinterpret_cast<const Pair*>(p)), [w0] "x"(w[0]), [w1] "x"(w[1]), [o] "x"(_mm256_set1_epi16(1))
      : "xmm13", "xmm14", "xmm15");
}
#else
inline Word load_word(const uint8_t* p) { return centre(broadcast_word(p)); }
inline __attribute__((always_inline)) void dot_signs(VecI (&acc)[2], const uint8_t* p, const VecI (&w)[2]) {
  const __m256i m = broadcast_word(p), s = broadcast_word(p + 4);
  for (int j = 0; j < 2; ++j) {
    const __m256i pairs = _mm256_maddubs_epi16(m, _mm256_xor_si256(w[j], s));
    acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}
inline __attribute__((always_inline)) void dot(VecI& acc, Word a, VecI w) {
  const __m256i pairs = _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8(w, a.centred));
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

// Four words of two pixels: the magnitude and the sign of each word side by side. Returns the sums of the magnitudes of
// negative values, of each pixel in its half, and counts only bytes where `mask` has all bits. Reads 16 bytes of a
// pixel and writes 32.
inline __m256i split_signs(const uint8_t* a, const uint8_t* b, __m256i mask, uint8_t* to_a, uint8_t* to_b) {
  const __m256i both =
      _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))),
                              _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)), 1);
  const __m256i x = _mm256_xor_si256(both, _mm256_set1_epi8(-128));
  const __m256i m = _mm256_abs_epi8(x), s = _mm256_cmpgt_epi8(_mm256_setzero_si256(), x);
  const __m256i lo = _mm256_unpacklo_epi32(m, s), hi = _mm256_unpackhi_epi32(m, s);
  auto* const p = reinterpret_cast<__m128i*>(to_a);
  auto* const q = reinterpret_cast<__m128i*>(to_b);
  _mm_storeu_si128(p, _mm256_castsi256_si128(lo));
  _mm_storeu_si128(p + 1, _mm256_castsi256_si128(hi));
  _mm_storeu_si128(q, _mm256_extracti128_si256(lo, 1));
  _mm_storeu_si128(q + 1, _mm256_extracti128_si256(hi, 1));
  return _mm256_sad_epu8(_mm256_and_si256(_mm256_and_si256(m, s), mask), _mm256_setzero_si256());
}
// All bits in the bytes of the first `words` words, of two pixels.
inline __m256i words_mask(ptrdiff_t words) {
  alignas(16) static const uint8_t bits[32] = {255, 255, 255, 255, 255, 255, 255, 255,
                                               255, 255, 255, 255, 255, 255, 255, 255};
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits + 16 - 4 * words)));
}
inline __m256i add_sums(__m256i a, __m256i b) { return _mm256_add_epi64(a, b); }
// The sum of each half in all lanes.
inline void sums_of_pixels(__m256i sums, VecI* first, VecI* second) {
  const __m256i both = _mm256_add_epi64(sums, _mm256_shuffle_epi32(sums, 0x4e));
  *first = _mm256_broadcastd_epi32(_mm256_castsi256_si128(both));
  *second = _mm256_broadcastd_epi32(_mm256_extracti128_si256(both, 1));
}

// The pixels of two rows, side by side in 16 bits: channels 0 to 7, and 8 to 15.
inline void pair_rows(const uint8_t* first, const uint8_t* second, VecI (&pair)[2]) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
  pair[0] = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
  pair[1] = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
}
inline __attribute__((always_inline)) void dot_pairs(VecI& acc, VecI a, const int8_t* w) {
#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
  VecI t;
  asm volatile("vpmaddwd %[w], %[a], %[t]\n\tvpaddd %[t], %[acc], %[acc]"
               : [acc] "+x"(acc), [t] "=&x"(t)
               : [w] "m"(*reinterpret_cast<const __m256i_u*>(w)), [a] "x"(a));
#else
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, load_weights(w)));
#endif
}

struct Taps : RawTaps {
  using RawTaps::RawTaps;
  Word word(int v) const { return centre(words[v]); }
};

}  // namespace
}  // namespace fmn::FMN_ISA
