// Floats to bytes and back: the picture, and where a network changes between the two. Loops over rows that lie dense,
// which compilers turn into vectors of any ISA.
#include <algorithm>
#include <cstring>

#include "runtime/u8_ops.h"

namespace fmn {

namespace {

// dst[i] = clamp(rint(src[i] * inverse) + zero, 0, 255), of what is no number the zero point.
void quantize_row(const float* __restrict src, uint8_t* __restrict dst, ptrdiff_t n, float inverse, int32_t zero) {
  // With this added, a float has no bits for a fraction: it is rounded to the nearest whole number, ties to even.
  constexpr float whole = 12582912.0f;  // 1.5 * 2^23
  for (ptrdiff_t i = 0; i < n; ++i) {
    float v = src[i] * inverse;
    v = v == v ? v : 0.0f;
    v = v < -1e6f ? -1e6f : v;  // what the bounds cut is clamped anyway
    v = v > 1e6f ? 1e6f : v;
    int32_t q = static_cast<int32_t>((v + whole) - whole) + zero;
    q = q < 0 ? 0 : q;
    dst[i] = static_cast<uint8_t>(q > 255 ? 255 : q);
  }
}

// dst[i] = (src[i] - mean[i]) / std[i], rounded once, at the end; no `std` is all ones.
void normalize_row(const float* __restrict src, float* __restrict dst, ptrdiff_t n, const double* __restrict mean,
                   const double* __restrict std) {
  if (std == nullptr) {
    for (ptrdiff_t i = 0; i < n; ++i) dst[i] = static_cast<float>(double{src[i]} - mean[i]);
  } else {
    for (ptrdiff_t i = 0; i < n; ++i) dst[i] = static_cast<float>((double{src[i]} - mean[i]) / std[i]);
  }
}

class InputU8Op final : public Op {
 public:
  InputU8Op(const U8Table& table, const Tensor& dst, const InputU8& input)
      : Op("input", "input_u8"), table_(table), dst_(dst), input_(input), inverse_(1.0f / input.scale) {
    for (const Lookup& t : input.pixels) tables_.insert(tables_.end(), t.begin(), t.end());
    if (input.mean.empty()) return;
    const bool scaled = std::any_of(input.std.begin(), input.std.end(), [](double s) { return s != 1; });
    for (int x = 0; x < dst.w; ++x) {
      mean_.insert(mean_.end(), input.mean.begin(), input.mean.end());
      if (scaled) std_.insert(std_.end(), input.std.begin(), input.std.end());
    }
  }

  void run(const Frame& frame, Team& team) const override {
    team.share(dst_.h, grain_of_bytes(dst_.pitch()), [&](Range rows) { read(frame, rows); });
  }

  // A row in floats, and one in bytes.
  ptrdiff_t scratch_floats() const override { return ptrdiff_t{dst_.w} * std::max(dst_.c, 1) * 2; }

 private:
  void read(const Frame& frame, Range rows) const {
    for (int y = static_cast<int>(rows.begin); y < rows.end; ++y) {
      if (read_rgb(frame, y)) continue;
      for (int b = 0; b < dst_.blocks(); ++b) {
        uint8_t* dst = frame.bytes() + dst_.at(b, y, 0);
        const int width = dst_.pixel(), lanes = std::min(width, dst_.c - b * BLOCK);
        for (int i = 0; i < width; ++i) {
          if (i < lanes) {
            channel(frame, y, b * BLOCK + i, dst + i, width);
          } else {
            for (int x = 0; x < dst_.w; ++x) dst[x * width + i] = dst_.zero;
          }
        }
      }
    }
    clear_padding(frame.arena, dst_, {0, dst_.blocks()}, rows);
  }

  // The usual picture: RGB, for a convolution. Pixels go through the tables, floats are as the network wants them.
  bool read_rgb(const Frame& frame, int y) const {
    if (!dst_.image || dst_.c != 3) return false;
    const ptrdiff_t first = ptrdiff_t{y} * dst_.w * 3;
    uint8_t* dst = frame.bytes() + dst_.at(0, y, 0);
    if (frame.kind == InputKind::pixels_u8 && !input_.swap) {
      rgb_row(static_cast<const uint8_t*>(frame.input) + first, dst, tables_.empty() ? nullptr : tables_.data());
      return true;
    }
    if (frame.kind != InputKind::f32_nhwc) return false;
    const ptrdiff_t n = ptrdiff_t{dst_.w} * 3;
    const float* src = static_cast<const float*>(frame.input) + first;
    if (!mean_.empty()) {
      normalize_row(src, frame.scratch, n, mean_.data(), std_.empty() ? nullptr : std_.data());
      src = frame.scratch;
    }
    auto* row = reinterpret_cast<uint8_t*>(frame.scratch + n);
    quantize_row(src, row, n, inverse_, dst_.zero);
    rgb_row(row, dst, nullptr);
    return true;
  }

