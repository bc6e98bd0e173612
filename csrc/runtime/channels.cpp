// Channels of some tensors -> the channels of one: concatenation, slices, splits and channel shuffles.
#include <algorithm>
#include <cstring>

#include "runtime/ops.h"

namespace fmn {

namespace {

class GatherOp final : public Op {
 public:
  GatherOp(const KernelTable& table, std::string name, const std::vector<Tensor>& sources, const Tensor& dst,
           const std::vector<int>& index)
      : Op(std::move(name), std::string("gather_f32/") + table.isa), table_(table), dst_(dst) {
    flat_ = dst.pad_left + dst.pad_right == 0;
    for (const Tensor& s : sources) flat_ = flat_ && s.pad_left + s.pad_right == 0;
    for (int block = 0; block < dst.blocks(); ++block) {
      std::vector<Part> parts;
      for (int i = 0; i < std::min(BLOCK, dst.c - block * BLOCK); ++i) {
        int channel = index[static_cast<size_t>(block * BLOCK + i)];
        if (channel < 0) continue;
        size_t s = 0;
        while (channel >= sources[s].c) channel -= sources[s++].c;
        Part& part = find(parts, sources[s], channel / BLOCK);
        part.lane[i] = channel % BLOCK;
      }
      blocks_.push_back(std::move(parts));
    }
  }

  void run(const Frame& frame, Team& team) const override {
    const int rows = flat_ ? 1 : dst_.h;
    const ptrdiff_t pixels = flat_ ? ptrdiff_t{dst_.h} * dst_.w : dst_.w;
    const ptrdiff_t bytes = pixels * BLOCK * ptrdiff_t{sizeof(float)};
    team.share(ptrdiff_t{dst_.blocks()} * rows, grain_of_bytes(bytes),
               [&](Range part) { gather(frame, part, rows, pixels); });
  }

 private:
  // Rows of blocks, counted through.
  void gather(const Frame& frame, Range part, int rows, ptrdiff_t pixels) const {
    thread_local std::vector<GatherSource> sources;
    for (ptrdiff_t i = part.begin; i < part.end; ++i) {
      const int block = static_cast<int>(i / rows), y = static_cast<int>(i % rows);
      const std::vector<Part>& parts = blocks_[static_cast<size_t>(block)];
      sources.resize(parts.size());
      for (size_t s = 0; s < parts.size(); ++s) {
        sources[s].src = frame.arena + parts[s].tensor.at(parts[s].block, y, 0);
        std::copy_n(parts[s].lane, BLOCK, sources[s].lane);
      }
      float* dst = frame.arena + dst_.at(block, y, 0);
      if (parts.empty()) {
        std::fill_n(dst, pixels * BLOCK, 0.0F);
      } else if (parts.size() == 1 && parts[0].whole()) {
        std::memcpy(dst, sources[0].src, sizeof(float) * static_cast<size_t>(pixels) * BLOCK);
      } else {
        table_.gather({sources.data(), static_cast<ptrdiff_t>(sources.size()), pixels, dst});
      }
      clear_padding(frame.arena, dst_, {block, block + 1}, {y, y + 1});
    }
  }

  // What an output block takes from one block of a source.
  struct Part {
    Tensor tensor;
    int block;
    int lane[BLOCK];  // -1: not from here

    bool whole() const {
      for (int i = 0; i < BLOCK; ++i) {
        if (lane[i] != i) return false;
      }
      return true;
    }
  };

  static Part& find(std::vector<Part>& parts, const Tensor& tensor, int block) {
    for (Part& p : parts) {
      if (p.tensor.offset == tensor.offset && p.block == block) return p;
    }
    Part fresh{tensor, block, {}};
    std::fill_n(fresh.lane, BLOCK, -1);
    parts.push_back(fresh);
    return parts.back();
  }

  const KernelTable& table_;
  const Tensor dst_;
  bool flat_;  // no padding anywhere: the map is one long row
  std::vector<std::vector<Part>> blocks_;
};

}  // namespace

OpPtr make_gather(const KernelTable& table, std::string name, const std::vector<Tensor>& sources, const Tensor& dst,
                  const std::vector<int>& index) {
  int channels = 0;
  for (const Tensor& s : sources) {
    check(s.h == dst.h && s.w == dst.w && !s.image, name, "shapes do not fit");
    channels += s.c;
  }
  check(index.size() == static_cast<size_t>(dst.c) && !dst.image, name, "shapes do not fit");
  for (const int i : index) check(i >= -1 && i < channels, name, "no such channel");
  return std::make_unique<GatherOp>(table, std::move(name), sources, dst, index);
}

}  // namespace fmn
