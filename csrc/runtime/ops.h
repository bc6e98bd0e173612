// The ops: loops, blocking and the parts that threads take, over the kernels of a table. They know no intrinsics.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "runtime/kernel_table.h"
#include "runtime/pack.h"
#include "runtime/threads.h"

namespace fmn {

// Where a tensor lies in the arena. Rows carry pad_left and pad_right pixels of zeros for the convolution that
// reads them; rows above and below the map are not stored.
//
// A tensor of bytes (quantised) has rows of padding above and below too, all filled with its zero point, and an image
// of bytes has four a pixel.
struct Tensor {
  int c = 0, h = 0, w = 0;
  int pad_left = 0, pad_right = 0;
  bool image = false;    // [h][w][c] instead of [ceil(c/16)][h][w][16]
  ptrdiff_t offset = 0;  // floats from the start of the arena
  bool u8 = false;
  int pad_top = 0, pad_bottom = 0;  // of bytes only
  uint8_t zero = 0;
  // Not null: the channels are lanes of other tensors with the same rows, `offset` that of one of them: where they are
  // from a pixel of it. Only a 1x1 convolution reads such a tensor.
  std::shared_ptr<const std::vector<Segment>> runs;

  // In elements, floats or bytes:
  int blocks() const { return image ? 1 : (c + BLOCK - 1) / BLOCK; }
  int pixel() const { return !image ? BLOCK : u8 ? 4 : c; }
  ptrdiff_t pitch() const { return ptrdiff_t{pad_left + w + pad_right} * pixel(); }
  ptrdiff_t block_stride() const { return pitch() * (pad_top + h + pad_bottom); }
  ptrdiff_t elements() const { return block_stride() * blocks(); }
  ptrdiff_t floats() const { return u8 ? (elements() + 3) / 4 : elements(); }
  ptrdiff_t at(int block, int y, int x) const {  // of a pixel, from the start of the arena
    const ptrdiff_t start = u8 ? offset * ptrdiff_t{sizeof(float)} : offset;
    return start + block * block_stride() + (pad_top + y) * pitch() + ptrdiff_t{pad_left + x} * pixel();
  }
};

struct Window {
  int stride_h = 1, stride_w = 1;
  int dilation_h = 1, dilation_w = 1;
  int pad_top = 0, pad_left = 0;  // what is read beyond the bottom and the right follows from the output size
};

struct AmxWeights;
struct InnerWeights;

// A convolution, dense or depthwise, and the function behind it.
struct ConvSpec {
  std::shared_ptr<const PackedWeights> weights;
  Window window;
  Act act;
  std::shared_ptr<const InnerWeights> inner;  // made of `weights`, if it is computed by inner products (inner.h)
  std::shared_ptr<const AmxWeights> amx;      // the same, if it is computed by the tile unit (amx.h)
};

enum class InputKind { pixels_u8, f32_nhwc, f32_nchw };

// Weights of matrix-vector products to come, which only wait for memory: what one thread fetches of them during an op.
struct FarWeights {
  const char* at = nullptr;
  ptrdiff_t left = 0;  // cache lines
  // The next lines, or null when all have been handed out.
  const char* take(ptrdiff_t lines) {
    if (left <= 0) return nullptr;
    const char* piece = at;
    at += 64 * lines;
    left -= lines;
    return piece;
  }
  FarWeights part(int index, int count) const {
    const Range r = split(left, count, index);
    return {at + 64 * r.begin, r.end - r.begin};
  }
};

// One picture of one run.
struct Frame {
  float* arena;
  float* scratch;     // of this thread, as large as the largest Op::scratch_floats
  float* shared;      // of all threads together, as large as the largest Op::shared_floats; not there for one thread
  const void* input;  // h x w x c of the kind given
  InputKind kind;
  float* output;    // the output tensor as [h][w][c], dense
  FarWeights* far;  // of the op that runs, for this thread

