// AVX-512 with VNNI and VBMI: bytes go anywhere in one shuffle.
#pragma once

#include "kernels/u8_isa_zmm.h"

namespace fmn::FMN_ISA {
namespace {

// Byte 4 * i + j: channel i of pixel j of four.
alignas(64) const uint8_t BY_CHANNEL[64] = {0,  16, 32, 48, 1,  17, 33, 49, 2,  18, 34, 50, 3,  19, 35, 51,
                                            4,  20, 36, 52, 5,  21, 37, 53, 6,  22, 38, 54, 7,  23, 39, 55,
                                            8,  24, 40, 56, 9,  25, 41, 57, 10, 26, 42, 58, 11, 27, 43, 59,
                                            12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};

// Four pixels, channel by channel.
struct Taps {
  __m512i words;
  inline __attribute__((always_inline)) explicit Taps(const uint8_t* p) {
    const __m512i order = _mm512_load_si512(BY_CHANNEL);
#if defined(__GNUC__) && !defined(FMN_PLAIN_INTRINSICS)
    asm volatile("vpermb %2, %1, %0" : "=v"(words) : "v"(order), "m"(*reinterpret_cast<const __m512i_u*>(p)));
#else
    words = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(p));
#endif
  }
  Word word(int) const { return words; }
};

constexpr bool TAPS_IN_ORDER = true;

// Two tables of 128, by the upper bit.
struct Table {
  __m512i part[4];
  explicit Table(const uint8_t* table) {
    for (int i = 0; i < 4; ++i) part[i] = _mm512_loadu_si512(table + 64 * i);
  }
  __m512i operator()(__m512i x) const {
    const __m512i low = _mm512_permutex2var_epi8(part[0], x, part[1]);
    const __m512i high = _mm512_permutex2var_epi8(part[2], x, part[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(x), high);
  }
};

inline void lookup_u8(const uint8_t* src, uint8_t* dst, ptrdiff_t n, const uint8_t* table) {
  const Table look_up(table);
  ptrdiff_t at = 0;
  for (; at + 64 <= n; at += 64) _mm512_storeu_si512(dst + at, look_up(_mm512_loadu_si512(src + at)));
  for (; at < n; at += 16) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + at));
    const __m128i y = _mm512_castsi512_si128(look_up(_mm512_castsi128_si512(x)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + at), y);
  }
}

// Sixteen pixels at a time: f changes their bytes.
template <class F>
inline __attribute__((always_inline)) void rgb_words(const uint8_t* src, uint8_t* dst, ptrdiff_t pixels, F f) {
  const __m512i order =
      _mm512_setr_epi32(0x020100, 0x050403, 0x080706, 0x0b0a09, 0x0e0d0c, 0x11100f, 0x141312, 0x171615, 0x1a1918,
                        0x1d1c1b, 0x201f1e, 0x232221, 0x262524, 0x292827, 0x2c2b2a, 0x2f2e2d);
  ptrdiff_t at = 0;
  for (; at + 16 <= pixels; at += 16) {
    const __m512i packed = _mm512_maskz_loadu_epi8((uint64_t{1} << 48) - 1, src + 3 * at);
    _mm512_storeu_si512(dst + 4 * at, f(_mm512_permutexvar_epi8(order, packed)));
  }
  if (at < pixels) {
    const ptrdiff_t rest = pixels - at;
    const __m512i packed = _mm512_maskz_loadu_epi8((uint64_t{1} << (3 * rest)) - 1, src + 3 * at);
    const auto mine = static_cast<__mmask16>((1u << rest) - 1);
    _mm512_mask_storeu_epi32(dst + 4 * at, mine, f(_mm512_permutexvar_epi8(order, packed)));
  }
}

void rgb_u8(const uint8_t* src, uint8_t* dst, ptrdiff_t pixels, const uint8_t* tables, uint8_t fourth) {
  const __m512i last = _mm512_set1_epi8(static_cast<char>(fourth));
  constexpr uint64_t CHANNEL = 0x1111111111111111;
  if (tables == nullptr) {
    rgb_words(src, dst, pixels, [&](__m512i x) { return _mm512_mask_mov_epi8(x, CHANNEL << 3, last); });
    return;
  }
  const Table r(tables), g(tables + 256), b(tables + 512);
  rgb_words(src, dst, pixels, [&](__m512i x) {
    const __m512i rg = _mm512_mask_mov_epi8(r(x), CHANNEL << 1, g(x));
    return _mm512_mask_mov_epi8(_mm512_mask_mov_epi8(rg, CHANNEL << 2, b(x)), CHANNEL << 3, last);
  });
}

}  // namespace
}  // namespace fmn::FMN_ISA
