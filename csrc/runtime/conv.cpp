// Dense convolutions on their own: tiles of pixels times panels of output channels.
#include <algorithm>
#include <limits>
#include <optional>

#include "runtime/conv_kernel.h"
#include "runtime/cpu.h"
#include "runtime/dispatch.h"
#include "runtime/picture.h"

namespace fmn {

namespace {

// Tiles run along a row of the output, or along the whole map where no tensor has padding between its rows.
class ConvOp final : public Op {
 public:
  ConvOp(const KernelTable& table, std::string name, ConvKernel kernel, const Tensor& src, const Tensor& dst,
         const Tensor* add, const Tensor* scale, const ConvSpec& spec)
      : Op(std::move(name), kernel.id()),
        mul_(table.mul),
        kernel_(std::move(kernel)),
        src_(src),
        dst_(dst),
        has_add_(add != nullptr),
        scale_(scale != nullptr ? scale->at(0, 0, 0) : -1),
        add_stride_(add != nullptr ? add->block_stride() : 0) {
    list_rows(src, add, spec.window);
    // What is larger than the cache is walked once, the other once for each step of it.
    const PackedWeights& w = *spec.weights;
    const ptrdiff_t weight_floats = w.size();
    small_ = src.floats() + dst.floats() < L2_FLOATS;
    panels_outside_ = !kernel_.on_amx() && (weight_floats > L2_FLOATS / 2 || small_);
    // Threads divide either, and all of them read the whole of the other. Weights come from the third-level cache and
    // are fetched ahead; half of the map comes from another core's cache, as does half of what is written over.
    // As in conv_u8.cpp: a thread that makes whole panels of a map that grows finds them again in the depthwise
    // convolution behind it, if that goes by blocks.
    const bool by_blocks = kernel_.prepares() || dst.h < LEAST_ROWS_TO_SHARE;
    const bool widens = by_blocks && dst.floats() >= src.floats() && src.floats() < L2_FLOATS / 2;
    share_panels_ = weight_floats > L2_FLOATS / 2 || weight_floats > 4 * src.floats() || widens;
    // Whoever does panels prepares all pixels, and whoever does pixels reads all weights.
    if (kernel_.on_amx()) share_panels_ = w.oc > pixels() && kernel_.prepared_floats(room_of_all()) < L2_FLOATS;
  }

  void run(const Frame& frame, Team& team) const override {
    const int count = team.count();
    const bool panels_outside = picture_ == nullptr && (count == 1 ? panels_outside_ : share_panels_);
    std::optional<PictureRows> picture;
    if (picture_ != nullptr) picture.emplace(*picture_, frame, frame.scratch, picture_rows_);
    int per_row = kernel_.tiles(width_);
    // Few tiles in all: as many for each thread.
    if (!panels_outside && rows_.size() == 1) per_row = std::min((per_row + count - 1) / count * count, width_);
    const ptrdiff_t n_tiles = ptrdiff_t{per_row} * static_cast<ptrdiff_t>(rows_.size());
    // With inner products the source is scaled where it lies, which must be done once: where every thread prepares all
    // pixels, before.
    const bool before = scale_ >= 0 && !kernel_.on_amx() && panels_outside && count > 1;
    if (before) team.share(src_.blocks(), 1, [&](Range blocks) { scale_source(frame, blocks); });
    kernel_.share(
        team, n_tiles, panels_outside, next_weights, frame.far,
        [&](Range tiles) { prepare(frame, tiles, per_row, prepared(panels_outside, tiles, per_row), !before); },
        [&](Range panels, Range tiles, WeightsAhead& ahead) {
          run_panels(frame, picture ? &*picture : nullptr, tiles, per_row, panels,
                     prepared(panels_outside, tiles, per_row), ahead);
        });
  }

  bool read(const std::shared_ptr<const Picture>& picture) override {
    if (flat_ || kernel_.prepares() || !src_.image) return false;
    picture_ = picture;
    picture_rows_ = kernel_.bottom(rows_at_once() - 1) - kernel_.top(0);
    return true;
  }

