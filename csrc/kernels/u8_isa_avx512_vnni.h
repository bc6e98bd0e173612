// AVX-512 with VNNI: a dot product of four bytes in every lane of 32 bits.
#pragma once

#include "kernels/u8_isa_zmm.h"

namespace fmn::FMN_ISA {
namespace {

// Sixteen tables of sixteen, one for each upper half of a byte.
inline void lookup_u8(const uint8_t* src, uint8_t* dst, ptrdiff_t n, const uint8_t* table) {
  __m512i part[16];
  for (int i = 0; i < 16; ++i) {
    part[i] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i)));
  }
  const __m512i low = _mm512_set1_epi8(15);
  for (ptrdiff_t at = 0; at < n; at += 64) {
    const __mmask64 mine = n - at >= 64 ? ~uint64_t{0} : (uint64_t{1} << (n - at)) - 1;
    const __m512i x = _mm512_maskz_loadu_epi8(mine, src + at);
    const __m512i index = _mm512_and_si512(x, low), upper = _mm512_andnot_si512(low, x);
    __m512i y = _mm512_shuffle_epi8(part[0], index);
#pragma GCC unroll 15
    for (int i = 1; i < 16; ++i) {
      const __mmask64 here = _mm512_cmpeq_epi8_mask(upper, _mm512_set1_epi8(static_cast<char>(16 * i)));
      y = _mm512_mask_shuffle_epi8(y, here, part[i], index);
    }
    _mm512_mask_storeu_epi8(dst + at, mine, y);
  }
}
// Four pixels, channel by channel: words of four channels to their lane of 128 bits, then 4x4 bytes inside of it.
struct Taps {
  __m512i words;
  inline __attribute__((always_inline)) explicit Taps(const uint8_t* p) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    words = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(order, _mm512_loadu_si512(p)), bytes);
  }
  Word word(int) const { return words; }
};

constexpr bool TAPS_IN_ORDER = false;  // the compiler may move a Taps
// Pictures become bytes in a plain loop.
constexpr RgbU8Fn rgb_u8 = nullptr;

}  // namespace
}  // namespace fmn::FMN_ISA
