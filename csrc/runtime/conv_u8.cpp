// Quantised convolutions. Maps carry their padding on all four sides, so that every window is whole.
#include <algorithm>

#include "runtime/u8_dispatch.h"
#include "runtime/u8_ops.h"

namespace fmn {

namespace {

constexpr ptrdiff_t TILES_AT_A_TIME = 8;
constexpr ptrdiff_t SHORT_WORDS = 64;  // with fewer, the end of a tile counts
constexpr int MAX_PASSES = 3;          // weights of -255 to 255 are the sum of three of -127 to 127
constexpr ptrdiff_t LINE = 64;         // bytes of a cache line
constexpr ptrdiff_t L1_BYTES = ptrdiff_t{32} << 10;
constexpr ptrdiff_t L2_BYTES = ptrdiff_t{1} << 20;  // of small cores today

std::string tile_name(const char* op, const U8Table& table, const std::string& size) {
  return std::string(op) + "/" + table.isa + "/" + size;
}

void check_window(const std::string& name, const Tensor& src, const Tensor& dst, const ConvU8Spec& spec) {
  const PackedU8& w = *spec.weights;
  const Window& v = spec.window;
  check(src.u8 && dst.u8 && !dst.image && src.c == w.ic && dst.c == w.oc, name, "weights do not fit the tensors");
  check(v.stride_h > 0 && v.stride_w > 0 && v.dilation_h > 0 && v.dilation_w > 0, name, "strides must be positive");
  const int right = (dst.w - 1) * v.stride_w - v.pad_left + (w.kw - 1) * v.dilation_w - (src.w - 1);
  const int bottom = (dst.h - 1) * v.stride_h - v.pad_top + (w.kh - 1) * v.dilation_h - (src.h - 1);
  check(v.pad_left <= src.pad_left && right <= src.pad_right && v.pad_top <= src.pad_top && bottom <= src.pad_bottom,
        name, "the source has too little padding");
  const AfterConvU8& after = spec.after;
  if (after.add != nullptr) {
    const Tensor& other = *after.add;
    check(other.u8 && !other.image && other.c == dst.c && other.h == dst.h && other.w == dst.w, name, "shapes differ");
    check(after.lookup == nullptr, name, "a table and a sum behind one convolution");
    check_add_factors(name, after.factors);
  }
}

// `pixels` pixels of a block that has just been made, from (y, x) on.
void do_after(const Frame& frame, const U8Table& table, const AfterConvU8& after, int block, int y, int x,
              uint8_t* made, ptrdiff_t pixels) {
  if (after.lookup != nullptr) table.lookup(made, made, pixels * BLOCK, after.lookup->data());
  if (after.add == nullptr) return;
  const Tensor& other = *after.add;
  const AddFactors& f = after.factors;
  table.add({made, frame.bytes() + other.at(block, y, x), false, after.zero, other.zero, f.ma, f.mb, f.shift, 0, made,
             pixels, after.requant, 0, 0, 0});
}

std::string with_after(std::string id, const AfterConvU8& after) {
  return id + (after.lookup != nullptr ? "+lookup" : after.add != nullptr ? "+add" : "");
}

class ConvU8Op final : public Op {
 public:
  ConvU8Op(const U8Table& table, std::string name, std::string id, int mr, const Tensor& src, const Tensor& dst,
           const ConvU8Spec& spec)
      : Op(std::move(name), std::move(id)), table_(table), spec_(spec), src_(src), dst_(dst), mr_(mr) {
    const PackedU8& w = *spec.weights;
    const Window& v = spec.window;
    xs_ = ptrdiff_t{src.pixel()} / 4 * v.stride_w;
    for (int ky = 0; ky < w.kh; ++ky) {
      const ptrdiff_t row = ptrdiff_t{ky} * v.dilation_h * src.pitch();
      if (src.image && v.dilation_w == 1) {  // the pixels of a window row follow each other
        segments_.push_back({row, w.kw});
        continue;
      }
      for (int kx = 0; kx < w.kw; ++kx) {
        const ptrdiff_t at = row + ptrdiff_t{kx} * v.dilation_w * src.pixel();
        for (int ic = 0; ic < w.ic; ic += src.image ? w.ic : BLOCK) {
          const int words = (std::min(BLOCK, w.ic - ic) + 3) / 4;
          segments_.push_back({at + (src.image ? 0 : ic / BLOCK * src.block_stride()), words});
        }
      }
    }
    once_ = static_cast<ptrdiff_t>(segments_.size());
    const auto all = segments_;
    for (int pass = 1; pass < MAX_PASSES; ++pass) segments_.insert(segments_.end(), all.begin(), all.end());
    for (const WordSegment& s : all) words_ += s.len;
    if (table.pairwise) {
      int passes = 1;
      for (const PackedU8::Panel& p : w.panels) passes = std::max(passes, p.passes);
      // An odd number of lines, so that the pixels of a tile do not share the sets of a cache; the last 32 bytes that
      // are written may be half in use.
      signs_row_ = (((words_ * passes * 8 + 32) / LINE + 1) | 1) * LINE;
    }
    int xs = static_cast<int>(xs_);
    if (find_gemm_u8(table, 1, 1, xs) == nullptr) xs = 0;
    for (int nb = 0; nb <= table.panel_blocks; ++nb) {
      for (int m = 0; m <= mr; ++m)
        fns_.push_back(m > 0 && nb > 0 ? find_gemm_u8(table, m, table.pairwise ? 1 : nb, xs) : nullptr);
    }
    const auto dense = [](const Tensor& t) { return t.pad_left + t.pad_right == 0 && !t.image; };
    flat_ = w.kh * w.kw == 1 && v.stride_h * v.stride_w == 1 && dense(src) && dense(dst);
    flat_ = flat_ && (spec.after.add == nullptr || dense(*spec.after.add));
    width_ = flat_ ? dst.h * dst.w : dst.w;
    rows_ = flat_ ? 1 : dst.h;
    const ptrdiff_t weight_bytes = words_ * 4 * BLOCK * ((w.oc + BLOCK - 1) / BLOCK);
    panels_outside_ = weight_bytes > L2_BYTES / 2 || src.elements() + dst.elements() < L2_BYTES;
    // Which half of the work a thread does. By tiles it reads half of the map and all weights; by panels all of the
    // map, but what it writes is, if a depthwise convolution follows, also what it reads next: that goes by blocks.
    const bool widens = dst.elements() >= src.elements() && src.elements() < L2_BYTES / 2;
    share_panels_ = weight_bytes > L2_BYTES / 2 || weight_bytes > 4 * src.elements() || widens;
  }