  ptrdiff_t scratch_floats() const override {
    if (picture_ != nullptr) return PictureRows::floats(src_, picture_rows_);
    if (kernel_.on_amx()) {
      return kernel_.prepared_floats(share_panels_ ? std::max(room_of_all(), room_of_some()) : room_of_some());
    }
    if (kernel_.prepares()) return kernel_.prepared_floats(pixels());
    return through_ ? kernel_.through_floats(width_) : 0;
  }

  WeightStream first_weights() const override { return kernel_.stream(0); }
  bool fetches_ahead() const override { return true; }
  ptrdiff_t far_lines() const override {
    if (!small_) return 0;
    return kernel_.far_lines(ptrdiff_t{kernel_.tiles(width_)} * static_cast<ptrdiff_t>(rows_.size()));
  }

 private:
  // Output pixels that follow each other without a gap.
  struct Row {
    ptrdiff_t a, c, add;  // floats from the start of the arena, block 0 (a: see PictureRows::need)
    ConvKernel::Rows window;
  };

  void list_rows(const Tensor& src, const Tensor* add, const Window& window) {
    const PackedWeights& w = kernel_.weights();
    const auto dense = [](const Tensor& t) { return t.pad_left + t.pad_right == 0; };
    const bool same = w.kh * w.kw == 1 && window.stride_h * window.stride_w == 1 && src.h == dst_.h && src.w == dst_.w;
    const bool in_place = same && dense(src), all_dense = in_place && dense(dst_) && (add == nullptr || dense(*add));
    if (same && !all_dense && kernel_.on_amx()) {
      row_pixels_ = static_cast<int>(src.pitch() / BLOCK);
      add_pitch_ = add != nullptr ? add->pitch() : 0;
      width_ = (src.h - 1) * row_pixels_ + src.w;
    }
    through_ = in_place && !dense(dst_) && add == nullptr && kernel_.rows_waste(dst_.w);
    flat_ = through_ || row_pixels_ > 0 || all_dense;
    if (row_pixels_ == 0) width_ = flat_ ? dst_.h * dst_.w : dst_.w;
    for (int y = 0; y < (flat_ ? 1 : dst_.h); ++y) {
      rows_.push_back({src.at(0, kernel_.top(y), -window.pad_left), dst_.at(0, y, 0),
                       add != nullptr ? add->at(0, y, 0) : 0, kernel_.rows(y)});
    }
  }

  // Calls f(row, tiles of it) for each row that has some of the tiles.
  template <class F>
  static void for_parts(Range tiles, int per_row, F&& f) {
    for (ptrdiff_t y = tiles.begin / per_row; y * per_row < tiles.end; ++y) {
      f(y, Range{std::max(tiles.begin - y * per_row, ptrdiff_t{0}),
                 std::min<ptrdiff_t>(tiles.end - y * per_row, per_row)});
    }
  }

  ptrdiff_t pixels() const { return static_cast<ptrdiff_t>(rows_.size()) * width_; }
  // Pixels of the source that follow each other and are prepared together: from `begin` on (floats from the start of
  // the arena), so many, with room for so many.
  struct Prepared {
    ptrdiff_t begin, count, room;
  };
  // With AMX: a part of all pixels, or whole rows of the source with their padding.
  ptrdiff_t of_rows(int rows) const { return rows * (src_.pitch() / BLOCK); }
  ptrdiff_t room_of_all() const { return flat_ ? width_ : of_rows(src_.h); }
  ptrdiff_t room_of_some() const {
    if (flat_) return std::min<ptrdiff_t>(ConvKernel::MOST_TILES * kernel_.mr(), width_);
    return of_rows(std::min(kernel_.bottom(rows_at_once() - 1) - kernel_.top(0), src_.h));
  }
  // Rows that MOST_TILES tiles may be part of.
  int rows_at_once() const {
    const int per_row = kernel_.tiles(width_);
    return (ConvKernel::MOST_TILES + per_row - 2) / per_row + 1;
  }
  Prepared prepared(bool panels_outside, Range tiles, int per_row) const {
    if (!kernel_.on_amx()) return {0, 0, pixels()};
    if (panels_outside) tiles = {0, static_cast<ptrdiff_t>(rows_.size()) * per_row};
    const ptrdiff_t room = panels_outside ? room_of_all() : room_of_some();
    if (flat_) {
      const int begin = ConvKernel::first_pixel(width_, per_row, tiles.begin);
      return {rows_[0].a + begin * BLOCK, ConvKernel::first_pixel(width_, per_row, tiles.end) - begin, room};
    }
    const auto row = [&](int y) { return src_.at(0, std::clamp(y, 0, src_.h), -src_.pad_left); };
    const ptrdiff_t begin = row(kernel_.top(static_cast<int>(tiles.begin / per_row)));
    return {begin, (row(kernel_.bottom(static_cast<int>((tiles.end - 1) / per_row))) - begin) / BLOCK, room};
  }

