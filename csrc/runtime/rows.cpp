// The maps of a detector's heads -> a row of numbers for each anchor.
#include <algorithm>
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
        parts_.push_back({t, columns[g], first, row, pixels_});
        row += ptrdiff_t{t.h} * t.w * (t.c / columns[g]);
        pixels_ += ptrdiff_t{t.h} * t.w;
      }
      first += columns[g];
    }
  }

  void run(const Frame& frame, Team& team) const override {
    const ptrdiff_t bytes = dst_.block_stride() * dst_.blocks() * ptrdiff_t{sizeof(float)} / pixels_;
    team.share(pixels_, grain_of_bytes(bytes), [&](Range pixels) {
      auto part = std::upper_bound(parts_.begin(), parts_.end(), pixels.begin,
                                   [](ptrdiff_t at, const Part& p) { return at < p.pixel; }) -
                  1;
      for (ptrdiff_t i = pixels.begin; i < pixels.end; ++i) {
        if (part + 1 != parts_.end() && i == part[1].pixel) ++part;
        copy_pixel(frame.arena, *part, i - part->pixel);
      }
    });
  }

 private:
  struct Part {
    Tensor map;
    int columns;  // numbers an anchor
    int first;    // channel of dst
    ptrdiff_t row;
    ptrdiff_t pixel;  // of all maps: where this one begins
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
      // What lies beyond the last channel is zero, as in every tensor.
      if (p.first + p.columns == dst_.c && dst_.c % BLOCK != 0) {
        float* last = dst + (dst_.blocks() - 1) * dst_stride;
        std::fill(last + dst_.c % BLOCK, last + BLOCK, 0.0f);
      }
    }
  }

  const Tensor dst_;
  std::vector<Part> parts_;
  ptrdiff_t pixels_ = 0;  // of all maps
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