  void run(const Frame& frame, Team& team) const override {
    const ptrdiff_t per_row = (width_ + mr_ - 1) / mr_, n_tiles = per_row * rows_;
    const auto n_panels = static_cast<ptrdiff_t>(spec_.weights->panels.size());
    // A multiply-add of bytes takes a quarter of the time of one of floats.
    const ptrdiff_t macs = mr_ * words_ * BLOCK * spec_.weights->panels.front().nb;
    if (team.count() == 1 ? panels_outside_ : share_panels_) {
      team.share(n_panels * n_tiles, grain_of_macs(macs), [&](Range part) {
        for (ptrdiff_t p = part.begin / n_tiles; p * n_tiles < part.end; ++p) {
          const Range tiles{std::max(part.begin - p * n_tiles, ptrdiff_t{0}),
                            std::min(part.end - p * n_tiles, n_tiles)};
          run_panel(frame, tiles, per_row, p, ahead(p, tiles, n_tiles));
        }
      });
      return;
    }
    // A part of few tiles leaves a kernel little to overlap, and is dear where a tile is short.
    const ptrdiff_t least = words_ < SHORT_WORDS ? TILES_AT_A_TIME : TILES_AT_A_TIME / 2;
    const ptrdiff_t grain = std::max(std::min(TILES_AT_A_TIME, grain_of_macs(macs * n_panels)), least);
    team.share(n_tiles, grain, [&](Range part) {
      for (ptrdiff_t begin = part.begin; begin < part.end; begin += TILES_AT_A_TIME) {
        const Range tiles{begin, std::min(begin + TILES_AT_A_TIME, part.end)};
        for (ptrdiff_t p = 0; p < n_panels; ++p) run_panel(frame, tiles, per_row, p, ahead(p, {0, 1}, 1));
      }
    });
  }