  void rgb_row(const uint8_t* src, uint8_t* dst, const uint8_t* tables) const {
    if (table_.rgb != nullptr) return table_.rgb(src, dst, dst_.w, tables, dst_.zero);
    int x = 0;
    if (tables != nullptr) {
      for (; x < dst_.w; ++x, src += 3) {
        const uint8_t pixel[4] = {tables[src[0]], tables[256 + src[1]], tables[512 + src[2]], dst_.zero};
        std::memcpy(dst + 4 * x, pixel, 4);
      }
      return;
    }
    for (; x + 1 < dst_.w; ++x) {  // a fourth byte is there; what it is does not matter, its weights are 0
      std::memcpy(dst + 4 * x, src + 3 * x, 4);
    }
    std::memcpy(dst + 4 * x, src + 3 * x, 3);
    dst[4 * x + 3] = dst_.zero;
  }

  // Channel c of row y, to every `step`-th byte.
  void channel(const Frame& frame, int y, int c, uint8_t* dst, int step) const {
    const ptrdiff_t first = (ptrdiff_t{y} * dst_.w) * dst_.c + c, plane = ptrdiff_t{dst_.h} * dst_.w;
    if (frame.kind == InputKind::pixels_u8) {
      const auto* src = static_cast<const uint8_t*>(frame.input) + first + (input_.swap ? dst_.c - 1 - 2 * c : 0);
      const uint8_t* table = input_.pixels.empty() ? nullptr : input_.pixels[static_cast<size_t>(c)].data();
      for (int x = 0; x < dst_.w; ++x) dst[x * step] = table != nullptr ? table[src[x * dst_.c]] : src[x * dst_.c];
      return;
    }
    const bool nchw = frame.kind == InputKind::f32_nchw;
    const auto* src = static_cast<const float*>(frame.input) + (nchw ? c * plane + ptrdiff_t{y} * dst_.w : first);
    float* const row = frame.scratch;
    for (int x = 0; x < dst_.w; ++x) row[x] = src[ptrdiff_t{x} * (nchw ? 1 : dst_.c)];
    if (!input_.mean.empty()) {
      const double mean = input_.mean[static_cast<size_t>(c)], std = input_.std[static_cast<size_t>(c)];
      for (int x = 0; x < dst_.w; ++x) row[x] = static_cast<float>((double{row[x]} - mean) / std);
    }
    auto* const bytes = reinterpret_cast<uint8_t*>(row + dst_.w);
    quantize_row(row, bytes, dst_.w, inverse_, dst_.zero);
    for (int x = 0; x < dst_.w; ++x) dst[x * step] = bytes[x];
  }

  const U8Table& table_;
  const Tensor dst_;
  const InputU8 input_;
  std::vector<uint8_t> tables_;     // of the pixels, one behind the other
  std::vector<double> mean_, std_;  // of a row; empty: 0 and 1
  const float inverse_;
};

class QuantizeOp final : public Op {
 public:
  QuantizeOp(std::string name, const Tensor& src, const Tensor& dst, float scale)
      : Op(std::move(name), "quantize"), src_(src), dst_(dst), inverse_(1.0f / scale) {}

  void run(const Frame& frame, Team& team) const override {
    for_rows(dst_, team, [&](int block, int y) {
      const float* src = frame.arena + src_.at(block, y, 0);
      quantize_row(src, frame.bytes() + dst_.at(block, y, 0), ptrdiff_t{dst_.w} * BLOCK, inverse_, dst_.zero);
      clear_padding(frame.arena, dst_, {block, block + 1}, {y, y + 1});
    });
  }

 private:
  const Tensor src_, dst_;
  const float inverse_;
};

class DequantizeOp final : public Op {
 public:
  DequantizeOp(std::string name, const Tensor& src, const Tensor& dst, float scale)
      : Op(std::move(name), "dequantize"), src_(src), dst_(dst), scale_(scale) {}

  void run(const Frame& frame, Team& team) const override {
    for_rows(dst_, team, [&](int block, int y) {
      const uint8_t* src = frame.bytes() + src_.at(block, y, 0);
      float* dst = frame.arena + dst_.at(block, y, 0);
      for (int i = 0; i < dst_.w * BLOCK; ++i) dst[i] = static_cast<float>(src[i] - src_.zero) * scale_;
      clear_padding(frame.arena, dst_, {block, block + 1}, {y, y + 1});
    });
  }

 private:
  const Tensor src_, dst_;
  const float scale_;
};

bool same_shape(const Tensor& a, const Tensor& b) {
  return a.c == b.c && a.h == b.h && a.w == b.w && !a.image && !b.image;
}

}  // namespace

OpPtr make_input_u8(const U8Table& table, const Tensor& dst, const InputU8& input) {
  const auto fits = [&](size_t n) { return n == 0 || n == static_cast<size_t>(dst.c); };
  check(dst.u8 && fits(input.pixels.size()) && fits(input.mean.size()) && input.mean.size() == input.std.size(),
        "input", "tables do not fit the channels");
  return std::make_unique<InputU8Op>(table, dst, input);
}

OpPtr make_quantize(std::string name, const Tensor& src, const Tensor& dst, float scale) {
  check(!src.u8 && dst.u8 && same_shape(src, dst), name, "shapes differ");
  return std::make_unique<QuantizeOp>(std::move(name), src, dst, scale);
}

OpPtr make_dequantize(std::string name, const Tensor& src, const Tensor& dst, float scale) {
  check(src.u8 && !dst.u8 && same_shape(src, dst), name, "shapes differ");
  return std::make_unique<DequantizeOp>(std::move(name), src, dst, scale);
}

}  // namespace fmn
