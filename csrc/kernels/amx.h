// Dense convolutions of floats on the tile unit of AMX, which multiplies bfloat16 only, but 16 times as many in a cycle
// as a core multiplies floats.
//
// A float has 24 bits of significand, a bfloat16 has 8, so that a float is exactly the sum of three: x = x1 + x2 + x3,
// each what is left, rounded. Of the nine products of parts six are made,
//
//   a b = a1 b1 + (a1 b2 + a2 b1) + (a1 b3 + a2 b2 + a3 b1) + ..,
//
// and the others are below 2^-24 of a b, the rounding of a float product. What is multiplied is therefore what plain
// sums multiply, at 16 / 6 times their speed. The sums are floats, of 32 channels at a time: fewer roundings.
//
// The unit has 8 tiles of 16 rows of 64 bytes. C is 16 pixels x 16 channels of floats: rows of it are pixels of a
// block, as they lie in memory. A is 16 pixels x 32 channels, B is 16 x 16 x 2: 16 pairs of channels of 16 output
// channels. A pair is one channel of each of two segments, so that splitting needs no shuffle:
//
//   plane 0 of a pixel: | x1 of channel 0 of s | x1 of channel 0 of t | x1 of channel 1 of s | ...   32 x 2 bytes
//   plane 1: x2, plane 2: x3
//
// A last segment that has no partner is its own: its planes hold the pairs (x1, x2) and (x1, x3), its weights (b1, b1),
// (b2, b2) and (b3, b1), which makes the six products in three steps.
//
// A window of several pixels reads the same planes at other pixels (AmxArgs::taps). An infinity gives NaN, as what is
// left of it is NaN; so does a value that rounds to one.
//
// A product takes as many cycles as A has rows, and 52 until its sum can be used: four sums, two by two, keep the unit
// busy: 32 pixels and 32 channels. Both halves of a tile have the same number of rows, and share one where it is odd.
// For a single block two pixels by two: products with b1, and the others.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "kernels/activation.h"
#include "kernels/overlapped.h"

namespace fmn::FMN_ISA {
namespace {

// GCC 12's own functions do not say that they read and write memory.
#define FMN_TILE_LOAD(T, P, STRIDE) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #T : : "r"(P), "r"(static_cast<ptrdiff_t>(STRIDE)) : "memory")
#define FMN_TILE_STORE(T, P) \
  asm volatile("tilestored %%tmm" #T ", (%0,%1,1)" : : "r"(P), "r"(static_cast<ptrdiff_t>(64)) : "memory")
#define FMN_TILE_FMA(C, A, B) asm volatile("tdpbf16ps %%tmm" #B ", %%tmm" #A ", %%tmm" #C : : : "memory")
#define FMN_TILE_ZERO(T) asm volatile("tilezero %%tmm" #T : : : "memory")

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfig(uint8_t pixels) {
    for (int t = 0; t < 8; ++t) {
      row_bytes[t] = 64;
      rows[t] = t < 6 ? pixels : 16;  // 0 to 3: C, 4 and 5: A, 6 and 7: B
    }
  }
};

// Four sums of NB = 2: C0 C1 are the first pixels, C2 C3 the others. The order needs few loads of A and B.
struct Products2 {
  static void a(const char* p, ptrdiff_t xs, ptrdiff_t second) {
    FMN_TILE_LOAD(4, p, xs);
    FMN_TILE_LOAD(5, p + second, xs);
  }
  static void b(const char* p) {
    FMN_TILE_LOAD(6, p, 64);
    FMN_TILE_LOAD(7, p + AMX_TILE, 64);
  }
  static void multiply() {
    FMN_TILE_FMA(0, 4, 6);
    FMN_TILE_FMA(1, 4, 7);
    FMN_TILE_FMA(2, 5, 6);
    FMN_TILE_FMA(3, 5, 7);
  }
  static void multiply_small() { multiply(); }
};

// NB = 1: C0 and C2 are the sums of products with b1, C1 and C3 of the others.
struct Products1 {
  static void a(const char* p, ptrdiff_t xs, ptrdiff_t second) { Products2::a(p, xs, second); }
  static void b(const char* p) { FMN_TILE_LOAD(6, p, 64); }
  static void multiply() {
    FMN_TILE_FMA(0, 4, 6);
    FMN_TILE_FMA(2, 5, 6);
  }
  static void multiply_small() {
    FMN_TILE_FMA(1, 4, 6);
    FMN_TILE_FMA(3, 5, 6);
  }
};

// The sums of the last tiles as they were stored, and what becomes of them while the next ones are multiplied: the unit
// multiplies beside the core, which would wait for it otherwise. A tile is finished when the one behind it is complete.
template <int NB, Behind B>
class AmxFinish {
 public:
  explicit AmxFinish(const AmxArgs& g)
      : g_(g), c_gap_(g.c_pitch - g.row_width * BLOCK), add_gap_(g.add_pitch - g.row_width * BLOCK) {}