  ptrdiff_t scratch_floats() const override { return mr_ * signs_row_ / ptrdiff_t{sizeof(float)}; }
  WeightStream first_weights() const override { return stream(0); }
  bool fetches_ahead() const override { return true; }

 private:
  // In units of floats, as WeightStream counts.
  WeightStream stream(size_t p) const {
    if (p >= spec_.weights->panels.size()) return {};
    const PackedU8::Panel& panel = spec_.weights->panels[p];
    return {reinterpret_cast<const float*>(spec_.weights->weight + panel.offset),
            words_ * panel.passes * panel.nb * BLOCK};
  }

  // What to fetch during some tiles of panel p.
  WeightsAhead ahead(ptrdiff_t p, Range tiles, ptrdiff_t n_tiles) const {
    const auto n_panels = static_cast<ptrdiff_t>(spec_.weights->panels.size());
    return {stream(static_cast<size_t>(p) + 1).part(tiles, n_tiles),
            next_weights.part({p * n_tiles + tiles.begin, p * n_tiles + tiles.end}, n_panels * n_tiles)};
  }

  void run_panel(const Frame& frame, Range tiles, ptrdiff_t per_row, ptrdiff_t p, WeightsAhead ahead) const {
    const PackedU8& w = *spec_.weights;
    const PackedU8::Panel& panel = w.panels[static_cast<size_t>(p)];
    for (ptrdiff_t at = tiles.begin; at < tiles.end;) {
      const ptrdiff_t y = at / per_row, first = at % per_row;
      const ptrdiff_t last = std::min(per_row, first + tiles.end - at);
      const ptrdiff_t rows = last - first == per_row ? (tiles.end - at) / per_row : 1;
      rectangle(frame, panel, ahead, per_row, {y, y + rows}, {first, last});
      at += rows * (last - first);
    }
  }

  // Tiles of some rows. They are of nearly equal size: some of `size` pixels, then some of one less.
  void rectangle(const Frame& frame, const PackedU8::Panel& panel, WeightsAhead& ahead, ptrdiff_t per_row, Range rows,
                 Range tiles) const {
    if (tiles.begin == 0) {
      const Range all{0, dst_.h};
      clear_padding(frame.arena, dst_, {panel.block, panel.block + panel.nb}, flat_ ? all : rows);
    }
    const ptrdiff_t size = (width_ + per_row - 1) / per_row, wide = per_row - (per_row * size - width_);
    some(frame, panel, ahead, rows, {tiles.begin, std::min(tiles.end, wide)}, tiles.begin * size, size);
    const ptrdiff_t narrow = std::max(tiles.begin, wide);
    some(frame, panel, ahead, rows, {narrow, tiles.end}, wide * size + (narrow - wide) * (size - 1), size - 1);
  }

  // Tiles of mr pixels from column x on.
  void some(const Frame& frame, const PackedU8::Panel& panel, WeightsAhead& ahead, Range rows, Range tiles, ptrdiff_t x,
            ptrdiff_t mr) const {
    const ptrdiff_t count = tiles.end - tiles.begin;
    if (count <= 0) return;
    if (spec_.after.nothing()) return multiply(frame, panel, ahead, rows, count, x, mr);
    // What follows finds its bytes in the first-level cache.
    const ptrdiff_t some_tiles = std::min(count, TILES_AT_A_TIME);
    const ptrdiff_t some_rows = std::max(TILES_AT_A_TIME / count, ptrdiff_t{1});
    for (ptrdiff_t y = rows.begin; y < rows.end; y += some_rows) {
      const Range now{y, std::min(y + some_rows, rows.end)};
      for (ptrdiff_t t = 0; t < count; t += some_tiles) {
        const ptrdiff_t tiles_now = std::min(some_tiles, count - t), x_now = x + t * mr;
        multiply(frame, panel, ahead, now, tiles_now, x_now, mr);
        for (int block = panel.block; block < panel.block + panel.nb; ++block) {
          for (auto row = static_cast<int>(now.begin); row < now.end; ++row) {
            const auto column = static_cast<int>(x_now);
            do_after(frame, table_, spec_.after, block, row, column, frame.bytes() + dst_.at(block, row, column),
                     tiles_now * mr);
          }
        }
      }
    }
  }

