// The contract between the ops and the kernels: what a kernel is given, and the table of one ISA.
// Included by files that are compiled with ISA flags: plain types only, no STL.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fmn {

// Activations lie as [ceil(c/16)][h][w][16]; a pixel of one block is 16 floats = 64 bytes.
constexpr int BLOCK = 16;

// normalize_u8 and normalize_f32 repeat their means after so many values: a multiple of 1, 2, 3 or 4 channels and of
// every vector.
constexpr int NORMALIZE_PERIOD = 48;

// The function behind a layer. NaN in gives NaN out.
enum class ActKind : int {
  clamp,         // min(max(x, lo), hi)
  hard_sigmoid,  // min(max(alpha * x + beta, 0), 1)
  hard_swish,    // x * hard_sigmoid(x)
  sigmoid,       // 1 / (1 + exp(-x))
  swish,         // x * sigmoid(x)
};
struct Act {
  ActKind kind;
  float lo, hi;       // of clamp; of hard_swish in convolutions: -beta / alpha and infinity
  float alpha, beta;  // of the hard ones
};

// `len` consecutive values of A, `offset` floats after the tile's first pixel. A convolution is a GEMM whose
// K dimension is a list of such runs: one a channel block for 1x1, one a (row, column, block) for KxK.
struct Segment {
  ptrdiff_t offset;
  ptrdiff_t len;
};

// c[i][o] = act(bias[o] + sum_k a[i][k] * b[k][o] + add[i][o]) for nb blocks of o and mr pixels i; and again for the
// next mr pixels, `tiles` times in all. act is clamp or hard_swish.
struct GemmArgs {
  ptrdiff_t tiles;
  const float* a;       // pixel i starts at a + i * xs
  ptrdiff_t xs;         // read only by the kernels with xs = 0
  const Segment* segs;  // [n_segs]
  ptrdiff_t n_segs;
  const float* b;     // [k][nb * 16], or 8 less a row where the last block is half
  const float* bias;  // [nb * 16]
  float* c;           // pixel i at c + i * 16, block j at + j * c_stride
  ptrdiff_t c_stride;
  const float* add;  // like c, or null
  ptrdiff_t add_stride;
  Act act;
  const char* prefetch;  // weights needed soon: one cache line a step of k is fetched from here; any address is fine
  const char* prefetch_later;  // and one from here, unless it is null: those of matrix-vector products to come
  // Only for kernels with GemmEntry::rows, without add: row_gap more floats of C behind every so many tiles, or 0.
  ptrdiff_t row_tiles = 0, row_gap = 0;
};

// dst[y][x][o] = act(bias[o] + sum_ky,kx rows[y * s + ky][x * s + kx][o] * w[ky][kx][o]) for one block. act is clamp or
// hard_swish.
struct DwArgs {
  const float* const* rows;  // [(oh - 1) * s + kh] first padded pixel of each input row, 16 floats a pixel
  const float* w;            // [kh * kw][16]
  const float* bias;         // [16]
  float* dst;                // [oh] rows, dst_stride floats apart
  ptrdiff_t dst_stride;
  ptrdiff_t oh, ow;
  Act act;
  // Only for the kernel of any size:
  ptrdiff_t kh, kw, stride_h, stride_w, dilation_w;  // rows[] already has the vertical dilation in it
};

// Mean of h x w pixels of one block; rows are `row_stride` floats apart.
struct PoolArgs {
  const float* src;
  ptrdiff_t row_stride;
  ptrdiff_t h, w;
  float* dst;  // [16]
};

// dst[o] = act(bias[o] + sum_k x[k] * b[k][o] + add[o]) for n_blocks blocks of 16 outputs; any act.
struct GemvArgs {
  const float* x;  // [k]
  ptrdiff_t k;
  const float* b;  // panels of [k][panel_blocks * 16]
  const float* bias;
  const float* add;  // or null
  float* dst;        // [n_blocks * 16]
  ptrdiff_t n_blocks;
  Act act;
  bool fetch_ahead;  // what is read soon, into the first-level cache
};

// The same with weights of 24 bits, scaled both ways: see kernels/gemv24.h. Each step is four k: 48 words for a block.
constexpr ptrdiff_t GEMV24_STEP = ptrdiff_t{3} * BLOCK;
struct Gemv24Args {
  const float* x;  // [4 * steps]
  ptrdiff_t steps;
  const int32_t* b;           // [n_blocks][steps][GEMV24_STEP]
  const float *scale, *bias;  // [n_blocks * 16]
  const float* add;           // or null
  float* dst;
  ptrdiff_t n_blocks;
  Act act;
  bool fetch_ahead;
};

// dst[i] = act(a[i] op b[i]) for n floats, a multiple of 16; any act.
struct EltArgs {
  const float* a;
  const float* b;       // or null: act(a[i])
  bool b_is_one_pixel;  // b has 16 floats, used for every 16 of a
  float* dst;           // may be a or b
  ptrdiff_t n;
  Act act;
};