  void scale_source(const Frame& frame, Range blocks) const {
    constexpr float INF = std::numeric_limits<float>::infinity();
    for (ptrdiff_t b = blocks.begin; b < blocks.end; ++b) {
      for (int y = 0; y < src_.h; ++y) {
        float* const row = frame.arena + src_.at(static_cast<int>(b), y, 0);
        mul_({row,
              frame.arena + scale_ + b * BLOCK,
              true,
              row,
              ptrdiff_t{src_.w} * BLOCK,
              {ActKind::clamp, -INF, INF, 0, 0}});
      }
    }
  }

  void prepare(const Frame& frame, Range tiles, int per_row, const Prepared& all, bool scaled) const {
    const float* const scale = scaled && scale_ >= 0 ? frame.arena + scale_ : nullptr;
    if (kernel_.on_amx()) {
      kernel_.prepare(frame.arena + all.begin, all.count, frame.scratch, all.room, scale);
      return;
    }
    for_parts(tiles, per_row, [&](ptrdiff_t y, Range part) {
      const int begin = ConvKernel::first_pixel(width_, per_row, part.begin);
      float* const a = frame.arena + rows_[static_cast<size_t>(y)].a + ptrdiff_t{begin} * BLOCK;
      kernel_.prepare(a, ConvKernel::first_pixel(width_, per_row, part.end) - begin, frame.scratch + y * width_ + begin,
                      all.room, scale, a);
    });
  }
  const float* prepared_row(const Frame& frame, ptrdiff_t y, const Prepared& all) const {
    if (!kernel_.on_amx()) return frame.scratch + y * width_;
    return frame.scratch + (rows_[static_cast<size_t>(y)].a - all.begin);  // a pixel takes a block in a plane too
  }

