// The first and the last op of every program, and what all ops share.
#include "runtime/ops.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace fmn {

void check(bool ok, const std::string& name, const char* what) {
  if (!ok) throw std::invalid_argument("op " + name + ": " + what);
}

void check_padding(const std::string& name, const Tensor& src, int ow, const ConvSpec& spec) {
  const Window& w = spec.window;
  const int right = (ow - 1) * w.stride_w - w.pad_left + (spec.weights->kw - 1) * w.dilation_w - (src.w - 1);
  check(w.pad_left <= src.pad_left && right <= src.pad_right, name, "the source has too little padding");
}

void check_act(const std::string& name, const Act& act) {
  check(act.kind == ActKind::clamp || act.kind == ActKind::hard_swish, name, "its kernel does not have the activation");
}

namespace {

template <class T>
void fill_padding(T* memory, const Tensor& t, Range blocks, Range y, T value) {
  const ptrdiff_t left = ptrdiff_t{t.pad_left} * t.pixel(), right = ptrdiff_t{t.pad_right} * t.pixel();
  for (ptrdiff_t b = blocks.begin; b < blocks.end; ++b) {
    T* const first = memory + t.at(static_cast<int>(b), 0, -t.pad_left);
    if (left + right > 0) {
      for (ptrdiff_t r = y.begin; r < y.end; ++r) {
        std::fill_n(first + r * t.pitch(), left, value);
        std::fill_n(first + (r + 1) * t.pitch() - right, right, value);
      }
    }
    if (y.begin == 0) std::fill_n(first - t.pad_top * t.pitch(), t.pad_top * t.pitch(), value);
    if (y.end == t.h) std::fill_n(first + t.h * t.pitch(), t.pad_bottom * t.pitch(), value);
  }
}

}  // namespace

void clear_padding(float* arena, const Tensor& t, Range blocks, Range y) {
  if (t.pad_left + t.pad_right + t.pad_top + t.pad_bottom == 0) return;
  if (t.u8) {
    fill_padding(reinterpret_cast<uint8_t*>(arena), t, blocks, y, t.zero);
  } else {
    fill_padding(arena, t, blocks, y, 0.0f);
  }
}

namespace {

class InputOp final : public Op {
 public:
  InputOp(const KernelTable& table, const Tensor& dst, const Normalization& pixels, const Normalization& floats,
          bool swap)
      : Op("input", std::string("input/") + table.isa),
        table_(table),
        dst_(dst),
        swap_(swap),
        floats_change_(!floats.mean.empty()),
        pixels_(pixels),
        floats_(floats) {}

  void run(const Frame& frame, Team& team) const override {
    // A copy alone is not worth another core, which would have to fetch the picture from the caller's.
    team.share(dst_.h, 8 * grain_of_bytes(dst_.pitch() * ptrdiff_t{sizeof(float)}),
               [&](Range rows) { read(frame, rows); });
  }

 private:
  void read(const Frame& frame, Range rows) const {
    const ptrdiff_t values = ptrdiff_t{dst_.w} * dst_.c;
    // Blocked tensors and reversed channels go through a row of their own; both are rare.
    const bool direct_rows = dst_.image && !swap_;
    thread_local std::vector<float> line;
    if (!direct_rows) line.resize(static_cast<size_t>(values));
    for (ptrdiff_t y = rows.begin; y < rows.end; ++y) {
      float* direct = frame.arena + dst_.at(0, static_cast<int>(y), 0);
      float* row = direct_rows ? direct : line.data();
      read_row(frame, y, values, row);
      if (swap_ && frame.kind == InputKind::pixels_u8) {
        for (ptrdiff_t x = 0; x < dst_.w; ++x) std::reverse(row + x * dst_.c, row + (x + 1) * dst_.c);
      }
      if (!dst_.image) {
        to_blocks(frame.arena, static_cast<int>(y), row);
      } else if (row != direct) {
        std::copy(row, row + values, direct);
      }
    }
    clear_padding(frame.arena, dst_, {0, dst_.blocks()}, rows);
  }

  void read_row(const Frame& frame, ptrdiff_t y, ptrdiff_t values, float* row) const {
    const auto* f32 = static_cast<const float*>(frame.input);
    switch (frame.kind) {
      case InputKind::pixels_u8:
        return table_.normalize_u8(static_cast<const uint8_t*>(frame.input) + y * values, row, values, pixels_.mean,
                                   pixels_.std);
      case InputKind::f32_nhwc: std::memcpy(row, f32 + y * values, sizeof(float) * static_cast<size_t>(values)); break;
      case InputKind::f32_nchw: {
        const ptrdiff_t plane = ptrdiff_t{dst_.h} * dst_.w;
        const float* p = f32 + y * dst_.w;
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

  void to_blocks(float* arena, int y, const float* row) const {
    for (int b = 0; b < dst_.blocks(); ++b) {
      const int lanes = std::min(BLOCK, dst_.c - b * BLOCK);
      float* dst = arena + dst_.at(b, y, 0);
      for (int x = 0; x < dst_.w; ++x) {
        for (int i = 0; i < BLOCK; ++i) dst[x * BLOCK + i] = i < lanes ? row[x * dst_.c + b * BLOCK + i] : 0.0f;
      }
    }
  }

  // Repeated, as the kernels want them.
  struct Repeated {
    explicit Repeated(const Normalization& n) {
      for (size_t i = 0; i < NORMALIZE_PERIOD; ++i) {
        mean[i] = n.mean.empty() ? 0.0f : n.mean[i % n.mean.size()];
        std[i] = n.std.empty() ? 1.0f : n.std[i % n.std.size()];
      }
    }
    float mean[NORMALIZE_PERIOD], std[NORMALIZE_PERIOD];
  };

  const KernelTable& table_;
  const Tensor dst_;
  const bool swap_, floats_change_;
  const Repeated pixels_, floats_;
};

class OutputOp final : public Op {
 public:
  explicit OutputOp(const Tensor& src) : Op("output", "output"), src_(src) {}

  void run(const Frame& frame, Team& team) const override {
    const ptrdiff_t bytes = ptrdiff_t{src_.w} * src_.c * ptrdiff_t{sizeof(float)};
    team.share(src_.h, grain_of_bytes(bytes), [&](Range rows) {
      for (int y = static_cast<int>(rows.begin); y < rows.end; ++y) {
        for (int b = 0; b < src_.blocks(); ++b) {
          const int lanes = src_.image ? src_.c : std::min(BLOCK, src_.c - b * BLOCK);
          for (int x = 0; x < src_.w; ++x) {
            const float* p = frame.arena + src_.at(b, y, x);
            std::copy(p, p + lanes, frame.output + (ptrdiff_t{y} * src_.w + x) * src_.c + ptrdiff_t{b} * BLOCK);
          }
        }
      }
    });
  }

 private:
  const Tensor src_;
};

}  // namespace

OpPtr make_input(const KernelTable& table, const Tensor& dst, const Normalization& pixels, const Normalization& floats,
                 bool swap) {
  const auto fits = [&](const std::vector<float>& v) {
    return v.empty() || (v.size() == static_cast<size_t>(dst.c) && NORMALIZE_PERIOD % v.size() == 0);
  };
  check(fits(pixels.mean) && fits(pixels.std) && fits(floats.mean) && fits(floats.std), "input",
        "mean and std do not fit the channels");
  return std::make_unique<InputOp>(table, dst, pixels, floats, swap);
}

OpPtr make_output(const Tensor& src) { return std::make_unique<OutputOp>(src); }

}  // namespace fmn