// The columns of a pooling window, cut to what lies inside of the map.
struct PoolSpan {
  int begin, end;
  float count;  // columns that count for a mean
};

// dst[x] = max or mean over `rows` rows and the columns of spans[x], for one block.
struct WindowPoolArgs {
  const float* src;  // column 0 of the first row
  ptrdiff_t row_stride;
  ptrdiff_t rows;
  float row_count;  // rows that count for a mean
  const PoolSpan* spans;
  ptrdiff_t ow;
  float* dst;
};

// dst[p][i] = src[s][p][lane[s][i]] for the s whose lane[s][i] is not negative (at most one is), 0 if there is none:
// one block made of channels of other blocks.
struct GatherSource {
  const float* src;
  int lane[BLOCK];
};
struct GatherArgs {
  const GatherSource* sources;
  ptrdiff_t n_sources;
  ptrdiff_t pixels;
  float* dst;
};

// B^T d B of tiles of 6 x 6 pixels of one block, 4 pixels apart, and for convolutions of stride 2 of 9 x 9 pixels, 8
// apart: see kernels/winograd.h.
struct WinogradInputArgs {
  const float* const* rows;  // [6 or 9] the first pixel of each row of the first tile, 16 floats a pixel
  ptrdiff_t tiles;
  float* dst;  // element e of tile t at dst + e * dst_stride + t * 16
  ptrdiff_t dst_stride;
};

// act(A^T m A + add), 4 x 4 pixels of one block for each tile, 4 pixels apart. act is clamp or hard_swish.
struct WinogradOutputArgs {
  const float* src;  // element e of tile t at src + e * src_stride + t * 16
  ptrdiff_t src_stride;
  ptrdiff_t tiles;
  float* const* rows;       // [4]
  const float* const* add;  // like rows, or null
  Act act;
};

// The sums of kernels/strassen.h, of n floats each, a multiple of 16.
struct StrassenSumsArgs {
  const float *a11, *a12, *a21, *a22;
  float *s1, *s2, *s3, *s4;
  ptrdiff_t n;
};

// c[i] = act(w[i] + y[i]), x[i] = w[i] + x2[i], of n floats, a multiple of 16. x may be y. act is clamp or hard_swish.
struct StrassenLastArgs {
  const float *w, *y, *x2;
  float *c, *x;
  ptrdiff_t n;
  Act act;
};

// Of so many channels of a block, the pairs that kernels/inner.h adds: channels 0 and 1, 2 and 3 ...
constexpr int inner_pairs(int channels) { return channels / 3; }

// Weights that are needed soon; `at` is null if there are none.
struct CacheLines {
  const char *at, *end;
};

// c[i][o] = act((pixels[i] + init[o] + sum) * scale[o] + add[i][o]): see kernels/inner.h. Of a map without
// padding; nb blocks of o (or the half of one) and mr pixels, `tiles` times.
struct InnerArgs {
  ptrdiff_t tiles;
  const float* a;       // pixel i at a + i * 16
  const Segment* segs;  // [n_segs], each within a block: pairs are those of a segment
  ptrdiff_t n_segs;
  const float* b;             // [k][nb * 16]
  const float* pixels;        // what inner_pixels makes
  const float *init, *scale;  // [nb * 16]; the bias is in init
  float* c;                   // as in GemmArgs
  ptrdiff_t c_stride;
  const float* add;
  ptrdiff_t add_stride;
  Act act;
  CacheLines soon[2];                    // one after the other: 16 for each whole block and tile are fetched
  const char* prefetch_later;            // as many, or null
  ptrdiff_t row_tiles = 0, row_gap = 0;  // as there
};
struct InnerPixelsArgs {
  const float* a;
  const Segment* segs;  // as above; 16 floats are read of each
  ptrdiff_t n_segs;
  ptrdiff_t pixels;
  float* dst;                    // [pixels]
  const float* scale = nullptr;  // or [n_segs][16]: of every channel, what it is multiplied with before
  float* scaled = nullptr;       // then where the products go, in the places of `a`, which it may be
};