  void run_panels(const Frame& frame, PictureRows* picture, Range tiles, int per_row, Range panels, const Prepared& all,
                  WeightsAhead& ahead) const {
    const float* source = frame.arena;
    if (picture != nullptr) {
      source = picture->need(kernel_.top(static_cast<int>(tiles.begin / per_row)),
                             kernel_.bottom(static_cast<int>((tiles.end - 1) / per_row)));
      if (panels.begin == 0) ahead.soon = picture->next();
    }
    if (through_ || row_pixels_ > 0) {
      const int row = row_pixels_ > 0 ? row_pixels_ : dst_.w;
      const auto begin = [&](ptrdiff_t tile) {  // the first row that begins in this tile or behind
        return (ConvKernel::first_pixel(width_, per_row, tile) + row - 1) / row;
      };
      clear_padding(frame.arena, dst_, kernel_.blocks(panels), {begin(tiles.begin), begin(tiles.end)});
    }
    if (through_) {
      kernel_.run_through(frame.scratch, frame.arena + rows_[0].a, width_, per_row, tiles, panels.begin, dst_.w, ahead,
                          [&](int block, int y) { return frame.arena + dst_.at(block, y, 0); });
      return;
    }
    for_parts(tiles, per_row, [&](ptrdiff_t y, Range part) {
      if (part.begin == 0 && row_pixels_ == 0) clear_padding(frame.arena, dst_, kernel_.blocks(panels), {y, y + 1});
    });
    const bool several = kernel_.on_amx() && !has_add_;
    for (ptrdiff_t y = tiles.begin / per_row; y * per_row < tiles.end;) {
      const Row& row = rows_[static_cast<size_t>(y)];
      const Range part{std::max(tiles.begin - y * per_row, ptrdiff_t{0}),
                       std::min<ptrdiff_t>(tiles.end - y * per_row, per_row)};
      ptrdiff_t n = 1;
      const auto is_like = [&](const Row& r) {
        return r.window.begin == row.window.begin && r.window.end == row.window.end;
      };
      while (several && part.end - part.begin == per_row && (y + n + 1) * per_row <= tiles.end &&
             is_like(rows_[static_cast<size_t>(y + n)])) {
        ++n;
      }
      ConvKernel::Pixels p{source + row.a,
                           frame.arena + row.c,
                           dst_.block_stride(),
                           has_add_ ? frame.arena + row.add : nullptr,
                           add_stride_,
                           width_,
                           per_row,
                           prepared_row(frame, y, all),
                           all.room,
                           frame.scratch};
      p.c_pitch = dst_.pitch();
      p.row_pixels = row_pixels_;
      p.row_width = dst_.w;
      p.add_pitch = add_pitch_;
      if (n > 1) {
        p.rows = static_cast<int>(n);
        p.a_pitch = rows_[static_cast<size_t>(y + 1)].a - row.a;
      }
      kernel_.run(p, part, row.window, panels, ahead);
      y += n;
    }
  }

  void (*const mul_)(const EltArgs&);
  const ConvKernel kernel_;
  const Tensor src_, dst_;
  const bool has_add_;
  const ptrdiff_t scale_;  // what the source is multiplied with, or -1
  const ptrdiff_t add_stride_;
  std::vector<Row> rows_;
  int width_ = 0;            // pixels of a row
  bool flat_ = false;        // one row is the whole map, and its pixels are those of the source
  int row_pixels_ = 0;       // of the source, if its rows are cut as one in spite of padding somewhere
  ptrdiff_t add_pitch_ = 0;  // then
  bool through_ = false;     // by way of the scratch memory
  std::shared_ptr<const Picture> picture_;
  int picture_rows_ = 0;                              // that there is memory for
  bool small_ = true;                                 // the maps stay in the second-level cache
  bool panels_outside_ = true, share_panels_ = true;  // of one thread, of several
};

// A dense layer: one pixel, so a matrix-vector product.
class DenseOp final : public Op {
 public:
  DenseOp(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const Tensor* add,
          const ConvSpec& spec)
      : Op(std::move(name), std::string("gemv_f32/") + table.isa + (spec.weights->in_24_bits ? "/24bit" : "")),
        table_(table),
        spec_(spec),
        floats_(spec.weights->in_24_bits ? nullptr : spec.weights->floats.get()),
        src_(src.at(0, 0, 0)),
        dst_(dst.at(0, 0, 0)),
        add_(add != nullptr ? add->at(0, 0, 0) : -1) {}

  void run(const Frame& frame, Team& team) const override {
    const PackedWeights& w = *spec_.weights;
    if (w.in_24_bits) scale(frame);
    const ptrdiff_t n = w.blocks(), width = w.in_24_bits ? 4 : 2 * w.panel_blocks;  // what kernels do at a time
    const ptrdiff_t bytes = stream() / n * width * ptrdiff_t{sizeof(float)};
    team.share((n + width - 1) / width, grain_of_bytes(bytes), [&](Range part) {
      const Range blocks{part.begin * width, std::min(part.end * width, n)};
      if (w.in_24_bits) {
        some_in_24_bits(frame, blocks);
      } else {
        some(frame, blocks);
      }
    });
  }

  ptrdiff_t scratch_floats() const override {
    return spec_.weights->in_24_bits ? 4 * spec_.weights->in_24_bits->steps : 0;
  }
  WeightStream first_weights() const override { return {weights_at(), stream()}; }
  FarWeights streamed_weights() const override {
    return {reinterpret_cast<const char*>(weights_at()), stream() / BLOCK};
  }