  // Where the sums of the next tile go: pixels of block 0, and AMX_PIXELS * BLOCK behind those of block 1.
  float* sums() { return sums_of(count_); }
  // It begins with this pixel, of which the first `done` belong to the tile before it.
  void add_tile(ptrdiff_t panel, ptrdiff_t first_row, ptrdiff_t pixel, ptrdiff_t done) {
    const ptrdiff_t at = g_.column + pixel + done, row_of_it = at / g_.row_pixels, row = first_row + row_of_it;
    const ptrdiff_t column = at - row_of_it * g_.row_pixels;
    const ptrdiff_t x = std::min(column, g_.row_width) * BLOCK;
    Tile& t = tiles_[count_++ % TILES];
    t.c = g_.c + panel * NB * g_.c_stride + row * g_.c_pitch + x;
    t.add = g_.add != nullptr ? g_.add + panel * NB * g_.add_stride + row * g_.add_pitch + x : nullptr;
    t.next = done;
    t.column = column;
  }

  // The next n pixels of the last but one tile, as far as there are.
  void some(ptrdiff_t n) {
    if (count_ >= 2) finish(n, tiles_[(count_ - 2) % TILES], sums_of(count_ - 2));
  }
  // What is left.
  void rest() {
    some(g_.mr);
    finish(g_.mr, tiles_[(count_ - 1) % TILES], sums_of(count_ - 1));
  }

 private:
  static constexpr int TILES = 3;
  float* sums_of(ptrdiff_t tile) { return g_.sums + tile % TILES * (AMX_SUMS / TILES); }
  struct Tile {
    float* c;
    const float* add;
    ptrdiff_t next, column;  // the first pixel that is not finished
  };

  void finish(ptrdiff_t n, Tile& t, const float* sums) {
    const ptrdiff_t begin = t.next, end = std::min(begin + n, g_.mr);
    t.next = end;
    // Anew each time: they would be kept on the stack.
    const Vec lo = set1(g_.act.lo), hi = set1(B == Behind::swish ? g_.act.alpha : g_.act.hi);
    const float *from = sums + begin * BLOCK, *add = t.add;
    float* c = t.c;
    ptrdiff_t column = t.column;
    for (ptrdiff_t i = begin; i < end; ++i, from += BLOCK) {
      if (column < g_.row_width) {
        Vec x = load(from), y = load(from + AMX_PIXELS * BLOCK);
        if constexpr (NB == 1) x = plus(x, y);
        finish_one(x, c, add, lo, hi);
        if constexpr (NB == 2) finish_one(y, c + g_.c_stride, add + g_.add_stride, lo, hi);
        c += BLOCK;
        if (add != nullptr) add += BLOCK;
      }
      if (++column == g_.row_pixels) {
        column = 0;
        c += c_gap_;
        if (add != nullptr) add += add_gap_;
      }
    }
    t.c = c;
    t.add = add;
    t.column = column;
  }

  inline __attribute__((always_inline)) void finish_one(Vec x, float* c, const float* add, Vec lo, Vec hi) const {
    if (B == Behind::add_clamp || (B == Behind::swish && g_.add != nullptr)) plus_m(x, add);
    if constexpr (B == Behind::swish) {
      swish_sum(x, lo, hi, &g_.act.beta);
      store_now(c, x);
    } else {
      store_clamped(c, x, lo, hi);
    }
  }

