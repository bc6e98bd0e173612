// Ops that work value by value or pixel by pixel.
#include <cmath>

#include "runtime/ops.h"

namespace fmn {

namespace {

bool dense(const Tensor& t) { return t.pad_left + t.pad_right == 0; }

bool same_shape(const Tensor& a, const Tensor& b) { return a.c == b.c && a.h == b.h && a.w == b.w; }

class BinaryOp final : public Op {
 public:
  BinaryOp(const KernelTable& table, std::string name, const std::string& id, void (*kernel)(const EltArgs&),
           const Tensor& a, const Tensor* b, const Tensor& dst, const Act& act)
      : Op(std::move(name), id + "_f32/" + table.isa),
        kernel_(kernel),
        a_(a),
        b_(b != nullptr ? *b : a),
        dst_(dst),
        has_b_(b != nullptr),
        one_pixel_(b != nullptr && b->h * b->w == 1),
        flat_(dense(a_) && dense(dst_) && (one_pixel_ || dense(b_))),
        act_(act) {}

  void run(const Frame& frame, Team& team) const override {
    if (flat_ && dst_.blocks() >= 4 * team.count()) {  // a call for each block: a row of 7 pixels is mostly overhead
      const ptrdiff_t bytes = dst_.block_stride() * ptrdiff_t{sizeof(float)};
      team.share(dst_.blocks(), grain_of_bytes(bytes), [&](Range part) {
        for (ptrdiff_t i = part.begin; i < part.end; ++i) {
          const int block = static_cast<int>(i);
          kernel_({frame.arena + a_.at(block, 0, 0), has_b_ ? frame.arena + b_.at(block, 0, 0) : nullptr, one_pixel_,
                   frame.arena + dst_.at(block, 0, 0), dst_.block_stride(), act_});
        }
      });
      return;
    }
    for_rows(dst_, team, [&](int block, int y) {
      const float* b = has_b_ ? frame.arena + b_.at(block, one_pixel_ ? 0 : y, 0) : nullptr;
      kernel_({frame.arena + a_.at(block, y, 0), b, one_pixel_, frame.arena + dst_.at(block, y, 0),
               ptrdiff_t{dst_.w} * BLOCK, act_});
      clear_padding(frame.arena, dst_, {block, block + 1}, {y, y + 1});
    });
  }

 private:
  void (*const kernel_)(const EltArgs&);
  const Tensor a_, b_, dst_;
  const bool has_b_, one_pixel_;
  const bool flat_;  // no padding anywhere
  const Act act_;
};

// Where a channel of a pixel lies.
struct Channels {
  float* arena;
  const Tensor& t;
  int y, x;
  float& operator[](int c) const { return arena[t.at(c / BLOCK, y, x) + c % BLOCK]; }
};

// Ops that need all channels of a pixel.
class PixelOp : public Op {
 public:
  PixelOp(std::string name, std::string kernel, const Tensor& src, const Tensor& dst)
      : Op(std::move(name), std::move(kernel)), src_(src), dst_(dst) {}

  void run(const Frame& frame, Team& team) const final {
    team.share(src_.h, 1, [&](Range rows) {
      thread_local std::vector<double> values;
      values.resize(static_cast<size_t>(src_.c));
      for (int y = static_cast<int>(rows.begin); y < rows.end; ++y) {
        for (int x = 0; x < src_.w; ++x) {
          const Channels from{frame.arena, src_, y, x}, to{frame.arena, dst_, y, x};
          pixel(from, to, src_.c, values);
          for (int c = src_.c; c < dst_.blocks() * BLOCK; ++c) to[c] = 0.0f;
        }
      }
      clear_padding(frame.arena, dst_, {0, dst_.blocks()}, rows);
    });
  }

 protected:
  // `values` is space for one value a channel.
  virtual void pixel(const Channels& src, const Channels& dst, int channels, std::vector<double>& values) const = 0;

 private:
  const Tensor src_, dst_;
};

class SoftmaxOp final : public PixelOp {
 public:
  SoftmaxOp(std::string name, const Tensor& src, const Tensor& dst)
      : PixelOp(std::move(name), "softmax_f32", src, dst) {}

 protected:
  void pixel(const Channels& src, const Channels& dst, int channels, std::vector<double>& e) const override {
    float most = src[0];
    for (int c = 1; c < channels; ++c) {
      const float v = src[c];
      if (v > most || std::isnan(v)) most = v;  // a NaN makes the whole vector NaN
    }
    double sum = 0;
    for (int c = 0; c < channels; ++c) {
      e[static_cast<size_t>(c)] = std::exp(static_cast<double>(src[c]) - most);
      sum += e[static_cast<size_t>(c)];
    }
    for (int c = 0; c < channels; ++c) dst[c] = static_cast<float>(e[static_cast<size_t>(c)] / sum);
  }
};

class LrnOp final : public PixelOp {
 public:
  LrnOp(std::string name, const Tensor& src, const Tensor& dst, const Lrn& lrn)
      : PixelOp(std::move(name), "lrn_f32", src, dst), lrn_(lrn) {}

 protected:
  void pixel(const Channels& src, const Channels& dst, int channels, std::vector<double>& squares) const override {
    for (int c = 0; c < channels; ++c) squares[static_cast<size_t>(c)] = double{src[c]} * src[c];
    for (int c = 0; c < channels; ++c) {
      const int first = std::max(c - (lrn_.size - 1) / 2, 0), last = std::min(c + lrn_.size / 2, channels - 1);
      double sum = 0;
      for (int j = first; j <= last; ++j) sum += squares[static_cast<size_t>(j)];
      dst[c] = static_cast<float>(src[c] / std::pow(lrn_.bias + lrn_.alpha / lrn_.size * sum, lrn_.beta));
    }
  }

 private:
  const Lrn lrn_;
};

OpPtr binary(const KernelTable& table, std::string name, const std::string& id, void (*kernel)(const EltArgs&),
             const Tensor& a, const Tensor* b, const Tensor& dst, const Act& act) {
  check(same_shape(a, dst), name, "shapes differ");
  check(b == nullptr || same_shape(*b, dst) || (b->c == dst.c && b->h * b->w == 1), name, "shapes differ");
  check(!a.image && !dst.image && (b == nullptr || !b->image), name, "image tensors are read by convolutions only");
  return std::make_unique<BinaryOp>(table, std::move(name), id, kernel, a, b, dst, act);
}

}  // namespace

OpPtr make_add(const KernelTable& table, std::string name, const Tensor& a, const Tensor* b, const Tensor& dst,
               const Act& act) {
  const std::string id = b != nullptr ? "add" : "activation";
  return binary(table, std::move(name), id, table.add, a, b, dst, act);
}

OpPtr make_mul(const KernelTable& table, std::string name, const Tensor& a, const Tensor& b, const Tensor& dst,
               const Act& act) {
  return binary(table, std::move(name), "mul", table.mul, a, &b, dst, act);
}

OpPtr make_softmax(std::string name, const Tensor& src, const Tensor& dst) {
  check(same_shape(src, dst) && !src.image && !dst.image, name, "shapes differ");
  return std::make_unique<SoftmaxOp>(std::move(name), src, dst);
}

OpPtr make_lrn(std::string name, const Tensor& src, const Tensor& dst, const Lrn& lrn) {
  check(same_shape(src, dst) && !src.image && !dst.image && lrn.size > 0, name, "shapes differ");
  return std::make_unique<LrnOp>(std::move(name), src, dst, lrn);
}

}  // namespace fmn
