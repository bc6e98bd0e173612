// A dense convolution and the windows of a pool over it, done together: a few rows of the map between them at a time,
// in memory that stays in the cache. The first two layers of SqueezeNet, ShuffleNet and GoogLeNet are such, and the map
// between them is the largest of the network.
#include <algorithm>
#include <cstring>
#include <optional>

#include "runtime/conv_kernel.h"
#include "runtime/dispatch.h"
#include "runtime/picture.h"

namespace fmn {

namespace {

class ConvPoolOp final : public Op {
 public:
  ConvPoolOp(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const ConvPoolSpec& spec)
      : Op(name, std::string(spec.kind == PoolKind::max ? "conv+max_pool_f32/" : "conv+avg_pool_f32/") + table.isa +
                     "/" + std::to_string(spec.rows)),
        pool_(spec.kind == PoolKind::max ? table.pool_max : table.pool_mean),
        conv_(table, name, src, dst.c, *spec.conv),
        pad_left_(spec.conv->window.pad_left),
        src_(src),
        dst_(dst),
        pool_rows_(spec.pool_rows),
        pool_columns_(spec.pool_columns),
        rows_(spec.rows) {
    some_.c = dst.c;
    some_.w = spec.w;
    for (ptrdiff_t i = 0; i < strips(); ++i) some_.h = std::max(some_.h, end(i) - begin(i));
  }

  ptrdiff_t scratch_floats() const override {
    return some_.floats() + (picture_ != nullptr ? PictureRows::floats(src_, picture_rows_) : 0);
  }
  bool read(const std::shared_ptr<const Picture>& picture) override {
    picture_ = picture;
    picture_rows_ = conv_.bottom(some_.h - 1) - conv_.top(0);
    return true;
  }
  WeightStream first_weights() const override { return conv_.stream(0); }
  bool fetches_ahead() const override { return true; }

  void run(const Frame& frame, Team& team) const override {
    // Of the map between, what is in the scratch memory: rows from first on, before `last`, after strip `strip`.
    ptrdiff_t strip = -2;
    int first = 0, last = 0;
    std::optional<PictureRows> rows;
    if (picture_ != nullptr) rows.emplace(*picture_, frame, frame.scratch + some_.floats(), picture_rows_);
    team.share(strips(), 1, [&](Range part) {
      for (ptrdiff_t i = part.begin; i < part.end; ++i) {
        int made = begin(i);
        if (strip == i - 1 && last > made) {
          keep(frame, made - first, last - made);
          made = last;
        }
        strip = i;
        first = begin(i);
        last = end(i);
        if (made < last) convolve(frame, first, made, last, rows ? &*rows : nullptr);
        pool(frame, i);
      }
    });
  }

 private:
  ptrdiff_t strips() const { return (dst_.h + rows_ - 1) / rows_; }
  int last_row(ptrdiff_t strip) const { return std::min(static_cast<int>(strip + 1) * rows_, dst_.h); }
  // Rows of the map between that a strip reads.
  int begin(ptrdiff_t strip) const { return pool_rows_[static_cast<size_t>(strip) * static_cast<size_t>(rows_)].begin; }
  int end(ptrdiff_t strip) const { return pool_rows_[static_cast<size_t>(last_row(strip) - 1)].end; }

  // The last `count` rows, from row `from` on, are the first of the next strip.
  void keep(const Frame& frame, int from, int count) const {
    if (from == 0) return;
    for (int b = 0; b < some_.blocks(); ++b) {
      std::memmove(frame.scratch + some_.at(b, 0, 0), frame.scratch + some_.at(b, from, 0),
                   static_cast<size_t>(count * some_.pitch()) * sizeof(float));
    }
  }

  // Rows y0 .. y1 - 1 of the map, of which row `first` lies at the beginning of the scratch memory.
  void convolve(const Frame& frame, int first, int y0, int y1, PictureRows* picture) const {
    const float* source = picture != nullptr ? picture->need(conv_.top(y0), conv_.bottom(y1 - 1)) : frame.arena;
    const Range all{0, conv_.tiles(some_.w)};
    for (ptrdiff_t p = 0; p < static_cast<ptrdiff_t>(conv_.panels().size()); ++p) {
      WeightsAhead ahead = conv_.ahead({p, p + 1}, next_weights, frame.far);
      if (picture != nullptr && p == 0) ahead.soon = picture->next();
      for (int y = y0; y < y1; ++y) {
        conv_.run({source + src_.at(0, conv_.top(y), -pad_left_), frame.scratch + some_.at(0, y - first, 0),
                   some_.block_stride(), nullptr, 0, some_.w, static_cast<int>(all.end)},
                  all, conv_.rows(y), {p, p + 1}, ahead);
      }
    }
  }

  void pool(const Frame& frame, ptrdiff_t strip) const {
    for (int b = 0; b < dst_.blocks(); ++b) {
      for (int y = static_cast<int>(strip) * rows_; y < last_row(strip); ++y) {
        const PoolSpan& rows = pool_rows_[static_cast<size_t>(y)];
        pool_({frame.scratch + some_.at(b, rows.begin - begin(strip), 0), some_.pitch(), rows.end - rows.begin,
               rows.count, pool_columns_.data(), dst_.w, frame.arena + dst_.at(b, y, 0)});
      }
    }
    clear_padding(frame.arena, dst_, {0, dst_.blocks()}, {strip * rows_, last_row(strip)});
  }

  void (*const pool_)(const WindowPoolArgs&);
  const ConvKernel conv_;
  const int pad_left_;
  const Tensor src_, dst_;
  const std::vector<PoolSpan> pool_rows_, pool_columns_;
  const int rows_;
  Tensor some_;  // rows of the map between, in the scratch of a thread
  std::shared_ptr<const Picture> picture_;
  int picture_rows_ = 0;  // that there is memory for, behind some_
};

}  // namespace

OpPtr make_conv_pool(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst,
                     const ConvPoolSpec& spec) {
  check(!dst.image && spec.rows > 0 && spec.h > 0 && spec.w > 0, name, "shapes do not fit");
  check(spans_fit(spec.pool_rows, dst.h, spec.h) && spans_fit(spec.pool_columns, dst.w, spec.w), name,
        "the windows do not fit the map");
  check(std::is_sorted(spec.pool_rows.begin(), spec.pool_rows.end(),
                       [](const PoolSpan& a, const PoolSpan& b) { return a.begin < b.begin || a.end < b.end; }),
        name, "the windows must go from the first row to the last");
  check(spec.conv->inner == nullptr && spec.conv->amx == nullptr, name, "only plain sums have strips with pools");
  check_padding(name, src, spec.w, *spec.conv);
  check_act(name, spec.conv->act);
  return std::make_unique<ConvPoolOp>(table, std::move(name), src, dst, spec);
}

}  // namespace fmn
