// 1x1 convolutions by Winograd's inner product (kernels/inner.h), for cores that add beside their multiply-adds
// (adds_beside_multiplies in cpu.h): Zen 4 does them in 0.7 of the time of the plain sum.
//
// Tiles and panels are walked as ConvOp does it. What is subtracted for every pixel is made by every thread for the
// pixels that it needs: it costs as much as one or two output channels.
#include "runtime/inner.h"

#include <algorithm>

#include "runtime/conv_kernel.h"

namespace fmn {

namespace {

constexpr int MAX_MR = 10;
constexpr ptrdiff_t L2_FLOATS = (ptrdiff_t{1} << 20) / ptrdiff_t{sizeof(float)};  // of small cores today
constexpr ptrdiff_t TILES_AT_A_TIME = 8;

bool is_dense(const Tensor& t) { return t.pad_left + t.pad_right == 0; }

class InnerOp final : public Op {
 public:
  InnerOp(const KernelTable& table, const std::string& name, std::shared_ptr<const InnerWeights> weights,
          const Tensor& src, const Tensor& dst, const Tensor* add, const Act& act)
      : Op(name, std::string("gemm_f32/") + table.isa + "/10x32/inner"),
        kernels_(table.inner),
        weights_(std::move(weights)),
        act_(act),
        src_(src),
        dst_(dst),
        add_(add != nullptr ? *add : dst),
        has_add_(add != nullptr) {
    const bool flat = is_dense(dst) && (add == nullptr || is_dense(*add));
    rows_ = flat ? 1 : dst.h;
    width_ = flat ? dst.h * dst.w : dst.w;
    const PackedWeights& w = *weights_->plain;
    const ptrdiff_t floats = ptrdiff_t{w.ic} * w.blocks() * BLOCK;
    panels_outside_ = floats > L2_FLOATS / 2 || src.floats() + dst.floats() < L2_FLOATS;
    // As in conv_u8.cpp: a thread that makes whole panels of a map that grows finds them again in the depthwise
    // convolution behind it, which goes by blocks.
    const bool widens = dst.floats() >= src.floats() && src.floats() < L2_FLOATS / 2;
    share_panels_ = floats > L2_FLOATS / 2 || floats > 4 * src.floats() || widens;
  }

  ptrdiff_t scratch_floats() const override { return ptrdiff_t{dst_.h} * dst_.w; }
  WeightStream first_weights() const override { return stream(0); }
  bool fetches_ahead() const override { return true; }

  void run(const Frame& frame, Team& team) const override {
    const int count = team.count();
    const bool panels_outside = count == 1 ? panels_outside_ : share_panels_;
    int per_row = (width_ + MAX_MR - 1) / MAX_MR;
    // Few tiles in all: as many for each thread.
    if (!panels_outside && rows_ == 1) per_row = std::min((per_row + count - 1) / count * count, width_);
    const ptrdiff_t n_tiles = ptrdiff_t{per_row} * rows_, n_panels = static_cast<ptrdiff_t>(weights_->panels.size());
    const ptrdiff_t macs = ptrdiff_t{MAX_MR} * weights_->plain->ic * weights_->panels.front().nb * BLOCK;  // of a tile
    if (panels_outside) {
      bool ready = false;
      team.share(n_panels * n_tiles, grain_of_macs(macs), [&](Range part) {
        if (!ready) make_pixels(frame, {0, n_tiles}, per_row);
        ready = true;
        for (ptrdiff_t p = part.begin / n_tiles; p * n_tiles < part.end; ++p) {
          const Range tiles{std::max(part.begin - p * n_tiles, ptrdiff_t{0}),
                            std::min(part.end - p * n_tiles, n_tiles)};
          WeightsAhead ahead{
              stream(p + 1).part(tiles, n_tiles),
              next_weights.part({p * n_tiles + tiles.begin, p * n_tiles + tiles.end}, n_panels * n_tiles)};
          run_panel(frame, p, tiles, per_row, ahead);
        }
      });
      return;
    }
    team.share(n_tiles, std::min(TILES_AT_A_TIME, grain_of_macs(macs * n_panels)), [&](Range part) {
      for (ptrdiff_t begin = part.begin; begin < part.end; begin += TILES_AT_A_TIME) {
        const Range tiles{begin, std::min(begin + TILES_AT_A_TIME, part.end)};
        make_pixels(frame, tiles, per_row);
        for (ptrdiff_t p = 0; p < n_panels; ++p) {
          WeightsAhead ahead{stream(p + 1), next_weights.part({p, p + 1}, n_panels)};
          run_panel(frame, p, tiles, per_row, ahead);
        }
      }
    });
  }

