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

OpPtr make_output(const Tensor& src) { return std::make_unique<OutputOp>(src); }

}  // namespace fmn