  void multiply(const Frame& frame, const PackedU8::Panel& panel, WeightsAhead& ahead, Range rows, ptrdiff_t tiles,
                ptrdiff_t x, ptrdiff_t mr) const {
    const PackedU8& w = *spec_.weights;
    const Window& v = spec_.window;
    const auto row = static_cast<int>(rows.begin);
    GemmU8Args g;
    g.tiles = tiles;
    g.rows = rows.end - rows.begin;
    g.a = frame.bytes() + src_.at(0, row * v.stride_h - v.pad_top, -v.pad_left) + x * xs_ * 4;
    g.a_row = src_.pitch() * v.stride_h;
    g.xs = xs_;
    g.segs = segments_.data();
    g.n_segs = once_ * panel.passes;
    g.b = w.weight + panel.offset;
    g.bias = w.bias + panel.block * BLOCK;
    g.scale = w.scale + panel.block * BLOCK;
    g.c = frame.bytes() + dst_.at(panel.block, row, static_cast<int>(x));
    g.c_row = dst_.pitch();
    g.c_stride = dst_.block_stride();
    g.requant = spec_.requant;
    g.blocks = panel.nb;
    g.signs = reinterpret_cast<uint8_t*>(frame.scratch);
    g.signs_row = signs_row_;
    const char* soon = ahead.take(words_ * panel.passes * g.tiles * g.rows * (table_.pairwise ? panel.nb : 2) / 2);
    g.prefetch = soon != nullptr ? soon : reinterpret_cast<const char*>(g.b);
    fns_[static_cast<size_t>(panel.nb * (mr_ + 1) + mr)](g);
  }

  const U8Table& table_;
  const ConvU8Spec spec_;
  const Tensor src_, dst_;
  const int mr_;
  std::vector<WordSegment> segments_;  // once for each pass
  ptrdiff_t once_ = 0, words_ = 0, signs_row_ = 0;
  std::vector<GemmU8Fn> fns_;  // [nb][mr]
  ptrdiff_t xs_ = 0;
  int width_ = 0, rows_ = 1;
  bool flat_ = false, panels_outside_ = true, share_panels_ = true;
};

class DepthwiseU8Op final : public Op {
 public:
  DepthwiseU8Op(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst, const ConvU8Spec& spec)
      : Op(std::move(name), with_after(tile_name("dw_u8", table, size_name(spec)), spec.after)),
        table_(table),
        fn_(find_dw_u8(table, spec.weights->dw_k, spec.weights->dw_k == 0 ? 0 : spec.window.stride_h)),
        src_(src),
        dst_(dst),
        spec_(spec) {}

  void run(const Frame& frame, Team& team) const override {
    const PackedU8& w = *spec_.weights;
    // Of a row. Between bytes that are transposed and rounded they take twice the time of those of dense floats.
    const ptrdiff_t macs = ptrdiff_t{dst_.w} * w.kh * w.kw * BLOCK;
    team.share(ptrdiff_t{dst_.blocks()} * dst_.h, grain_of_macs(2 * macs), [&](Range part) {
      for (ptrdiff_t i = part.begin; i < part.end;) {
        const int block = static_cast<int>(i / dst_.h), y = static_cast<int>(i % dst_.h);
        const int end = static_cast<int>(std::min<ptrdiff_t>(dst_.h, y + part.end - i));
        filter(frame, block, y, end);
        clear_padding(frame.arena, dst_, {block, block + 1}, {y, end});
        i += end - y;
      }
    });
  }

 private:
  // Rows y .. end - 1, and what is done to their bytes.
  void filter(const Frame& frame, int block, int y, int end) const {
    const ptrdiff_t row_bytes = ptrdiff_t{dst_.w} * BLOCK;
    const int step =
        spec_.after.nothing() ? end - y : static_cast<int>(std::max(L1_BYTES / 4 / row_bytes, ptrdiff_t{2}));
    for (int first = y; first < end; first += step) {
      const int last = std::min(end, first + step);
      rows(frame, block, first, last);
      if (spec_.after.nothing()) continue;
      for (int r = first; r < last; ++r) {
        do_after(frame, table_, spec_.after, block, r, 0, frame.bytes() + dst_.at(block, r, 0), dst_.w);
      }
    }
  }

