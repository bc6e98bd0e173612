// Program: a network for one picture size, ready to run. Immutable after finish(); run() may be called by any
// number of threads at once.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "runtime/arenas.h"
#include "runtime/ops.h"
#include "runtime/picture.h"

namespace fmn {

class Program {
 public:
  // Tensors lie in an arena of `arena_floats`, one of `arenas`; those that live at the same time must not overlap
  // (lower.py plans it).
  Program(const KernelTable& table, ptrdiff_t arena_floats, std::shared_ptr<Arenas> arenas);

  int tensor(int c, int h, int w, int pad_left, int pad_right, bool image, ptrdiff_t offset);
  // Of bytes; pads: top, bottom, left, right.
  int tensor_u8(int c, int h, int w, const std::array<int, 4>& pads, bool image, uint8_t zero, ptrdiff_t offset);
  // Lanes of tensors, as the source of a 1x1 convolution.
  struct Run {
    int tensor, lane, count;
  };
  int scattered(const std::vector<Run>& runs);
  const Tensor& tensor(int id) const;
  const Tensor& source(int id) const;  // a tensor, or scattered ones
  // The first step: the picture -> its tensor. `one_reader`: only the step behind it reads the tensor, so that there
  // is no such step if that takes the picture itself.
  void input(std::shared_ptr<const Picture> picture, bool one_reader);
  void append(OpPtr op);
  // The last steps: which tensor is the output.
  void finish(int input, int output);

  // n pictures, one after the other; output: [n][h][w][c]. `times`, if not null, receives seconds for each op,
  // summed over the pictures. Throws std::logic_error before finish().
  void run(const void* input, InputKind kind, ptrdiff_t n, float* output, int threads, double* times = nullptr) const;

  const KernelTable& table() const { return table_; }
  const std::vector<OpPtr>& ops() const { return ops_; }
  const Tensor& input() const { return tensor(input_); }
  const Tensor& output() const { return tensor(output_); }
  size_t arena_bytes() const { return static_cast<size_t>(arena_floats_) * sizeof(float); }

 private:
  void plan_far();

  const KernelTable& table_;
  const ptrdiff_t arena_floats_;
  ptrdiff_t scratch_floats_ = 0, shared_floats_ = 0;  // of each thread and of all, behind the arena
  std::vector<Tensor> tensors_;
  std::vector<OpPtr> ops_;
  int input_ = -1, output_ = -1;
  std::shared_ptr<const Picture> picture_;  // until its reader has taken it
  const std::shared_ptr<Arenas> arenas_;
};

}  // namespace fmn