  uint8_t* bytes() const { return reinterpret_cast<uint8_t*>(arena); }
};

// Weights that will be read soon: handed to the GEMM kernels piece by piece, which fetch them in passing.
class WeightStream {
 public:
  WeightStream() = default;
  WeightStream(const float* weights, ptrdiff_t floats)
      : at_(reinterpret_cast<const char*>(weights)), left_(floats / 16) {}
  // The next `lines` cache lines, or null when all have been handed out.
  const char* take(ptrdiff_t lines) {
    if (left_ <= 0 && !go_on()) return nullptr;
    const char* piece = at_;
    at_ += 64 * lines;
    left_ -= lines;
    most_ -= lines;
    return piece;
  }
  // The next lines that lie together, `most` of them at most.
  CacheLines piece(ptrdiff_t most) {
    if (left_ <= 0 && !go_on()) return {nullptr, nullptr};
    const ptrdiff_t lines = std::min({most, left_, most_});
    if (lines <= 0) return {nullptr, nullptr};
    const char* const at = take(lines);
    return {at, at + 64 * lines};
  }
  // Parts [r.begin, r.end) of `count` equal ones.
  WeightStream part(Range r, ptrdiff_t count) const {
    const ptrdiff_t all = lines(), begin = all * r.begin / count;
    WeightStream s = *this;
    s.most_ = std::min(s.most_, all);
    for (ptrdiff_t skip = begin; skip > 0;) {
      const ptrdiff_t step = std::min(skip, s.left_);
      s.at_ += 64 * step;
      s.left_ -= step;
      s.most_ -= step;
      skip -= step;
      if (s.left_ <= 0 && !s.go_on()) return {};
    }
    s.most_ = all * r.end / count - begin;
    s.left_ = std::min(s.left_, s.most_);
    return s;
  }
  // This stream and the one behind it, which must stay where it is; `most` cache lines of both together.
  WeightStream then(const WeightStream* rest, ptrdiff_t most) const {
    WeightStream s = *this;
    s.rest_ = rest;
    s.most_ = most;
    s.left_ = std::min(s.left_, most);
    return s;
  }
  ptrdiff_t lines() const { return std::min(most_, left_ + (rest_ != nullptr ? rest_->lines() : 0)); }

 private:
  bool go_on() {
    while (left_ <= 0 && rest_ != nullptr && most_ > 0) {
      at_ = rest_->at_;
      left_ = std::min(rest_->left_, most_);
      rest_ = rest_->rest_;
    }
    return left_ > 0;
  }

  const char* at_ = nullptr;
  ptrdiff_t left_ = 0;  // cache lines of this piece
  ptrdiff_t most_ = std::numeric_limits<ptrdiff_t>::max();
  const WeightStream* rest_ = nullptr;
};

// What the tiles of one panel fetch: the next panel, and with the steps that are left a part of the next layer.
struct WeightsAhead {
  WeightStream soon, later;
  FarWeights* far = nullptr;  // what a ConvKernel fetches besides
  const char* take(ptrdiff_t lines) {
    const char* piece = soon.take(lines);
    return piece != nullptr ? piece : later.take(lines);
  }
  CacheLines piece(ptrdiff_t most) {
    const CacheLines lines = soon.piece(most);
    return lines.at != nullptr ? lines : later.piece(most);
  }
};

class Picture;  // picture.h

class Op {
 public:
  Op(std::string name, std::string kernel) : name(std::move(name)), kernel(std::move(kernel)) {}
  virtual ~Op() = default;
  // All threads of the team call it, and share the work by Team::share; it is done when any of them returns.
  virtual void run(const Frame& frame, Team& team) const = 0;
  // Memory that every thread of a run needs besides the arena.
  virtual ptrdiff_t scratch_floats() const { return 0; }
  // Memory that all threads of a run share, needed only if they are more than one.
  virtual ptrdiff_t shared_floats() const { return 0; }
  // The weights that the op reads first, if it has any.
  virtual WeightStream first_weights() const { return {}; }
  // Whether it fetches next_weights while it works.
  virtual bool fetches_ahead() const { return false; }
  // Cache lines of weights of other ops that it can fetch besides, in all.
  virtual ptrdiff_t far_lines() const { return 0; }
  // Takes the picture row by row from where the caller has it, if it can: there is no tensor then, of which it would be
  // the only reader. It may need more memory than before.
  virtual bool read(const std::shared_ptr<const Picture>&) { return false; }
  // All its weights, if it does nothing but wait for them, so that they should be in a cache when it begins.
  virtual FarWeights streamed_weights() const { return {}; }