  Tile tiles_[TILES];
  const AmxArgs& g_;
  const ptrdiff_t c_gap_, add_gap_;
  ptrdiff_t count_ = 0;
};

template <int NB, Behind B>
__attribute__((noinline)) void gemm_amx_tiles(const AmxArgs& g) {
  using P = std::conditional_t<NB == 2, Products2, Products1>;
  constexpr ptrdiff_t PART = NB * AMX_TILE;
  const ptrdiff_t mr = g.mr, rows = (mr + 1) / 2;
  const TileConfig config(static_cast<uint8_t>(rows));
  _tile_loadconfig(&config);
  const ptrdiff_t xs = g.xs, second = (mr - rows) * xs;
  // A row whose window lies outside of the map has no products, and finishes a whole tile at once.
  const ptrdiff_t groups = std::max<ptrdiff_t>(g.n_taps * amx_groups(g.n_segs), 1),
                  at_once = (mr + groups - 1) / groups;
  AmxFinish<NB, B> before(g);
  const char *soon, *later = g.later;
  // Behind every four products.
  const auto meanwhile = [&] {
    before.some(at_once);
    for (ptrdiff_t i = 0; i < g.next_lines; ++i) prefetch_now(soon + i * 64);
    soon += g.next_lines * 64;
    for (ptrdiff_t i = 0; i < g.later_lines; ++i) prefetch_now(later + i * 64);
    later += g.later_lines * 64;
  };
  for (ptrdiff_t panel = 0; panel < g.panels; ++panel) {
    const char* const weights = g.b + panel * g.panel_bytes;
    const float* const bias = g.bias + panel * NB * BLOCK;
    soon = panel + 1 < g.panels ? weights + g.panel_bytes : g.next;
    for (ptrdiff_t row = 0; row < g.rows; ++row) {
      for (ptrdiff_t begin = 0; begin < g.pixels; begin += mr) {
        const ptrdiff_t pixel = std::min(begin, g.pixels - mr);
        FMN_TILE_LOAD(0, bias, 0);
        FMN_TILE_LOAD(2, bias, 0);
        if constexpr (NB == 2) {
          FMN_TILE_LOAD(1, bias + BLOCK, 0);
          FMN_TILE_LOAD(3, bias + BLOCK, 0);
        } else {
          FMN_TILE_ZERO(1);
          FMN_TILE_ZERO(3);
        }
        const char* b = weights;
        for (ptrdiff_t tap = 0; tap < g.n_taps; ++tap) {
          const char* a = g.a + row * g.a_pitch + pixel * xs + g.taps[tap];
          for (ptrdiff_t s = 2; s <= g.n_segs; s += 2) {
            P::a(a + 2 * g.plane, xs, second);
            P::b(b);
            P::multiply();  // a3 b1
            meanwhile();
            P::a(a, xs, second);
            P::multiply();  // a1 b1
            meanwhile();
            P::a(a + g.plane, xs, second);
            P::multiply();  // a2 b1
            meanwhile();
            P::b(b + PART);
            P::multiply_small();  // a2 b2
            meanwhile();
            P::a(a, xs, second);
            P::multiply_small();  // a1 b2
            meanwhile();
            P::b(b + 2 * PART);
            P::multiply_small();  // a1 b3
            meanwhile();
            a += 3 * g.plane;
            b += AMX_PARTS * PART;
          }
          if (g.n_segs % 2 != 0) {
            P::a(a + g.plane, xs, second);
            P::b(b + 2 * PART);
            P::multiply_small();  // a1 b3 + a3 b1
            meanwhile();
            P::a(a, xs, second);
            P::b(b + PART);
            P::multiply_small();  // a1 b2 + a2 b2
            meanwhile();
            P::b(b);
            P::multiply();  // a1 b1 + a2 b1
            meanwhile();
            b += AMX_PARTS * PART;
          }
        }
        if (g.n_taps == 0) meanwhile();
        float* const to = before.sums();
        const ptrdiff_t at = (mr - rows) * BLOCK;
        FMN_TILE_STORE(0, to);
        FMN_TILE_STORE(2, to + at);
        FMN_TILE_STORE(1, to + AMX_PIXELS * BLOCK);
        FMN_TILE_STORE(3, to + AMX_PIXELS * BLOCK + at);
        before.add_tile(panel, row, pixel, begin - pixel);
      }
    }
  }
  before.rest();
  _tile_release();
}

template <int NB>
void gemm_amx(const AmxArgs& g) {
  if (g.act.kind != ActKind::clamp) {
    gemm_amx_tiles<NB, Behind::swish>(g);
  } else if (g.add != nullptr) {
    gemm_amx_tiles<NB, Behind::add_clamp>(g);
  } else {
    gemm_amx_tiles<NB, Behind::clamp>(g);
  }
}

// The high half of every float: of x the low half of a pair, of y the high one.
inline __m512i pairs_of(Vec x, Vec y) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(_mm512_castps_si512(x), 16), _mm512_castps_si512(y), high, 0xf8);
}

