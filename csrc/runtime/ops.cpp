// Everything but the convolutions (conv.cpp, strip.cpp).
#include "runtime/ops.h"

#include <algorithm>
#include <cmath>
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

void clear_padding(float* arena, const Tensor& t, Range blocks, Range y) {
  const size_t left = sizeof(float) * static_cast<size_t>(t.pad_left * t.pixel());
  const size_t right = sizeof(float) * static_cast<size_t>(t.pad_right * t.pixel());
  if (left + right == 0) return;
  for (ptrdiff_t b = blocks.begin; b < blocks.end; ++b) {
    for (ptrdiff_t r = y.begin; r < y.end; ++r) {
      float* row = arena + t.offset + b * t.block_stride() + r * t.pitch();
      std::memset(row, 0, left);
      std::memset(row + ptrdiff_t{t.pad_left + t.w} * t.pixel(), 0, right);
    }
  }
}

namespace {

bool same_shape(const Tensor& a, const Tensor& b) { return a.c == b.c && a.h == b.h && a.w == b.w; }

// Rows of all blocks as one list, so that a thread's share is a range of it.
template <class F>
void for_rows(const Tensor& t, Team& team, int index, F f) {
  const Range part = split(ptrdiff_t{t.blocks()} * t.h, team.count(), index);
  for (ptrdiff_t i = part.begin; i < part.end; ++i) f(static_cast<int>(i / t.h), static_cast<int>(i % t.h));
}

class InputOp final : public Op {
 public:
  InputOp(const KernelTable& table, const Tensor& dst, const std::vector<float>& mean, const std::vector<float>& std,
          bool swap)
      : Op("input", std::string("input/") + table.isa), table_(table), dst_(dst), swap_(swap) {
    for (int i = 0; i < 48; ++i) {
      mean_[i] = mean.empty() ? 0.0f : mean[static_cast<size_t>(i) % mean.size()];
      std_[i] = std.empty() ? 1.0f : std[static_cast<size_t>(i) % std.size()];
    }
  }

