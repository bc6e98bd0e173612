// The maps of a detector's heads -> a row of numbers for each anchor.
#include <vector>

#include "runtime/ops.h"

namespace fmn {

namespace {

// A pixel of a map has a * k channels: k numbers for each of its a anchors. Anchors follow each other as pixels do, map
// after map, and row i of dst holds the numbers of anchor i: those of the first group of maps, then those of the
// second.
class RowsOp final : public Op {
 public:
  RowsOp(std::string name, const std::vector<Tensor>& sources, const Tensor& dst, const std::vector<int>& columns)
      : Op(std::move(name), "rows_f32"), dst_(dst) {
    const size_t maps = sources.size() / columns.size();
    int first = 0;
    for (size_t g = 0; g < columns.size(); ++g) {
      ptrdiff_t row = 0;
      for (size_t i = 0; i < maps; ++i) {
        const Tensor& t = sources[g * maps + i];
        parts_.push_back({t, columns[g], first, row});
        row += ptrdiff_t{t.h} * t.w * (t.c / columns[g]);
      }
      first += columns[g];
    }
  }

  void run(const Frame& frame, Team& team, int index) const override {
    for (const Part& p : parts_) {
      const Range pixels = split(ptrdiff_t{p.map.h} * p.map.w, team.count(), index);
      for (ptrdiff_t i = pixels.begin; i < pixels.end; ++i) copy_pixel(frame.arena, p, i);
    }
    // What lies beyond the last channel is zero, as in every tensor.
    if (dst_.c % BLOCK == 0) return;
    const Range rows = split(dst_.h, team.count(), index);
    for (ptrdiff_t y = rows.begin; y < rows.end; ++y) {
      float* pixel = frame.arena + dst_.at(dst_.blocks() - 1, static_cast<int>(y), 0);
      std::fill(pixel + dst_.c % BLOCK, pixel + BLOCK, 0.0f);
    }
  }

 private:
  struct Part {
    Tensor map;
    int columns;  // numbers an anchor
    int first;    // channel of dst
    ptrdiff_t row;
  };

  void copy_pixel(float* arena, const Part& p, ptrdiff_t pixel) const {
    const float* src = arena + p.map.at(0, static_cast<int>(pixel / p.map.w), static_cast<int>(pixel % p.map.w));
    const int anchors = p.map.c / p.columns;
    const ptrdiff_t src_stride = p.map.block_stride(), dst_stride = dst_.block_stride();
    int channel = 0;
    for (int a = 0; a < anchors; ++a) {
      const ptrdiff_t row = p.row + pixel * anchors + a;
      float* dst = arena + dst_.at(0, static_cast<int>(row), 0);
      for (int k = 0; k < p.columns;) {  // as far as both blocks go
        const int to = p.first + k;
        const int run = std::min({p.columns - k, BLOCK - channel % BLOCK, BLOCK - to % BLOCK});
        std::copy_n(src + channel / BLOCK * src_stride + channel % BLOCK, run,
                    dst + to / BLOCK * dst_stride + to % BLOCK);
        channel += run;
        k += run;
      }
    }
  }

  const Tensor dst_;
  std::vector<Part> parts_;
};

}  // namespace

OpPtr make_rows(std::string name, const std::vector<Tensor>& sources, const Tensor& dst,
                const std::vector<int>& columns) {
  check(!columns.empty() && !sources.empty() && sources.size() % columns.size() == 0, name, "shapes do not fit");
  const size_t maps = sources.size() / columns.size();
  int width = 0;
  for (size_t g = 0; g < columns.size(); ++g) {
    ptrdiff_t rows = 0;
    check(columns[g] > 0, name, "shapes do not fit");
    for (size_t i = 0; i < maps; ++i) {
      const Tensor& t = sources[g * maps + i];
      check(!t.image && !t.u8 && t.c % columns[g] == 0, name, "shapes do not fit");
      check(t.h == sources[i].h && t.w == sources[i].w, name, "shapes do not fit");
      check(t.c / columns[g] == sources[i].c / columns[0], name, "shapes do not fit");
      rows += ptrdiff_t{t.h} * t.w * (t.c / columns[g]);
    }
    check(rows == dst.h, name, "shapes do not fit");
    width += columns[g];
  }
  check(dst.c == width && dst.w == 1 && !dst.image && dst.pad_left + dst.pad_right == 0, name, "shapes do not fit");
  return std::make_unique<RowsOp>(std::move(name), sources, dst, columns);
}

}  // namespace fmn
