// One dense convolution as the ops use it: its weights cut into panels, its window cut into segments, and the GEMM
// kernels for its tiles. Where A and C lie is the caller's business: a tensor, a ring of rows, a strip.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/ops.h"

namespace fmn {

class ConvKernel {
 public:
  // The part of the window that lies inside of the map, for one output row.
  struct Rows {
    int begin, end;  // rows of the window
  };
  // Pixels that follow each other, without the panel. They are cut into tiles of nearly equal size: some of n pixels,
  // then some of n - 1.
  struct Pixels {
    const float* a;
    float* c;
    ptrdiff_t c_stride;
    const float* add;  // or null
    ptrdiff_t add_stride;
    int count;
  };

  // src gives the layout of A: pixel, row and block strides; its offset is not used.
  ConvKernel(const KernelTable& table, const std::string& name, const Tensor& src, int out_channels,
             const ConvSpec& spec);

  const std::vector<Panel>& panels() const { return spec_.weights->panels; }
  int mr() const { return mr_; }
  const PackedWeights& weights() const { return *spec_.weights; }
  const std::string& id() const { return id_; }  // e.g. gemm_f32/avx512/14x32

  // Row of the source that the first window row of output row y reads; may be negative.
  int top(int y) const { return y * spec_.window.stride_h - spec_.window.pad_top; }
  Rows rows(int y) const;

  int tiles(int pixels) const { return (pixels + mr_ - 1) / mr_; }

  // Tiles [part.begin, part.end) of the pixels. `ahead`: what to fetch meanwhile.
  void run(const Pixels& pixels, Range part, const Rows& rows, const Panel& panel, WeightsAhead& ahead) const;

  // The weights of panel p, empty if there is no such panel.
  WeightStream stream(ptrdiff_t p) const {
    if (p >= static_cast<ptrdiff_t>(panels().size())) return {};
    const Panel& panel = panels()[static_cast<size_t>(p)];
    return {spec_.weights->panel(panel), spec_.weights->k(panel) * panel.width()};
  }

  // What to fetch during panel p if `next` is read after this layer.
  WeightsAhead ahead(ptrdiff_t p, const WeightStream& next) const {
    return {stream(p + 1), next.part(p, static_cast<ptrdiff_t>(panels().size()))};
  }

 private:
  const ConvSpec spec_;
  const int src_h_;
  // (ky, kx, channel block), as the weights lie. Panels that read the same channels share a list.
  struct Segments {
    std::vector<Segment> list;
    int per_row = 0;  // of one ky
  };
  Segments cut(const Tensor& src, const Panel& panel) const;
  std::vector<Segments> segments_;
  std::vector<size_t> segments_of_;  // of a panel
  std::vector<GemmFn> fns_;          // [nb][half][mr]
  size_t fn_index(const Panel& p, int mr) const {
    return static_cast<size_t>((p.nb * 2 + (p.half ? 1 : 0)) * (mr_ + 1) + mr);
  }
  ptrdiff_t xs_ = 0;
  int mr_ = 0;
  std::string id_;
};

}  // namespace fmn
