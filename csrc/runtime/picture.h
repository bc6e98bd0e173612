// The picture of a run on its way into a network: pixels or floats in the caller's layout become rows of floats.
#pragma once

#include <array>
#include <memory>

#include "runtime/ops.h"

namespace fmn {

// How its rows are made. Immutable.
class Picture {
 public:
  // See make_input.
  Picture(const KernelTable& table, const Tensor& dst, const Normalization& pixels, const Normalization& floats,
          bool swap);

  const Tensor& tensor() const { return dst_; }

  // [w][c] of row y, normalised.
  void read(const Frame& frame, int y, float* row) const;

  // Where the caller's rows from y on begin: one place, or one for each plane. The bytes of a row there.
  static constexpr int MAX_PLANES = 4;
  int planes(InputKind kind) const;
  const char* plane(const Frame& frame, int plane, int y) const;
  ptrdiff_t row_bytes(InputKind kind) const;

 private:
  // Repeated, as the kernels want them.
  struct Repeated {
    explicit Repeated(const Normalization& n);
    float mean[NORMALIZE_PERIOD], std[NORMALIZE_PERIOD];
  };

  const KernelTable& table_;
  const Tensor dst_;
  const bool swap_, floats_change_;
  const Repeated pixels_, floats_;
};

// Rows of an image that one thread needs, from the first to the last, in memory that stays in its cache: the network's
// only reader of the picture takes them from here, and there is no copy of the whole.
class PictureRows {
 public:
  // Memory for so many rows, at least as many as are needed at a time.
  static ptrdiff_t floats(const Tensor& image, int capacity) { return image.pitch() * capacity; }

  PictureRows(const Picture& picture, const Frame& frame, float* memory, int capacity)
      : picture_(picture), frame_(frame), memory_(memory), capacity_(capacity) {}

  // Reads rows top .. bottom - 1, of which those outside of the map are left out, unless they are there. The result
  // plus Tensor::at(0, y, x) of the image is where a pixel of them lies.
  const float* need(int top, int bottom);

  // As many rows behind those as the last call has read, for who has a moment to fetch them.
  WeightStream next();

 private:
  const Picture& picture_;
  const Frame& frame_;
  float* const memory_;
  const int capacity_;
  int first_ = 0, end_ = 0;  // rows in memory
  int step_ = 0;             // that the last call has read
  std::array<WeightStream, Picture::MAX_PLANES> streams_;
};

}  // namespace fmn