 private:
  const float* weights_at() const {
    const PackedWeights& w = *spec_.weights;
    return w.in_24_bits ? reinterpret_cast<const float*>(w.in_24_bits->words) : floats_.get();
  }
  // What a run reads of them, in floats.
  ptrdiff_t stream() const {
    return spec_.weights->in_24_bits ? spec_.weights->in_24_bits->floats() : spec_.weights->size();
  }

  // What the weights are multiplied with, into the scratch memory.
  void scale(const Frame& frame) const {
    const Weights24& w = *spec_.weights->in_24_bits;
    const float* const x = frame.arena + src_;
    for (ptrdiff_t k = 0; k < w.ic; ++k) frame.scratch[k] = x[k] * w.in_scale[k];
    std::fill(frame.scratch + w.ic, frame.scratch + 4 * w.steps, 0.0f);
  }

  void some(const Frame& frame, Range blocks) const {
    const PackedWeights& w = *spec_.weights;
    GemvArgs g;
    g.x = frame.arena + src_;
    g.k = w.k(w.panels.front());
    g.b = floats_.get() + blocks.begin * g.k * BLOCK;
    table_.gemv(with_outputs(g, frame, blocks));
  }

  void some_in_24_bits(const Frame& frame, Range blocks) const {
    const Weights24& w = *spec_.weights->in_24_bits;
    Gemv24Args g;
    g.x = frame.scratch;
    g.steps = w.steps;
    g.b = w.words + blocks.begin * w.steps * GEMV24_STEP;
    g.scale = w.out_scale + blocks.begin * BLOCK;
    table_.gemv24(with_outputs(g, frame, blocks));
  }

  // What both kinds of weights have in common.
  template <class Args>
  const Args& with_outputs(Args& g, const Frame& frame, Range blocks) const {
    g.bias = spec_.weights->bias + blocks.begin * BLOCK;
    g.add = add_ >= 0 ? frame.arena + add_ + blocks.begin * BLOCK : nullptr;
    g.dst = frame.arena + dst_ + blocks.begin * BLOCK;
    g.n_blocks = blocks.end - blocks.begin;
    g.act = spec_.act;
    g.fetch_ahead = !streams_faster_alone();
    return g;
  }

  const KernelTable& table_;
  const ConvSpec spec_;
  const std::shared_ptr<const float> floats_;  // if they are read
  const ptrdiff_t src_, dst_, add_;
};

}  // namespace

OpPtr make_conv(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const Tensor* add,
                const ConvSpec& spec, const Tensor* scale) {
  const PackedWeights& w = *spec.weights;
  check(!dst.image, name, "only the input may be an image");
  check_padding(name, src, dst.w, spec);
  check(add == nullptr || (add->c == dst.c && add->h == dst.h && add->w == dst.w && !add->image), name,
        "the tensor to add has another shape");
  const auto dense = [](const Tensor& t) { return t.h * t.w == 1 && t.pad_left + t.pad_right == 0 && !t.image; };
  if (!w.depthwise && w.kh * w.kw == 1 && w.groups == 1 && !w.has_half() && !spec.inner && !spec.amx &&
      src.runs == nullptr && dense(src) && dense(dst) && (add == nullptr || dense(*add))) {
    check(w.panel_blocks == table.panel_blocks && w.ic == src.c && w.oc == dst.c, name,
          "weights do not fit the tensors");
    return std::make_unique<DenseOp>(table, std::move(name), src, dst, add, spec);
  }
  check_act(name, spec.act);
  ConvKernel kernel(table, name, src, dst.c, spec);
  if (scale != nullptr) {
    check(kernel.prepares() && src.runs == nullptr, name, "it does not multiply what it reads");
    check(scale->c == src.c && dense(*scale), name, "what it multiplies its source with has another shape");
  }
  return std::make_unique<ConvOp>(table, std::move(name), std::move(kernel), src, dst, add, scale, spec);
}

}  // namespace fmn