// Floats as sums of three bfloat16, of two segments of channels at a time: see kernels/amx.h. One that has no partner
// takes two planes, others three; a plane is 64 bytes a pixel.
constexpr int AMX_PIXELS = 32;  // of a tile, at most
constexpr ptrdiff_t amx_planes(ptrdiff_t n_segs) { return n_segs / 2 * 3 + n_segs % 2 * 2; }
constexpr ptrdiff_t amx_groups(ptrdiff_t n_segs) { return n_segs / 2 * 6 + n_segs % 2 * 3; }
constexpr ptrdiff_t AMX_PLANE = 64, AMX_TILE = 1024;  // bytes of a pixel, and of 32 x 16 weights
constexpr ptrdiff_t AMX_PARTS = 3;                    // tiles of weights for a block and one or two segments
constexpr ptrdiff_t AMX_SUMS = ptrdiff_t{3} * 2 * AMX_PIXELS * BLOCK;  // floats, of three tiles
struct AmxSplitArgs {
  const float* a;  // pixel i at a + i * xs
  ptrdiff_t xs;
  const Segment* segs;  // [n_segs], of 16 channels or less
  ptrdiff_t n_segs;
  ptrdiff_t pixels;
  char* dst;                     // plane p of pixel i at p * plane + i * 64
  ptrdiff_t plane;               // bytes
  const float* scale = nullptr;  // or [n_segs][16]: of every channel, what it is multiplied with before
};
struct AmxArgs {
  ptrdiff_t rows;  // that are cut into tiles each for itself, a_pitch and c_pitch apart; more than one only without add
  ptrdiff_t a_pitch;
  ptrdiff_t pixels;  // of a row
  ptrdiff_t mr;      // of a tile; tiles follow each other, and the last ends with the last pixel
  ptrdiff_t panels;  // that follow each other, each of nb blocks
  const char* a;     // as they were split: what pixel i reads begins at a + i * xs + taps[j], for every j
  ptrdiff_t xs;      // bytes, as the next two
  ptrdiff_t plane;
  const ptrdiff_t* taps;
  ptrdiff_t n_taps;
  ptrdiff_t n_segs;       // of the split
  const char* b;          // [n_taps][(n_segs + 1) / 2][AMX_PARTS][nb][AMX_TILE]
  ptrdiff_t panel_bytes;  // to the next panel
  float* sums;            // memory for AMX_SUMS floats
  const float* bias;
  float* c;  // as in GemmArgs
  ptrdiff_t c_stride;
  const float* add;  // or null
  ptrdiff_t add_stride;
  Act act;
  // Pixels are rows of so many, of which the first row_width go to C, which has a pitch of its own, as has `add`. C and
  // `add` are those of the first pixel of a row, of which pixel `column` is the first of A.
  ptrdiff_t row_pixels, row_width, column;
  ptrdiff_t c_pitch, add_pitch;
  // With every group of products, of which a tile has amx_groups a tap, so many cache lines are fetched of the next
  // panel, or of these behind the last; and so many of those, all the time.
  const char* next;
  ptrdiff_t next_lines;
  const char* later;
  ptrdiff_t later_lines;
};

using GemmFn = void (*)(const GemmArgs&);
using DwFn = void (*)(const DwArgs&);

// Kernels are listed as data, so that a new one is found by the planner and by the tests without further edits.
struct GemmEntry {
  int mr, nb;  // pixels and 16-channel blocks of the tile
  bool half;   // the last block has 8 channels
  int xs;      // floats from one pixel of A to the next; 0: GemmArgs::xs at run time
  GemmFn run;
  bool rows;    // whether it knows GemmArgs::row_tiles
  bool halves;  // in halves (kernels/overlapped.h): there is the same tile without
};
struct DwEntry {
  int k, stride;  // 0, 0: any
  DwFn run;
};

struct InnerEntry {
  int mr, nb;
  bool half;
  void (*run)(const InnerArgs&);
};
struct InnerKernels {
  InnerEntry gemm[30];  // all tiles of 1 to 10 pixels and half a block, 1 or 2 blocks; or none
  void (*pixels)(const InnerPixelsArgs&);
};

struct AmxKernels {
  void (*split)(const AmxSplitArgs&);
  void (*gemm[2])(const AmxArgs&);  // of 1 and 2 blocks
};

struct KernelTable {
  const char* isa;
  int panel_blocks;       // width of a panel of packed weights; the last panel of a layer may be one block
  int half_panel_blocks;  // width of a panel whose last block has 8 channels
  const GemmEntry* gemm;
  int n_gemm;
  const DwEntry* dw;
  int n_dw;
  void (*winograd_input[2])(const WinogradInputArgs&);  // of stride 1 and 2
  void (*winograd_output[2])(const WinogradOutputArgs&);
  void (*gemv)(const GemvArgs&);
  void (*gemv24)(const Gemv24Args&);
  void (*global_avg_pool)(const PoolArgs&);
  void (*pool_max)(const WindowPoolArgs&);
  void (*pool_mean)(const WindowPoolArgs&);
  void (*add)(const EltArgs&);
  void (*mul)(const EltArgs&);
  void (*gather)(const GatherArgs&);
  InnerKernels inner;  // null where the ISA has no use for it
  void (*strassen_sums)(const StrassenSumsArgs&);
  void (*strassen_last)(const StrassenLastArgs&);
  // dst[i] = (src[i] - mean[i % NORMALIZE_PERIOD]) / std[i % NORMALIZE_PERIOD]
  void (*normalize_u8)(const uint8_t* src, float* dst, ptrdiff_t n, const float* mean, const float* std);
  void (*normalize_f32)(const float* src, float* dst, ptrdiff_t n, const float* mean, const float* std);  // or in place
  // dst[3 * i + j] = plane_j[i]
  void (*interleave3)(const float* p0, const float* p1, const float* p2, float* dst, ptrdiff_t n);
  // Multiply-add in registers as fast as the core can, `steps` times; returns the flops done.
  double (*peak)(ptrdiff_t steps);
};

}  // namespace fmn