// x rounded to its 8 leading bits. Not cut: what is left would have the sign of x, and so would all products that are
// not made, 0.7 x 2^-24 of every sum. NaN may become a zero here, and what is left is NaN then.
inline Vec leading_of(Vec x) {
  const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

struct Parts {  // exact
  Vec first, second, third;
  explicit Parts(Vec x) : first(leading_of(x)) {
    const Vec rest = minus(x, first);
    second = leading_of(rest);
    third = minus(rest, second);
  }
};

template <bool SCALED>
void split_amx_of(const AmxSplitArgs& g) {
  char* dst = g.dst;
  const auto lanes = [](const Segment& s) { return static_cast<__mmask16>((1u << s.len) - 1); };
  ptrdiff_t i = 0;
  for (; i + 2 <= g.n_segs; i += 2, dst += 3 * g.plane) {
    const Segment &s = g.segs[i], &t = g.segs[i + 1];
    const __mmask16 of_s = lanes(s), of_t = lanes(t);
    const float *x = g.a + s.offset, *y = g.a + t.offset;
    const Vec scale_x = SCALED ? load(g.scale + i * BLOCK) : zero();
    const Vec scale_y = SCALED ? load(g.scale + (i + 1) * BLOCK) : zero();
    for (ptrdiff_t p = 0; p < g.pixels; ++p) {
      Vec x1 = _mm512_maskz_loadu_ps(of_s, x + p * g.xs), y1 = _mm512_maskz_loadu_ps(of_t, y + p * g.xs);
      if constexpr (SCALED) {
        x1 = times(x1, scale_x);
        y1 = times(y1, scale_y);
      }
      const Parts a(x1), b(y1);
      char* const to = dst + p * AMX_PLANE;
      _mm512_storeu_si512(to, pairs_of(a.first, b.first));
      _mm512_storeu_si512(to + g.plane, pairs_of(a.second, b.second));
      _mm512_storeu_si512(to + 2 * g.plane, pairs_of(a.third, b.third));
    }
  }
  if (i == g.n_segs) return;
  const Segment& s = g.segs[i];
  const __mmask16 of_s = lanes(s);
  const float* x = g.a + s.offset;
  const Vec scale = SCALED ? load(g.scale + i * BLOCK) : zero();
  for (ptrdiff_t p = 0; p < g.pixels; ++p) {
    Vec x1 = _mm512_maskz_loadu_ps(of_s, x + p * g.xs);
    if constexpr (SCALED) x1 = times(x1, scale);
    const Parts a(x1);
    char* const to = dst + p * AMX_PLANE;
    _mm512_storeu_si512(to, pairs_of(a.first, a.second));
    _mm512_storeu_si512(to + g.plane, pairs_of(a.first, a.third));
  }
}

void split_amx(const AmxSplitArgs& g) {
  if (g.scale != nullptr) {
    split_amx_of<true>(g);
  } else {
    split_amx_of<false>(g);
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