  bool reads_picture = false;  // whether it is the first step, by read()
  // Set when the program is complete:
  WeightStream weights;       // first_weights() of this op and, if it fetches nothing, of those behind it
  WeightStream next_weights;  // `weights` of the op behind this one
  FarWeights far;             // what it fetches besides
  const std::string name;     // of the node
  const std::string kernel;   // printed id, e.g. gemm_f32/avx512/14x32
};

using OpPtr = std::unique_ptr<Op>;

// All factories throw std::invalid_argument when shapes do not fit each other.

// (x - mean) / std for each channel; empty: x as it is. The number of channels must divide NORMALIZE_PERIOD.
struct Normalization {
  std::vector<float> mean, std;
};

// The picture -> its tensor. Of a Picture, `pixels` is applied to pixels_u8 (swap reverses the channels after it),
// `floats` to the others.
OpPtr make_input(const KernelTable& table, const std::shared_ptr<const Picture>& picture);

// Any convolution but a depthwise one, a dense layer over a map of one pixel included. `add` may be null. `scale`: null
// or, on AMX, one pixel with which every pixel of the source is multiplied before.
OpPtr make_conv(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const Tensor* add,
                const ConvSpec& spec, const Tensor* scale = nullptr);

struct StrassenWeights;

// A 1x1 convolution of a map without padding, by Strassen's product (strassen.h).
struct StrassenSpec {
  std::shared_ptr<const StrassenWeights> weights;
  Act act;
  int rows;  // of the map that are multiplied at a time
};

OpPtr make_strassen(const KernelTable& table, const std::string& name, const Tensor& src, const Tensor& dst,
                    const Tensor* add, const StrassenSpec& spec);

// A depthwise convolution with, perhaps, a dense convolution before it and a 1x1 convolution after it, done together.
struct StripSpec {
  Tensor mid;              // what the depthwise convolution reads; its offset is not used. Without expand: the source
  int oh, ow;              // of the depthwise output
  const ConvSpec* expand;  // or null
  ConvSpec depthwise;
  const ConvSpec* project;     // or null
  int rows;                    // of the output that are made at a time
  bool adds_expanded = false;  // the last convolution adds what the first one has made
};

// `add` (or null) is added by the last convolution.
OpPtr make_strip(const KernelTable& table, const std::string& name, const Tensor& src, const Tensor& dst,
                 const Tensor* add, const StripSpec& spec);

OpPtr make_global_avg_pool(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst);

enum class PoolKind { max, mean };

// A window of rows and one of columns for every row and every column of dst.
OpPtr make_window_pool(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, PoolKind kind,
                       std::vector<PoolSpan> rows, std::vector<PoolSpan> columns);

// A convolution and a pool of windows over its map of h x w, `rows` rows of the pool at a time.
struct ConvPoolSpec {
  const ConvSpec* conv;
  int h, w;
  PoolKind kind;
  std::vector<PoolSpan> pool_rows, pool_columns;
  int rows;
};
OpPtr make_conv_pool(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst,
                     const ConvPoolSpec& spec);

// dst = act(a + b), or act(a) without b. b may be one pixel, added to all.
OpPtr make_add(const KernelTable& table, std::string name, const Tensor& a, const Tensor* b, const Tensor& dst,
               const Act& act);

// dst = act(a * b); b may be one pixel.
OpPtr make_mul(const KernelTable& table, std::string name, const Tensor& a, const Tensor& b, const Tensor& dst,
               const Act& act);

// Channel i of dst is channel index[i] of the concatenated sources, or zero for -1.
OpPtr make_gather(const KernelTable& table, std::string name, const std::vector<Tensor>& sources, const Tensor& dst,
                  const std::vector<int>& index);

// dst[c] = src[c] / (bias + alpha / size * sum of the squares of `size` channels around c)^beta.
struct Lrn {
  int size;
  double alpha, beta, bias;
};
OpPtr make_lrn(std::string name, const Tensor& src, const Tensor& dst, const Lrn& lrn);

OpPtr make_softmax(std::string name, const Tensor& src, const Tensor& dst);

// The maps of a detector's heads -> a row of dst for each anchor. The sources are as many equal groups as there are
// `columns`; a pixel of a map of group g has columns[g] channels for each of its anchors, which follow each other as
// the pixels do, map after map. Row i holds the columns of anchor i of every group.
OpPtr make_rows(std::string name, const std::vector<Tensor>& sources, const Tensor& dst,
                const std::vector<int>& columns);

OpPtr make_output(const Tensor& src);

// --- shared by the ops ---------------------------------------------------------------------------------

// How many units that move so many bytes each make a part. Half of a first-level cache takes about as long as ten
// times what it costs to take a part; what is smaller is not worth another thread.
inline ptrdiff_t grain_of_bytes(ptrdiff_t bytes) {
  return std::max<ptrdiff_t>(16384 / std::max<ptrdiff_t>(bytes, 1), 1);
}

// The same for units of so many multiply-adds: two microseconds of a fast core.
inline ptrdiff_t grain_of_macs(ptrdiff_t macs) { return std::max<ptrdiff_t>(200000 / std::max<ptrdiff_t>(macs, 1), 1); }

// Calls f(block, y) for all rows of all blocks.
template <class F>
void for_rows(const Tensor& t, Team& team, F f) {
  const ptrdiff_t bytes = t.pitch() * (t.u8 ? 1 : ptrdiff_t{sizeof(float)});
  team.share(ptrdiff_t{t.blocks()} * t.h, grain_of_bytes(bytes), [&](Range part) {
    for (ptrdiff_t i = part.begin; i < part.end; ++i) f(static_cast<int>(i / t.h), static_cast<int>(i % t.h));
  });
}

// Zeros the left and right padding of rows y.begin .. y.end - 1 of the given blocks; of bytes, fills it with the zero
// point, and the rows above with the first row and those below with the last.
void clear_padding(float* arena, const Tensor& t, Range blocks, Range y);

void check(bool ok, const std::string& name, const char* what);

// That there is a window of a map of this size for each output.
bool spans_fit(const std::vector<PoolSpan>& spans, int outputs, int size);

// That the tiles of convolutions have the function.
void check_act(const std::string& name, const Act& act);

// That rows of src have the padding that a convolution with ow outputs a row reads.
void check_padding(const std::string& name, const Tensor& src, int ow, const ConvSpec& spec);

}  // namespace fmn
