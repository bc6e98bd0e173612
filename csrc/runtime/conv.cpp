// Convolutions with groups = 1: tiles and panels of the GEMM kernels.
//
// The output is cut into tiles of up to mr pixels (along a row, or along the whole map where no tensor has
// padding between its rows) and panels of up to two 16-channel blocks. Both lists are made once, at plan time.
#include <algorithm>
#include <climits>

#include "runtime/dispatch.h"
#include "runtime/ops.h"

namespace fmn {

namespace {

constexpr ptrdiff_t L2_FLOATS = (size_t{1} << 20) / sizeof(float);  // a small second-level cache of today

struct Tile {
  ptrdiff_t a, c, add;  // floats from the start of the arena, block 0
  ptrdiff_t b;          // floats from the start of a block of weights
  const Segment* segs;
  int n_segs;
  int mr;
  int row;  // output row whose padding this tile clears, or -1
};

struct Panel {
  int block, nb;
};

class ConvOp final : public Op {
 public:
  ConvOp(const KernelTable& table, std::string name, std::string kernel, const Tensor& src, const Tensor& dst,
         const Tensor* add, std::shared_ptr<const PackedWeights> weights, const Window& window, int xs, int mr, int nb,
         float lo, float hi)
      : Op(std::move(name), std::move(kernel)),
        dst_(dst),
        weights_(std::move(weights)),
        has_add_(add != nullptr),
        c_stride_(dst.block_stride()),
        add_stride_(add != nullptr ? add->block_stride() : 0),
        lo_(lo),
        hi_(hi) {
    list_segments(src, window);
    list_tiles(src, dst, add, window, mr);
    for (int block = 0; block < dst.blocks(); block += nb)
      panels_.push_back({block, std::min(nb, dst.blocks() - block)});
    xs_ = ptrdiff_t{src.pixel()} * window.stride_w;
    fns_.assign(static_cast<size_t>((nb + 1) * (mr + 1)), nullptr);
    mr_ = mr;
    for (const Panel& p : panels_) {
      for (const Tile& t : tiles_) {
        GemmFn fn = find_gemm(table, t.mr, p.nb, xs);
        check(fn != nullptr, this->name, "no kernel for a tile");
        fns_[static_cast<size_t>(p.nb * (mr + 1) + t.mr)] = fn;
      }
    }
    // What is larger than the cache is walked once, the other once for each step of it.
    const ptrdiff_t weight_floats = weights_->k() * BLOCK * weights_->blocks();
    panels_outside_ = weight_floats > L2_FLOATS / 2 || src.floats() + dst.floats() < L2_FLOATS;
  }

  void run(const Frame& frame, Team& team, int index) const override {
    const auto n_tiles = static_cast<ptrdiff_t>(tiles_.size()), n_panels = static_cast<ptrdiff_t>(panels_.size());
    Range tiles{0, n_tiles}, panels{0, n_panels};
    const int count = team.count();
    if (count > 1) {
      // The longest part decides; among equals, threads share what is smaller to read.
      const ptrdiff_t by_panels = (n_panels + count - 1) / count * n_tiles;
      const ptrdiff_t by_tiles = (n_tiles + count - 1) / count * n_panels;
      if (by_panels < by_tiles || (by_panels == by_tiles && panels_outside_)) {
        panels = split(n_panels, count, index);
      } else {
        tiles = split(n_tiles, count, index);
      }
    }
    if (panels_outside_) {
      for (ptrdiff_t p = panels.begin; p < panels.end; ++p) {
        for (ptrdiff_t t = tiles.begin; t < tiles.end; ++t) run_tile(frame, tiles_[t], panels_[p]);
      }
    } else {
      for (ptrdiff_t t = tiles.begin; t < tiles.end; ++t) {
        for (ptrdiff_t p = panels.begin; p < panels.end; ++p) run_tile(frame, tiles_[t], panels_[p]);
      }
    }
  }

