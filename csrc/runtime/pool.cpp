// Pooling: the mean over the whole map, and the largest value or the mean of windows.
#include "runtime/ops.h"

namespace fmn {

namespace {

class GlobalAvgPoolOp final : public Op {
 public:
  GlobalAvgPoolOp(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst)
      : Op(std::move(name), std::string("global_avg_pool_f32/") + table.isa), table_(table), src_(src), dst_(dst) {}

  void run(const Frame& frame, Team& team) const override {
    const ptrdiff_t bytes = src_.block_stride() * ptrdiff_t{sizeof(float)};
    team.share(src_.blocks(), grain_of_bytes(bytes), [&](Range blocks) {
      for (ptrdiff_t b = blocks.begin; b < blocks.end; ++b) {
        const int block = static_cast<int>(b);
        table_.global_avg_pool(
            {frame.arena + src_.at(block, 0, 0), src_.pitch(), src_.h, src_.w, frame.arena + dst_.at(block, 0, 0)});
      }
      clear_padding(frame.arena, dst_, blocks, {0, 1});
    });
  }

 private:
  const KernelTable& table_;
  const Tensor src_, dst_;
};

class WindowPoolOp final : public Op {
 public:
  WindowPoolOp(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, PoolKind kind,
               std::vector<PoolSpan> rows, std::vector<PoolSpan> columns)
      : Op(std::move(name), std::string(kind == PoolKind::max ? "max_pool_f32/" : "avg_pool_f32/") + table.isa),
        kernel_(kind == PoolKind::max ? table.pool_max : table.pool_mean),
        src_(src),
        dst_(dst),
        rows_(std::move(rows)),
        columns_(std::move(columns)) {}

  void run(const Frame& frame, Team& team) const override {
    for_rows(dst_, team, [&](int block, int y) {
      const PoolSpan& rows = rows_[static_cast<size_t>(y)];
      kernel_({frame.arena + src_.at(block, rows.begin, 0), src_.pitch(), rows.end - rows.begin, rows.count,
               columns_.data(), dst_.w, frame.arena + dst_.at(block, y, 0)});
      clear_padding(frame.arena, dst_, {block, block + 1}, {y, y + 1});
    });
  }

 private:
  void (*const kernel_)(const WindowPoolArgs&);
  const Tensor src_, dst_;
  const std::vector<PoolSpan> rows_, columns_;
};

}  // namespace

bool spans_fit(const std::vector<PoolSpan>& spans, int outputs, int size) {
  if (spans.size() != static_cast<size_t>(outputs)) return false;
  for (const PoolSpan& s : spans) {
    if (s.begin < 0 || s.end > size || s.begin >= size) return false;
  }
  return true;
}

OpPtr make_global_avg_pool(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst) {
  check(src.c == dst.c && dst.h == 1 && dst.w == 1 && !src.image && !dst.image, name, "the output must be one pixel");
  return std::make_unique<GlobalAvgPoolOp>(table, std::move(name), src, dst);
}

OpPtr make_window_pool(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, PoolKind kind,
                       std::vector<PoolSpan> rows, std::vector<PoolSpan> columns) {
  check(src.c == dst.c && !src.image && !dst.image, name, "shapes do not fit");
  check(spans_fit(rows, dst.h, src.h) && spans_fit(columns, dst.w, src.w), name, "the windows do not fit the map");
  return std::make_unique<WindowPoolOp>(table, std::move(name), src, dst, kind, std::move(rows), std::move(columns));
}

}  // namespace fmn
