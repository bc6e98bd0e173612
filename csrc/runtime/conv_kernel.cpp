#include "runtime/conv_kernel.h"

#include <algorithm>

#include "runtime/dispatch.h"

namespace fmn {

ConvKernel::ConvKernel(const KernelTable& table, const std::string& name, const Tensor& src, int out_channels,
                       const ConvSpec& spec)
    : spec_(spec), src_h_(src.h) {
  const PackedWeights& w = *spec.weights;
  const Window& window = spec.window;
  check(w.panel_blocks == table.panel_blocks, name, "the weights are packed for another ISA");
  check(!w.depthwise && w.ic == src.c && w.oc == out_channels, name, "weights do not fit the tensors");
  check(window.stride_h > 0 && window.stride_w > 0 && window.dilation_h > 0 && window.dilation_w > 0, name,
        "strides and dilations must be positive");

  for (int ky = 0; ky < w.kh; ++ky) {
    const ptrdiff_t row = ptrdiff_t{ky} * window.dilation_h * src.pitch();
    if (src.image && window.dilation_w == 1) {  // the pixels of a window row follow each other
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

  xs_ = ptrdiff_t{src.pixel()} * window.stride_w;
  int xs = static_cast<int>(xs_);
  if (max_mr(table, 1, xs) == 0) xs = 0;  // no kernel was compiled for this stride: take it at run time
  const int nb = std::min(w.panel_blocks, w.blocks());
  mr_ = max_mr(table, nb, xs);
  fns_.assign(static_cast<size_t>((nb + 1) * 2 * (mr_ + 1)), nullptr);
  for (const Panel& p : w.panels) {
    for (int m = 1; m <= mr_; ++m) {
      const GemmFn fn = find_gemm(table, m, p.nb, p.half, xs);
      check(fn != nullptr, name, "the kernel table has no kernel for a tile");
      fns_[fn_index(p, m)] = fn;
    }
  }
  id_ = std::string("gemm_f32/") + table.isa + "/" + std::to_string(mr_) + "x" + std::to_string(nb * BLOCK);
}

ConvKernel::Rows ConvKernel::rows(int y) const {
  const PackedWeights& w = *spec_.weights;
  const int dilation = spec_.window.dilation_h;
  int first = 0, last = w.kh;
  while (first < last && top(y) + first * dilation < 0) ++first;
  while (last > first && top(y) + (last - 1) * dilation >= src_h_) --last;
  return {segments_.data() + first * segments_per_row_, (last - first) * segments_per_row_,
          ptrdiff_t{first} * w.kw * w.ic};
}

void ConvKernel::run(const Pixels& pixels, Range part, const Rows& rows, const Panel& panel,
                     WeightsAhead& ahead) const {
  const int n = tiles(pixels.count);
  const int size = (pixels.count + n - 1) / n, wide = n - (n * size - pixels.count);  // tiles of `size` pixels
  GemmArgs g;
  g.xs = xs_;
  g.segs = rows.segs;
  g.n_segs = rows.n_segs;
  g.b = spec_.weights->panel(panel) + rows.b * panel.width();
  g.bias = spec_.weights->bias + panel.block * BLOCK;
  g.c_stride = pixels.c_stride;
  g.add_stride = pixels.add_stride;
  g.lo = spec_.lo;
  g.hi = spec_.hi;
  const auto some = [&](ptrdiff_t begin, ptrdiff_t end, ptrdiff_t x, int mr) {
    if (begin >= end) return;
    g.tiles = end - begin;
    g.a = pixels.a + x * xs_;
    g.c = pixels.c + panel.block * pixels.c_stride + x * BLOCK;
    g.add = pixels.add != nullptr ? pixels.add + panel.block * pixels.add_stride + x * BLOCK : nullptr;
    const char* soon = ahead.take(spec_.weights->k() * g.tiles);
    g.prefetch = soon != nullptr ? soon : reinterpret_cast<const char*>(g.b);
    fns_[fn_index(panel, mr)](g);
  };
  some(part.begin, std::min<ptrdiff_t>(part.end, wide), part.begin * size, size);
  const ptrdiff_t narrow = std::max<ptrdiff_t>(part.begin, wide);
  some(narrow, part.end, wide * size + (narrow - wide) * (size - 1), size - 1);
}

}  // namespace fmn