  void run(const Frame& frame, Team& team, int index) const override {
    const Range rows = split(dst_.h, team.count(), index);
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

 private:
  void read_row(const Frame& frame, ptrdiff_t y, ptrdiff_t values, float* row) const {
    const auto* f32 = static_cast<const float*>(frame.input);
    switch (frame.kind) {
      case InputKind::pixels_u8:
        return table_.normalize_u8(static_cast<const uint8_t*>(frame.input) + y * values, row, values, mean_, std_);
      case InputKind::f32_nhwc: std::memcpy(row, f32 + y * values, sizeof(float) * static_cast<size_t>(values)); return;
      case InputKind::f32_nchw: {
        const ptrdiff_t plane = ptrdiff_t{dst_.h} * dst_.w;
        const float* p = f32 + y * dst_.w;
        if (dst_.c == 3) return table_.interleave3(p, p + plane, p + 2 * plane, row, dst_.w);
        for (ptrdiff_t x = 0; x < dst_.w; ++x) {
          for (int c = 0; c < dst_.c; ++c) row[x * dst_.c + c] = p[c * plane + x];
        }
      }
    }
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

  const KernelTable& table_;
  const Tensor dst_;
  const bool swap_;
  float mean_[48], std_[48];  // repeated, as normalize_u8 wants them
};

class GlobalAvgPoolOp final : public Op {
 public:
  GlobalAvgPoolOp(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst)
      : Op(std::move(name), std::string("global_avg_pool_f32/") + table.isa), table_(table), src_(src), dst_(dst) {}

  void run(const Frame& frame, Team& team, int index) const override {
    const Range blocks = split(src_.blocks(), team.count(), index);
    for (ptrdiff_t b = blocks.begin; b < blocks.end; ++b) {
      const int block = static_cast<int>(b);
      table_.global_avg_pool(
          {frame.arena + src_.at(block, 0, 0), src_.pitch(), src_.h, src_.w, frame.arena + dst_.at(block, 0, 0)});
    }
    clear_padding(frame.arena, dst_, blocks, {0, 1});
  }

 private:
  const KernelTable& table_;
  const Tensor src_, dst_;
};

class AvgPoolOp final : public Op {
 public:
  AvgPoolOp(std::string name, const Tensor& src, const Tensor& dst, int kh, int kw, const Window& window)
      : Op(std::move(name), "avg_pool_f32"), src_(src), dst_(dst), kh_(kh), kw_(kw), window_(window) {}

  void run(const Frame& frame, Team& team, int index) const override {
    for_rows(dst_, team, index, [&](int block, int y) {
      const Span v = span(y * window_.stride_h - window_.pad_top, kh_, src_.h);
      for (int x = 0; x < dst_.w; ++x) {
        const Span h = span(x * window_.stride_w - window_.pad_left, kw_, src_.w);
        float sum[BLOCK] = {};
        for (int sy = v.begin; sy < v.end; ++sy) {
          for (int sx = h.begin; sx < h.end; ++sx) {
            const float* p = frame.arena + src_.at(block, sy, sx);
            for (int i = 0; i < BLOCK; ++i) sum[i] += p[i];
          }
        }
        const auto count = static_cast<float>((v.end - v.begin) * (h.end - h.begin));
        float* out = frame.arena + dst_.at(block, y, x);
        for (int i = 0; i < BLOCK; ++i) out[i] = sum[i] / count;
      }
      clear_padding(frame.arena, dst_, {block, block + 1}, {y, y + 1});
    });
  }

 private:
  struct Span {
    int begin, end;
  };
  static Span span(int at, int k, int size) { return {std::max(at, 0), std::min(at + k, size)}; }

  const Tensor src_, dst_;
  const int kh_, kw_;
  const Window window_;
};

class AddOp final : public Op {
 public:
  AddOp(const KernelTable& table, std::string name, const Tensor& a, const Tensor* b, const Tensor& dst, float lo,
        float hi)
      : Op(std::move(name), std::string("add_f32/") + table.isa),
        table_(table),
        a_(a),
        b_(b != nullptr ? *b : a),
        dst_(dst),
        has_b_(b != nullptr),
        lo_(lo),
        hi_(hi) {}

  void run(const Frame& frame, Team& team, int index) const override {
    for_rows(dst_, team, index, [&](int block, int y) {
      const float* b = has_b_ ? frame.arena + b_.at(block, y, 0) : nullptr;
      table_.add(frame.arena + a_.at(block, y, 0), b, frame.arena + dst_.at(block, y, 0), ptrdiff_t{dst_.w} * BLOCK,
                 lo_, hi_);
      clear_padding(frame.arena, dst_, {block, block + 1}, {y, y + 1});
    });
  }

 private:
  const KernelTable& table_;
  const Tensor a_, b_, dst_;
  const bool has_b_;
  const float lo_, hi_;
};

class SoftmaxOp final : public Op {
 public:
  SoftmaxOp(std::string name, const Tensor& src, const Tensor& dst)
      : Op(std::move(name), "softmax_f32"), src_(src), dst_(dst) {}

  void run(const Frame& frame, Team& team, int index) const override {
    const Range rows = split(src_.h, team.count(), index);
    thread_local std::vector<double> e;
    e.resize(static_cast<size_t>(src_.c));
    for (int y = static_cast<int>(rows.begin); y < rows.end; ++y) {
      for (int x = 0; x < src_.w; ++x) pixel(frame.arena, y, x, e);
    }
    clear_padding(frame.arena, dst_, {0, dst_.blocks()}, rows);
  }

 private:
  void pixel(float* arena, int y, int x, std::vector<double>& e) const {
    const auto at = [&](const Tensor& t, int c) -> float& { return arena[t.at(c / BLOCK, y, x) + c % BLOCK]; };
    float most = at(src_, 0);
    for (int c = 1; c < src_.c; ++c) {
      const float v = at(src_, c);
      if (v > most || std::isnan(v)) most = v;  // a NaN makes the whole vector NaN
    }
    double sum = 0;
    for (int c = 0; c < src_.c; ++c) {
      e[static_cast<size_t>(c)] = std::exp(static_cast<double>(at(src_, c)) - most);
      sum += e[static_cast<size_t>(c)];
    }
    for (int c = 0; c < dst_.blocks() * BLOCK; ++c) {
      at(dst_, c) = c < src_.c ? static_cast<float>(e[static_cast<size_t>(c)] / sum) : 0.0f;
    }
  }

  const Tensor src_, dst_;
};

class OutputOp final : public Op {
 public:
  explicit OutputOp(const Tensor& src) : Op("output", "output"), src_(src) {}

  void run(const Frame& frame, Team& team, int index) const override {
    const Range rows = split(src_.h, team.count(), index);
    for (int y = static_cast<int>(rows.begin); y < rows.end; ++y) {
      for (int b = 0; b < src_.blocks(); ++b) {
        const int lanes = src_.image ? src_.c : std::min(BLOCK, src_.c - b * BLOCK);
        for (int x = 0; x < src_.w; ++x) {
          const float* p = frame.arena + src_.at(b, y, x);
          std::copy(p, p + lanes, frame.output + (ptrdiff_t{y} * src_.w + x) * src_.c + ptrdiff_t{b} * BLOCK);
        }
      }
    }
  }

 private:
  const Tensor src_;
};

}  // namespace

OpPtr make_input(const KernelTable& table, const Tensor& dst, std::vector<float> mean, std::vector<float> std,
                 bool swap) {
  const auto fits = [&](const std::vector<float>& v) { return v.empty() || (v.size() == 3 && dst.c == 3); };
  check(fits(mean) && fits(std), "input", "mean and std are for three channels");
  return std::make_unique<InputOp>(table, dst, mean, std, swap);
}

OpPtr make_global_avg_pool(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst) {
  check(src.c == dst.c && dst.h == 1 && dst.w == 1 && !src.image && !dst.image, name, "the output must be one pixel");
  return std::make_unique<GlobalAvgPoolOp>(table, std::move(name), src, dst);
}

OpPtr make_avg_pool(std::string name, const Tensor& src, const Tensor& dst, int kh, int kw, const Window& window) {
  check(src.c == dst.c && !src.image && !dst.image && kh > 0 && kw > 0, name, "shapes do not fit");
  return std::make_unique<AvgPoolOp>(std::move(name), src, dst, kh, kw, window);
}

OpPtr make_add(const KernelTable& table, std::string name, const Tensor& a, const Tensor* b, const Tensor& dst,
               float lo, float hi) {
  check(same_shape(a, dst) && (b == nullptr || same_shape(*b, dst)), name, "shapes differ");
  check(!a.image && !dst.image && (b == nullptr || !b->image), name, "image tensors are read by convolutions only");
  return std::make_unique<AddOp>(table, std::move(name), a, b, dst, lo, hi);
}

OpPtr make_softmax(std::string name, const Tensor& src, const Tensor& dst) {
  check(same_shape(src, dst) && !src.image && !dst.image, name, "shapes differ");
  return std::make_unique<SoftmaxOp>(std::move(name), src, dst);
}

OpPtr make_output(const Tensor& src) { return std::make_unique<OutputOp>(src); }

}  // namespace fmn
