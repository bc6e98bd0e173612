// The contract between the ops and the kernels of quantised networks. fastmobilenet/reference_u8.py defines what they
// compute. Included by files that are compiled with ISA flags: plain types only, no STL.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fmn {

// Activations lie as [ceil(c/16)][h][w][16] bytes; four channels are a word, and K is counted in words. An image has
// one word a pixel.
constexpr int U8_WORDS = 4;  // of a pixel of a block

// `len` consecutive words of A, `offset` bytes after the tile's first pixel.
struct WordSegment {
  ptrdiff_t offset;
  ptrdiff_t len;
};

// How an int32 sum becomes a byte: clamp(rint(float(sum) * scale) + zero, lo, hi).
struct Requant {
  int32_t zero, lo, hi;
};

// c[i][o] = requant(bias[o] + sum_k a[i][k] * b[k][o], scale[o]) for nb blocks of o and mr pixels i; and again for the
// next mr pixels, `tiles` times in all; and all of that for `rows` rows of the maps.
struct GemmU8Args {
  ptrdiff_t tiles, rows;
  ptrdiff_t a_row, c_row;  // bytes from row to row
  const uint8_t* a;        // pixel i starts at a + 4 * i * xs
  ptrdiff_t xs;            // words; read only by the kernels with xs = 0
  const WordSegment* segs;
  ptrdiff_t n_segs;
  const int8_t* b;      // [k][nb * 16][4], or [nb][k][16][4]: see U8Table::pairwise
  const int32_t* bias;  // [nb * 16], with the zero points in it
  const float* scale;   // [nb * 16]
  uint8_t* c;           // pixel i at c + i * 16, block j at + j * c_stride
  ptrdiff_t c_stride;
  Requant requant;
  const char* prefetch;  // weights needed soon; any address is fine
  // Only where U8Table::pairwise: nb, and memory for mr pixels, `signs_row` bytes from each other.
  ptrdiff_t blocks;
  uint8_t* signs;
  ptrdiff_t signs_row;
};

// dst[y][x][o] = requant(bias[o] + sum over the window of rows * w, scale[o]) for one block. Kernels may read 63 bytes
// beyond the last pixel of a row.
struct DwU8Args {
  const uint8_t* const* rows;  // [(oh - 1) * stride + k], or [oh * kh] for the kernel of any size
  const int8_t* w;             // [passes][kh][groups][16][4], see dw_words()
  ptrdiff_t passes;
  const int32_t* bias;
  const float* scale;
  uint8_t* dst;
  ptrdiff_t dst_stride;  // bytes
  ptrdiff_t oh, ow;
  Requant requant;
  // Only for the kernel of any size:
  ptrdiff_t kh, kw, stride_w, dilation_w;
};

// For `pixels` pixels of a block. Sums: ((a - za) * ma + (b - zb) * mb + 2^(shift - 1)) >> shift; products:
// rint((a - za) * (b - zb) * factor). Then plus zero, clamped. ma and mb are less than 2^21 + 1, |factor| at most 1e4.
// Sums in floats: rint(fma(a - za, ra, fma(b - zb, rb, rest))) plus zero, clamped; |ra| and |rb| are at most 1e4.
struct EltU8Args {
  const uint8_t* a;
  const uint8_t* b;
  bool b_is_one_pixel;
  int32_t za, zb;
  int32_t ma, mb, shift;
  float factor;
  uint8_t* dst;
  ptrdiff_t pixels;
  Requant requant;
  float ra, rb, rest;
};

using GemmU8Fn = void (*)(const GemmU8Args&);
using DwU8Fn = void (*)(const DwU8Args&);
// RGB pixels to words with `fourth` behind them, channel c through tables[c][256]; null tables change nothing.
using RgbU8Fn = void (*)(const uint8_t* src, uint8_t* dst, ptrdiff_t pixels, const uint8_t* tables, uint8_t fourth);

struct GemmU8Entry {
  int mr, nb, xs;
  GemmU8Fn run;
};
struct DwU8Entry {
  int k, stride;  // 0, 0: any
  DwU8Fn run;
};

// Words of weights for one row of a depthwise window of kw columns. Word j of the kernel of any size is [w_j 0 0 0];
// the others take four columns a word.
//
// A word of four pixels serves several outputs, each with weights of its own, which begin at its window's first pixel:
// two outputs of 3x3 at stride 1, [w0 w1 w2 0] and [0 w0 w1 w2]. Of 5x5, every window lies on two words. There are
// 4 / stride places where it begins, with two words each: [w0 w1 w2 w3] [w4 0 0 0], [0 w0 w1 w2] [w3 w4 0 0], ...
inline int dw_words(int k, int stride, int kw, bool pairwise) {
  if (k == 0) return kw;
  if (pairwise) return (k + 1) / 2;
  if (k == 5) return 2 * (4 / stride);
  return k == 3 && stride == 1 ? 2 : 1;
}

struct U8Table {
  const char* isa;
  int panel_blocks;  // width of a panel of packed weights; the last panel of a layer may be narrower
  // What the kernels take off every activation, 0 or 128; the sums of weights in `bias` make up for it.
  int offset;
  // Whether weights of -128 are wrong here (except where `pairwise`): the sum of two products would overflow 16 bits.
  bool needs_127;
  // There is no dot product of words. Dense convolutions split the activations of a tile into magnitudes and signs
  // first, 8 bytes for a word of 4, and then go through the blocks of a panel one by one; depthwise ones of 3x3 and 5x5
  // take nothing off, and their weights are [block][kx][pair of rows][16][2] of int16.
  bool pairwise;
  const GemmU8Entry* gemm;
  int n_gemm;
  const DwU8Entry* dw;
  int n_dw;
  void (*add)(const EltU8Args&);
  void (*mul)(const EltU8Args&);
  void (*add_floats)(const EltU8Args&);
  // dst[i] = table[src[i]]; n is a multiple of 16.
  void (*lookup)(const uint8_t* src, uint8_t* dst, ptrdiff_t n, const uint8_t* table);
  // sum[o] += the bytes of `pixels` pixels of a row, for one block.
  void (*sum)(const uint8_t* src, ptrdiff_t pixels, int32_t* sum);
  RgbU8Fn rgb;  // or null
  // Multiply-add in registers as fast as the core can, `steps` times; returns the operations done (2 a multiply-add).
  double (*peak)(ptrdiff_t steps);
};

}  // namespace fmn