 private:
  WeightStream stream(ptrdiff_t p) const {
    if (p >= static_cast<ptrdiff_t>(weights_->panels.size())) return {};
    const InnerWeights::Panel& panel = weights_->panels[static_cast<size_t>(p)];
    return {weights_->weight + panel.offset, ptrdiff_t{weights_->plain->ic} * panel.nb * BLOCK};
  }

  ptrdiff_t first_pixel(ptrdiff_t tile, int per_row) const {
    return tile / per_row * width_ + ConvKernel::first_pixel(width_, per_row, tile % per_row);
  }

  void make_pixels(const Frame& frame, Range tiles, int per_row) const {
    const ptrdiff_t begin = first_pixel(tiles.begin, per_row), end = first_pixel(tiles.end, per_row);
    kernels_.pixels({frame.arena + src_.at(0, 0, 0) + begin * BLOCK, weights_->plain->ic / BLOCK, src_.block_stride(),
                     end - begin, frame.scratch + begin});
  }

  void run_panel(const Frame& frame, ptrdiff_t p, Range tiles, int per_row, WeightsAhead& ahead) const {
    const InnerWeights::Panel& panel = weights_->panels[static_cast<size_t>(p)];
    for (ptrdiff_t y = tiles.begin / per_row; y * per_row < tiles.end; ++y) {
      const Range part{std::max(tiles.begin - y * per_row, ptrdiff_t{0}),
                       std::min<ptrdiff_t>(tiles.end - y * per_row, per_row)};
      if (part.begin == 0) clear_padding(frame.arena, dst_, {panel.block, panel.block + panel.nb}, {y, y + 1});
      run_row(frame, panel, static_cast<int>(y), part, per_row, ahead);
    }
  }

  void run_row(const Frame& frame, const InnerWeights::Panel& panel, int y, Range part, int per_row,
               WeightsAhead& ahead) const {
    const PackedWeights& w = *weights_->plain;
    const ptrdiff_t lane = ptrdiff_t{panel.block} * BLOCK;
    const int size = (width_ + per_row - 1) / per_row, wide = per_row - (per_row * size - width_);
    InnerArgs g;
    g.blocks = w.ic / BLOCK;
    g.block_stride = src_.block_stride();
    g.rest = w.ic % BLOCK;
    g.b = weights_->weight + panel.offset;
    g.init = weights_->init + lane;
    g.scale = weights_->scale + lane;
    g.bias = w.bias + lane;
    g.c_stride = dst_.block_stride();
    g.add_stride = add_.block_stride();
    g.act = act_;
    const auto some = [&](ptrdiff_t begin, ptrdiff_t end, ptrdiff_t x, int mr) {
      if (begin >= end) return;
      g.tiles = end - begin;
      g.a = frame.arena + src_.at(0, 0, 0) + (y * ptrdiff_t{width_} + x) * BLOCK;
      g.pixels = frame.scratch + y * ptrdiff_t{width_} + x;
      g.c = frame.arena + dst_.at(panel.block, y, 0) + x * BLOCK;
      g.add = has_add_ ? frame.arena + add_.at(panel.block, y, 0) + x * BLOCK : nullptr;
      const char* soon = ahead.take(ptrdiff_t{w.ic} * g.tiles);
      g.prefetch = soon != nullptr ? soon : reinterpret_cast<const char*>(g.b);
      kernels_.gemm[(mr - 1) * 2 + panel.nb - 1].run(g);
    };
    some(part.begin, std::min<ptrdiff_t>(part.end, wide), part.begin * size, size);
    const ptrdiff_t narrow = std::max<ptrdiff_t>(part.begin, wide);
    some(narrow, part.end, wide * size + (narrow - wide) * (size - 1), size - 1);
  }

  const InnerKernels& kernels_;
  const std::shared_ptr<const InnerWeights> weights_;
  const Act act_;
  const Tensor src_, dst_, add_;
  const bool has_add_;
  int rows_ = 1, width_ = 0;  // of the map, or of one row for all of it
  bool panels_outside_ = true, share_panels_ = true;
};

}  // namespace

OpPtr make_inner(const KernelTable& table, const std::string& name, const Tensor& src, const Tensor& dst,
                 const Tensor* add, const std::shared_ptr<const InnerWeights>& weights, const Act& act) {
  const PackedWeights& w = *weights->plain;
  check(table.inner.pixels != nullptr, name, "the ISA has no kernels of inner products");
  check(w.ic == src.c && w.oc == dst.c, name, "weights do not fit the tensors");
  check(is_dense(src) && !src.image && !dst.image && src.h == dst.h && src.w == dst.w, name,
        "the source must be a map without padding");
  check(add == nullptr || (add->c == dst.c && add->h == dst.h && add->w == dst.w && !add->image), name,
        "the tensor to add has another shape");
  check_act(name, act);
  return std::make_unique<InnerOp>(table, name, weights, src, dst, add, act);
}

}  // namespace fmn