 private:
  void list_segments(const Tensor& src, const Window& window) {
    const PackedWeights& w = *weights_;
    for (int ky = 0; ky < w.kh; ++ky) {
      const ptrdiff_t row = ptrdiff_t{ky} * window.dilation_h * src.pitch();
      if (src.image && window.dilation_w == 1) {
        segments_.push_back({row, ptrdiff_t{w.kw} * w.ic});
        continue;
      }
      for (int kx = 0; kx < w.kw; ++kx) {
        const ptrdiff_t at = row + ptrdiff_t{kx} * window.dilation_w * src.pixel();
        for (int ic = 0; ic < w.ic; ic += src.image ? w.ic : BLOCK) {
          segments_.push_back({at + ic / BLOCK * src.block_stride(), src.image ? w.ic : std::min(BLOCK, w.ic - ic)});
        }
      }
    }
    segments_per_row_ = static_cast<int>(segments_.size()) / w.kh;
  }

  void list_tiles(const Tensor& src, const Tensor& dst, const Tensor* add, const Window& window, int mr) {
    const PackedWeights& w = *weights_;
    const bool dense_rows = [&] {
      const auto dense = [](const Tensor& t) { return t.pad_left + t.pad_right == 0; };
      return w.kh * w.kw == 1 && window.stride_h * window.stride_w == 1 && src.h == dst.h && src.w == dst.w &&
             dense(src) && dense(dst) && (add == nullptr || dense(*add));
    }();
    const int rows = dense_rows ? 1 : dst.h;
    const int width = dense_rows ? dst.h * dst.w : dst.w;
    const int per_row = (width + mr - 1) / mr;
    for (int y = 0; y < rows; ++y) {
      // Rows of the window that lie inside of the map.
      const int top = y * window.stride_h - window.pad_top;
      int first = 0, last = w.kh;
      while (first < last && top + first * window.dilation_h < 0) ++first;
      while (last > first && top + (last - 1) * window.dilation_h >= src.h) --last;
      for (int i = 0; i < per_row; ++i) {
        const Range x = split(width, per_row, i);
        Tile t;
        t.mr = static_cast<int>(x.end - x.begin);
        const int x0 = static_cast<int>(x.begin);
        t.a = src.at(0, 0, 0) + top * src.pitch() + ptrdiff_t{x0 * window.stride_w - window.pad_left} * src.pixel();
        t.c = dst.at(0, y, x0);
        t.add = add != nullptr ? add->at(0, y, x0) : 0;
        t.segs = segments_.data() + first * segments_per_row_;
        t.n_segs = (last - first) * segments_per_row_;
        t.b = ptrdiff_t{first} * w.kw * w.ic * BLOCK;
        t.row = i == 0 && dst.pad_left + dst.pad_right > 0 ? y : -1;
        tiles_.push_back(t);
      }
    }
  }

  void run_tile(const Frame& frame, const Tile& t, const Panel& p) const {
    GemmArgs g;
    g.a = frame.arena + t.a;
    g.xs = xs_;
    g.segs = t.segs;
    g.n_segs = t.n_segs;
    g.b = weights_->weight + p.block * weights_->k() * BLOCK + t.b * p.nb;
    g.bias = weights_->bias + p.block * BLOCK;
    g.c = frame.arena + t.c + p.block * c_stride_;
    g.c_stride = c_stride_;
    g.add = has_add_ ? frame.arena + t.add + p.block * add_stride_ : nullptr;
    g.add_stride = add_stride_;
    g.lo = lo_;
    g.hi = hi_;
    g.prefetch = nullptr;
    if (t.row >= 0) clear_padding(frame.arena, dst_, {p.block, p.block + p.nb}, {t.row, t.row + 1});
    fns_[static_cast<size_t>(p.nb * (mr_ + 1) + t.mr)](g);
  }

