// AVX2 without VNNI. vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits, with saturation. With
// the magnitude of the activation (0 to 128 after 128 is taken off) as the unsigned factor and the weight, -127 to 127,
// with the activation's sign as the signed one, two products are at most 2 * 128 * 127 = 32512: nothing saturates, and
// the sum is exact.
#pragma once

#include "kernels/u8_isa_ymm.h"

namespace fmn::FMN_ISA {
namespace {

struct Word {
  __m256i centred, magnitude;
};
constexpr int OFFSET = 128;
constexpr bool NEEDS_127 = true;

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
#else
inline Word load_word(const uint8_t* p) { return centre(broadcast_word(p)); }
inline __attribute__((always_inline)) void dot(VecI& acc, Word a, VecI w) {
  const __m256i pairs = _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8(w, a.centred));
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

struct Taps : RawTaps {
  using RawTaps::RawTaps;
  Word word(int v) const { return centre(words[v]); }
};

}  // namespace
}  // namespace fmn::FMN_ISA
