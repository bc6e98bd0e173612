#include "runtime/picture.h"

#include <algorithm>
#include <cstring>

namespace fmn {

Picture::Repeated::Repeated(const Normalization& n) {
  for (size_t i = 0; i < NORMALIZE_PERIOD; ++i) {
    mean[i] = n.mean.empty() ? 0.0f : n.mean[i % n.mean.size()];
    std[i] = n.std.empty() ? 1.0f : n.std[i % n.std.size()];
  }
}

Picture::Picture(const KernelTable& table, const Tensor& dst, const Normalization& pixels, const Normalization& floats,
                 bool swap)
    : table_(table), dst_(dst), swap_(swap), floats_change_(!floats.mean.empty()), pixels_(pixels), floats_(floats) {
  const auto fits = [&](const std::vector<float>& v) {
    return v.empty() || (v.size() == static_cast<size_t>(dst.c) && NORMALIZE_PERIOD % v.size() == 0);
  };
  check(fits(pixels.mean) && fits(pixels.std) && fits(floats.mean) && fits(floats.std), "input",
        "mean and std do not fit the channels");
}

void Picture::read(const Frame& frame, int y, float* row) const {
  const ptrdiff_t values = ptrdiff_t{dst_.w} * dst_.c;
  const auto* f32 = static_cast<const float*>(frame.input);
  switch (frame.kind) {
    case InputKind::pixels_u8:
      table_.normalize_u8(static_cast<const uint8_t*>(frame.input) + y * values, row, values, pixels_.mean,
                          pixels_.std);
      for (ptrdiff_t x = 0; swap_ && x < dst_.w; ++x) std::reverse(row + x * dst_.c, row + (x + 1) * dst_.c);
      return;
    case InputKind::f32_nhwc: std::memcpy(row, f32 + y * values, sizeof(float) * static_cast<size_t>(values)); break;
    case InputKind::f32_nchw: {
      const ptrdiff_t plane = ptrdiff_t{dst_.h} * dst_.w;
      const float* p = f32 + ptrdiff_t{y} * dst_.w;
      if (dst_.c == 3) {
        table_.interleave3(p, p + plane, p + 2 * plane, row, dst_.w);
        break;
      }
      for (ptrdiff_t x = 0; x < dst_.w; ++x) {
        for (int c = 0; c < dst_.c; ++c) row[x * dst_.c + c] = p[c * plane + x];
      }
    }
  }
  if (floats_change_) table_.normalize_f32(row, row, values, floats_.mean, floats_.std);
}

int Picture::planes(InputKind kind) const { return kind == InputKind::f32_nchw ? std::min(dst_.c, MAX_PLANES) : 1; }

ptrdiff_t Picture::row_bytes(InputKind kind) const {
  const ptrdiff_t values = kind == InputKind::f32_nchw ? dst_.w : ptrdiff_t{dst_.w} * dst_.c;
  return kind == InputKind::pixels_u8 ? values : values * ptrdiff_t{sizeof(float)};
}

const char* Picture::plane(const Frame& frame, int plane, int y) const {
  return static_cast<const char*>(frame.input) + (ptrdiff_t{plane} * dst_.h + y) * row_bytes(frame.kind);
}

const float* PictureRows::need(int top, int bottom) {
  const Tensor& image = picture_.tensor();
  top = std::max(top, 0);
  bottom = std::min(bottom, image.h);
  if (top < first_ || top > end_ || bottom - first_ > capacity_) first_ = end_ = top;
  step_ = std::max(bottom - end_, 0);
  for (; end_ < bottom; ++end_) {
    float* const row = memory_ + (end_ - first_) * image.pitch();
    std::fill_n(row, image.pad_left * image.c, 0.0f);
    picture_.read(frame_, end_, row + image.pad_left * image.c);
    std::fill_n(row + ptrdiff_t{image.pad_left + image.w} * image.c, image.pad_right * image.c, 0.0f);
  }
  return memory_ - image.at(0, first_, -image.pad_left);
}

WeightStream PictureRows::next() {
  const int rows = std::min(step_, picture_.tensor().h - end_);
  if (rows <= 0) return {};
  const ptrdiff_t bytes = rows * picture_.row_bytes(frame_.kind);
  ptrdiff_t lines = 0;
  for (int p = picture_.planes(frame_.kind); p-- > 0;) {
    const auto* const at = reinterpret_cast<const float*>(picture_.plane(frame_, p, end_));
    WeightStream& stream = streams_[static_cast<size_t>(p)];
    stream = WeightStream(at, bytes / ptrdiff_t{sizeof(float)});
    lines += stream.lines();
    if (p + 1 < picture_.planes(frame_.kind)) stream = stream.then(&streams_[static_cast<size_t>(p) + 1], lines);
  }
  return streams_[0];
}

namespace {

class InputOp final : public Op {
 public:
  InputOp(const KernelTable& table, std::shared_ptr<const Picture> picture)
      : Op("input", std::string("input/") + table.isa), picture_(std::move(picture)), dst_(picture_->tensor()) {}

  void run(const Frame& frame, Team& team) const override {
    // A copy alone is not worth another core, which would have to fetch the picture from the caller's.
    team.share(dst_.h, 8 * grain_of_bytes(dst_.pitch() * ptrdiff_t{sizeof(float)}),
               [&](Range rows) { read(frame, rows); });
  }

 private:
  void read(const Frame& frame, Range rows) const {
    thread_local std::vector<float> line;  // of a blocked tensor, which is rare
    if (!dst_.image) line.resize(static_cast<size_t>(dst_.w) * static_cast<size_t>(dst_.c));
    for (int y = static_cast<int>(rows.begin); y < rows.end; ++y) {
      picture_->read(frame, y, dst_.image ? frame.arena + dst_.at(0, y, 0) : line.data());
      if (!dst_.image) to_blocks(frame.arena, y, line.data());
    }
    clear_padding(frame.arena, dst_, {0, dst_.blocks()}, rows);
  }

  void to_blocks(float* arena, int y, const float* row) const {
    for (int b = 0; b < dst_.blocks(); ++b) {
      const int lanes = std::min(BLOCK, dst_.c - b * BLOCK);
      float* dst = arena + dst_.at(b, y, 0);
      for (int x = 0; x < dst_.w; ++x) {
        for (int i = 0; i < BLOCK; ++i) dst[x * BLOCK + i] = i < lanes ? row[x * dst_.c + b * BLOCK + i] : 0.0f;
      }
    }
  }

  const std::shared_ptr<const Picture> picture_;
  const Tensor dst_;
};

}  // namespace

OpPtr make_input(const KernelTable& table, const std::shared_ptr<const Picture>& picture) {
  return std::make_unique<InputOp>(table, picture);
}

}  // namespace fmn