  static std::string size_name(const ConvU8Spec& spec) {
    const PackedU8& w = *spec.weights;
    if (w.dw_k == 0) return "any";
    return std::to_string(w.kh) + "x" + std::to_string(w.kw) + "s" + std::to_string(spec.window.stride_h);
  }

  void rows(const Frame& frame, int block, int y0, int y1) const {
    const PackedU8& w = *spec_.weights;
    const Window& v = spec_.window;
    thread_local std::vector<const uint8_t*> rows;
    rows.clear();
    const auto row = [&](int y) { rows.push_back(frame.bytes() + src_.at(block, y, -v.pad_left)); };
    if (w.dw_k == 0) {
      for (int y = y0; y < y1; ++y) {
        for (int ky = 0; ky < w.kh; ++ky) row(y * v.stride_h - v.pad_top + ky * v.dilation_h);
      }
    } else {
      for (int r = 0; r < (y1 - y0 - 1) * v.stride_h + w.kh; ++r) row(y0 * v.stride_h - v.pad_top + r);
    }
    DwU8Args d;
    d.rows = rows.data();
    d.w =
        w.weight + ptrdiff_t{block} * w.passes * w.kh * dw_words(w.dw_k, v.stride_h, w.kw, table_.pairwise) * BLOCK * 4;
    d.passes = w.passes;
    d.bias = w.bias + ptrdiff_t{block} * BLOCK;
    d.scale = w.scale + ptrdiff_t{block} * BLOCK;
    d.dst = frame.bytes() + dst_.at(block, y0, 0);
    d.dst_stride = dst_.pitch();
    d.oh = y1 - y0;
    d.ow = dst_.w;
    d.requant = spec_.requant;
    d.kh = w.kh;
    d.kw = w.kw;
    d.stride_w = v.stride_w;
    d.dilation_w = v.dilation_w;
    fn_(d);
  }

  const U8Table& table_;
  const DwU8Fn fn_;
  const Tensor src_, dst_;
  const ConvU8Spec spec_;
};

}  // namespace

OpPtr make_conv_u8(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst,
                   const ConvU8Spec& spec) {
  check_window(name, src, dst, spec);
  check(!spec.weights->depthwise && spec.weights->isa == table.isa, name, "the weights are packed for another kernel");
  int xs = src.pixel() / 4 * spec.window.stride_w;
  if (find_gemm_u8(table, 1, 1, xs) == nullptr) xs = 0;
  int widest = 1;
  for (const PackedU8::Panel& p : spec.weights->panels) widest = std::max(widest, table.pairwise ? 1 : p.nb);
  for (const PackedU8::Panel& p : spec.weights->panels) {
    check(p.passes >= 1 && p.passes <= MAX_PASSES && p.nb <= table.panel_blocks, name, "the panels do not fit");
  }
  int mr = 0;
  while (find_gemm_u8(table, mr + 1, widest, xs) != nullptr) ++mr;
  check(mr > 0, name, "the kernel table has no kernel for a tile");
  std::string id = tile_name("gemm_u8", table, std::to_string(mr) + "x" + std::to_string(widest * BLOCK));
  id = with_after(std::move(id), spec.after);
  return std::make_unique<ConvU8Op>(table, std::move(name), std::move(id), mr, src, dst, spec);
}

OpPtr make_depthwise_u8(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst,
                        const ConvU8Spec& spec) {
  check_window(name, src, dst, spec);
  check(spec.weights->depthwise && spec.weights->isa == table.isa && !src.image, name,
        "the weights are packed for another kernel");
  check(find_dw_u8(table, spec.weights->dw_k, spec.weights->dw_k == 0 ? 0 : spec.window.stride_h) != nullptr, name,
        "the kernel table has no such depthwise kernel");
  return std::make_unique<DepthwiseU8Op>(table, std::move(name), src, dst, spec);
}

}  // namespace fmn