  const Tensor dst_;
  const std::shared_ptr<const PackedWeights> weights_;
  const bool has_add_;
  const ptrdiff_t c_stride_, add_stride_;
  const float lo_, hi_;
  std::vector<Segment> segments_;  // (ky, kx, channel block), as the weights lie
  int segments_per_row_ = 0;       // of one ky
  std::vector<Tile> tiles_;
  std::vector<Panel> panels_;
  std::vector<GemmFn> fns_;  // [nb][mr]
  ptrdiff_t xs_ = 0;
  int mr_ = 0;
  bool panels_outside_ = true;
};

// A dense layer: one pixel, so a matrix-vector product.
class DenseOp final : public Op {
 public:
  DenseOp(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const Tensor* add,
          std::shared_ptr<const PackedWeights> weights, float lo, float hi)
      : Op(std::move(name), std::string("gemv_f32/") + table.isa),
        table_(table),
        weights_(std::move(weights)),
        src_(src.at(0, 0, 0)),
        dst_(dst.at(0, 0, 0)),
        add_(add != nullptr ? add->at(0, 0, 0) : -1),
        lo_(lo),
        hi_(hi) {}

  void run(const Frame& frame, Team& team, int index) const override {
    const int panel = weights_->panel_blocks;
    const ptrdiff_t n = weights_->blocks();
    const Range panels = split((n + panel - 1) / panel, team.count(), index);
    const Range blocks{panels.begin * panel, std::min(panels.end * panel, n)};
    GemvArgs g;
    g.x = frame.arena + src_;
    g.k = weights_->k();
    g.b = weights_->weight + blocks.begin * g.k * BLOCK;
    g.bias = weights_->bias + blocks.begin * BLOCK;
    g.add = add_ >= 0 ? frame.arena + add_ + blocks.begin * BLOCK : nullptr;
    g.dst = frame.arena + dst_ + blocks.begin * BLOCK;
    g.n_blocks = blocks.end - blocks.begin;
    g.lo = lo_;
    g.hi = hi_;
    table_.gemv(g);
  }

 private:
  const KernelTable& table_;
  const std::shared_ptr<const PackedWeights> weights_;
  const ptrdiff_t src_, dst_, add_;
  const float lo_, hi_;
};

}  // namespace

OpPtr make_conv(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const Tensor* add,
                std::shared_ptr<const PackedWeights> weights, const Window& window, float lo, float hi) {
  const PackedWeights& w = *weights;
  check(w.panel_blocks == table.panel_blocks, name, "the weights are packed for another ISA");
  check(!w.depthwise && w.ic == src.c && w.oc == dst.c && !dst.image, name, "weights do not fit the tensors");
  const int right = (dst.w - 1) * window.stride_w - window.pad_left + (w.kw - 1) * window.dilation_w - (src.w - 1);
  check(window.pad_left <= src.pad_left && right <= src.pad_right, name, "the source has too little padding");
  check(window.stride_h > 0 && window.stride_w > 0 && window.dilation_h > 0 && window.dilation_w > 0, name,
        "strides and dilations must be positive");
  check(add == nullptr || (add->c == dst.c && add->h == dst.h && add->w == dst.w && !add->image), name,
        "the tensor to add has another shape");
  const auto dense = [](const Tensor& t) { return t.h * t.w == 1 && t.pad_left + t.pad_right == 0 && !t.image; };
  if (w.kh * w.kw == 1 && dense(src) && dense(dst) && (add == nullptr || dense(*add))) {
    return std::make_unique<DenseOp>(table, std::move(name), src, dst, add, std::move(weights), lo, hi);
  }
  int xs = src.pixel() * window.stride_w;
  if (max_mr(table, 1, xs) == 0) xs = 0;  // no kernel was compiled for this stride
  const int nb = std::min(w.panel_blocks, dst.blocks());
  const int mr = max_mr(table, nb, xs);
  std::string kernel =
      std::string("gemm_f32/") + table.isa + "/" + std::to_string(mr) + "x" + std::to_string(nb * BLOCK);
  return std::make_unique<ConvOp>(table, std::move(name), std::move(kernel), src, dst, add, std::move(weights), window,
                                  xs, mr, nb, lo, hi);
}

}  // namespace fmn
