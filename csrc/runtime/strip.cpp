// Depthwise convolutions, alone or together with the dense convolutions before and after them, strip by strip.
//
//   source --expand--> ring of rows --depthwise--> strip --project--> destination
//
// A strip is a few rows of the depthwise output. For each panel of channels, the expanded rows that the strip needs
// and that are not there yet are made into a ring, and read from it at once by the depthwise kernel: the expanded
// map, the largest tensor of a MobileNet, never leaves the first- and second-level cache. Both ends are optional: a
// depthwise convolution alone reads the source and writes the destination. The result has the same bits either way.
//
// The ring holds as many rows as a strip needs, [block][row % rows][pad_left + w + pad_right][16]; rows that the next
// strip needs again stay. The strip is [block][row][w][16].
//
// Threads: large maps are cut into strips of output rows, and every thread has its own ring and strip (it computes
// the one or two expanded rows at its upper border again, and those above a strip that it takes from another thread).
// Small maps, where that is too much, are cut into panels of channels up to the depthwise output, which all threads
// write into one strip for the whole map, and when that is complete into parts of the last convolution.
#include <algorithm>
#include <climits>
#include <optional>

#include "runtime/conv_kernel.h"
#include "runtime/dispatch.h"
#include "runtime/picture.h"

namespace fmn {

namespace {

class StripOp final : public Op {
 public:
  StripOp(const KernelTable& table, const std::string& name, const std::string& id, DwFn fn, const StripSpec& spec,
          const Tensor& src, const Tensor& dst, const Tensor* add)
      : Op(name, id),
        fn_(fn),
        any_(fn == find_dw(table, 0, 0)),
        src_(src),
        dst_(dst),
        mid_(spec.mid),
        dw_(spec.depthwise),
        dw_floats_(spec.depthwise.weights->floats.get()),
        window_(spec.depthwise.window),
        adds_expanded_(spec.adds_expanded),
        oh_(spec.oh),
        ow_(spec.ow),
        zeros_(static_cast<size_t>(spec.mid.pitch()) * sizeof(float)) {
    const PackedWeights& w = *dw_.weights;
    if (spec.expand) expand_.emplace(table, name, src, spec.mid.c, *spec.expand);
    if (spec.expand) expand_window_ = spec.expand->window;
    rows_ = spec.expand || spec.project ? std::clamp(spec.rows, 1, oh_) : oh_;
    ring_rows_ = std::min(rows_needed(rows_), mid_.h);
    ring_.c = spec.mid.c;
    ring_.h = ring_rows_;
    ring_.w = mid_.w;
    ring_.pad_left = mid_.pad_left;
    ring_.pad_right = mid_.pad_right;
    strip_.c = w.oc;
    strip_.h = rows_;
    strip_.w = ow_;
    strip_.offset = spec.expand ? ring_.floats() : 0;
    if (spec.project) {
      has_add_ = add != nullptr;
      if (has_add_) add_ = *add;
      whole_ = strip_;
      whole_.h = oh_;
      whole_.offset = 0;
      project_.emplace(table, name, strip_, dst.c, *spec.project);
      project_whole_.emplace(table, name, whole_, dst.c, *spec.project);
      const auto dense = [](const Tensor& t) { return t.pad_left + t.pad_right == 0; };
      flat_ = dense(dst) && (add == nullptr || dense(*add)) && !adds_expanded_;
    }
    rows_at_a_time_ = std::min(rows_, 8);
    dense_source_ = expand_ && !src.image && src.pad_left + src.pad_right == 0 && src.h == mid_.h && src.w == mid_.w &&
                    spec.expand->weights->kh * spec.expand->weights->kw == 1;
    through_ = dense_source_ && expand_->rows_waste(mid_.w);
    pointers_ = static_cast<int>(any_ ? ptrdiff_t{rows_} * w.kh : rows_needed(rows_));
    // A group of channels is what one tile of the first convolution makes.
    if (spec.expand) {
      for (const Panel& p : expand_->panels()) groups_.push_back({p.block, p.block + p.nb});
    } else {
      for (int b = 0; b < strip_.blocks(); ++b) groups_.push_back({b, b + 1});
    }
  }

  ptrdiff_t scratch_floats() const override {
    return picture_at() + (picture_ != nullptr ? PictureRows::floats(src_, picture_rows_) : 0);
  }

  bool read(const std::shared_ptr<const Picture>& picture) override {
    if (!expand_ || expand_->prepares()) return false;
    picture_ = picture;
    picture_rows_ = expand_->bottom(ring_rows_ - 1) - expand_->top(0);
    return true;
  }

  ptrdiff_t shared_floats() const override { return project_ ? whole_.floats() : 0; }

  WeightStream first_weights() const override {
    if (expand_) return expand_->stream(0);
    return project_ ? project_->stream(0) : WeightStream();
  }

  bool fetches_ahead() const override { return expand_.has_value() || project_.has_value(); }
  ptrdiff_t far_lines() const override {
    if (src_.floats() + dst_.floats() >= L2_FLOATS) return 0;
    return (expand_ ? expand_->far_lines(ptrdiff_t{expand_->tiles(mid_.w)} * mid_.h) : 0) +
           (project_ ? project_->far_lines(tiles(0, oh_)) : 0);
  }

  void run(const Frame& frame, Team& team) const override {
    const int count = team.count();
    if (count == 1 || by_rows(count) || adds_expanded_) {  // what is added is in the ring of this thread only
      const Target target{frame.scratch, &strip_, project_ ? &*project_ : nullptr};
      const int each = count == 1 ? 1 : (oh_ + count * rows_at_a_time_ - 1) / (count * rows_at_a_time_);  // strips
      Ring ring(*this, frame);
      team.share(count * each, 1, [&](Range part) {
        const int begin = strip_begin(part.begin, count, each), end = strip_begin(part.end, count, each);
        run_rows(frame, target, ring, begin, end, {0, groups()});
      });
      return;
    }
    team.share(groups(), grain_of_macs(macs_of_group()), [&](Range part) {
      Ring ring(*this, frame);
      run_rows(frame, {frame.shared, &whole_, nullptr}, ring, 0, oh_, part);
    });
    if (!project_) return;
    const Target target{frame.shared, &whole_, &*project_whole_};
    project_->share(
        team, tiles(0, oh_), share_panels(), next_weights, frame.far,
        [&](Range tiles) { prepare(frame, target, 0, oh_, tiles); },
        [&](Range panels, Range tiles, WeightsAhead& ahead) { project(frame, target, 0, oh_, tiles, panels, ahead); });
  }

 private:
  // Where the depthwise output goes before the last convolution, and what reads it there, strip by strip (or null).
  struct Target {
    float* memory;
    const Tensor* tensor;
    const ConvKernel* project;
  };

  // What the ring of a thread holds: rows below `end`, if the last output rows that were made from it end at `y`.
  struct Ring {
    Ring(const StripOp& op, const Frame& frame) {
      if (op.picture_) picture.emplace(*op.picture_, frame, frame.scratch + op.picture_at(), op.picture_rows_);
    }
    bool cleared = false;
    int y = -1, end = 0;
    std::optional<PictureRows> picture;
  };

  // Behind ring and strip.
  ptrdiff_t through_at() const { return (expand_ ? ring_.floats() : 0) + (project_ ? strip_.floats() : 0); }

  ptrdiff_t expand_room() const { return ptrdiff_t{ring_.h} * mid_.w; }
  // Of the last convolution: all pixels of a strip, or of the whole map; where that takes much memory and threads share
  // pixels of the whole map, as many as they do at a time.
  ptrdiff_t room(const Tensor& map) const {
    const ptrdiff_t all = ptrdiff_t{map.h} * map.w;
    const bool some = &map == &whole_ && project_->on_amx() && !share_panels();
    return some ? std::min<ptrdiff_t>(all, ConvKernel::MOST_TILES * project_->mr()) : all;
  }
  bool share_panels() const { return project_->weights().size() > 4 * whole_.floats(); }

  // Behind those, what is prepared of pixels, for one convolution at a time.
  ptrdiff_t prepared_at() const {
    return through_at() + (through_ ? expand_->through_floats(ptrdiff_t{ring_.h} * mid_.w) : 0);
  }

  // Behind what is prepared.
  ptrdiff_t picture_at() const {
    return prepared_at() + std::max(expand_ ? expand_->prepared_floats(expand_room()) : 0,
                                    project_ ? project_->prepared_floats(std::max(room(strip_), room(whole_))) : 0);
  }

  ptrdiff_t groups() const { return static_cast<ptrdiff_t>(groups_.size()); }

  // The first row of strip i of `each` a thread. The kernel makes two rows at once, so strips of a thread are even.
  int strip_begin(ptrdiff_t i, int count, int each) const {
    const Range all = split(oh_, count, static_cast<int>(i) / each);
    const auto of_thread = static_cast<int>(split(all.end - all.begin, each, static_cast<int>(i) % each).begin);
    return static_cast<int>(std::min(all.begin + (of_thread + 1) / 2 * 2, all.end));
  }

  ptrdiff_t macs_of_group() const {
    const PackedWeights& w = *dw_.weights;
    const ptrdiff_t filtered = ptrdiff_t{oh_} * ow_ * w.kh * w.kw * BLOCK * (groups_[0].end - groups_[0].begin);
    if (!expand_) return 2 * filtered;  // they run at half of the speed
    const Panel& panel = expand_->panels().front();
    return 2 * filtered + ptrdiff_t{mid_.h} * mid_.w * expand_->weights().k(panel) * panel.width();
  }

  // Whether the rows that threads compute twice are few enough.
  bool by_rows(int count) const {
    const int twice = expand_ ? (dw_.weights->kh - 1) * window_.dilation_h + 1 - window_.stride_h : 0;
    if (twice == 0) return oh_ >= 4 * count && oh_ >= LEAST_ROWS_TO_SHARE;
    return oh_ >= 4 * count && twice * (count - 1) * 7 <= mid_.h;
  }

  // Rows of the expanded map under n rows of the output.
  int rows_needed(int n) const { return (n - 1) * window_.stride_h + (dw_.weights->kh - 1) * window_.dilation_h + 1; }

  void run_rows(const Frame& frame, const Target& target, Ring& ring, int y0, int y1, Range part) const {
    if (y0 >= y1 || part.begin == part.end) return;
    const Range blocks{groups_[static_cast<size_t>(part.begin)].begin, groups_[static_cast<size_t>(part.end - 1)].end};
    if (expand_ && !ring.cleared) clear_padding(frame.scratch, ring_, blocks, {0, ring_.h});
    int made = std::max(top(y0), 0);  // the first expanded row that is not in the ring
    if (ring.y == y0) made = std::max(made, ring.end);
    for (int y = y0; y < y1; y += rows_) {
      const int end = std::min(y + rows_, y1);
      made = std::max(made, top(y));  // where strides leave rows out, nobody reads them: there may be no room for them
      const int need = std::min(top(end - 1) + (dw_.weights->kh - 1) * window_.dilation_h + 1, mid_.h);
      if (expand_ && expand_->prepares()) {
        for (int r = made; r < need; ++r)
          expand_->prepare(source_row(frame.arena, r), mid_.w, prepared_row(frame, r - made), expand_room());
      }
      const float* source = frame.arena;
      const bool by_rows = ring.picture && made < need;
      if (by_rows) source = ring.picture->need(expand_->top(made), expand_->bottom(need - 1));
      const WeightStream picture = by_rows ? ring.picture->next() : WeightStream();
      for (ptrdiff_t p = part.begin, expanded = p; p < part.end; ++p) {
        if (expand_ && p == expanded) {
          const Range some = expand_->together(p, part.end);
          expand(frame, source, some, made, need, p == part.begin ? picture : WeightStream());
          expanded = some.end;
        }
        const Range group = groups_[static_cast<size_t>(p)];
        for (ptrdiff_t b = group.begin; b < group.end; ++b) {
          depthwise(frame, target, static_cast<int>(b), y, end);
        }
      }
      made = std::max(made, need);
      if (!project_) {
        clear_padding(frame.arena, dst_, blocks, {y, end});
      } else if (target.project != nullptr) {
        if (project_->prepares()) prepare(frame, target, y, end, {0, tiles(y, end)});
        const auto n = static_cast<ptrdiff_t>(project_->panels().size());
        for (Range some = project_->together(0, n); some.begin < n; some = project_->together(some.end, n)) {
          WeightsAhead ahead = target.project->ahead(some, next_weights, frame.far);
          project(frame, target, y, end, {0, tiles(y, end)}, some, ahead);
        }
      }
    }
    ring.cleared = true;
    ring.y = y1;
    ring.end = made;
  }

  int top(int y) const { return y * window_.stride_h - window_.pad_top; }

  const float* source_row(const float* source, int y) const {
    return source + src_.at(0, expand_->top(y), -expand_window_.pad_left);
  }

  float* prepared_row(const Frame& frame, int row) const {
    return expand_->at(frame.scratch + prepared_at(), ptrdiff_t{row} * mid_.w);
  }

  // Rows y0 .. y1 - 1 of the expanded map into the ring, from `source`: the arena, or what PictureRows::need gives.
  // `first`: what to fetch before anything else.
  void expand(const Frame& frame, const float* source, Range some, int y0, int y1, const WeightStream& first) const {
    WeightsAhead ahead = expand_->ahead(some, project_ ? project_->stream(0) : next_weights, frame.far);
    if (first.lines() > 0) ahead.soon = first;
    if (through_ && y0 < y1) {
      const int count = (y1 - y0) * mid_.w, n = expand_->tiles(count);
      expand_->run_through(frame.scratch + through_at(), frame.arena + src_.at(0, y0, 0), count, n, {0, n}, some.begin,
                           mid_.w, ahead,
                           [&](int block, int y) { return frame.scratch + ring_.at(block, (y0 + y) % ring_.h, 0); });
      return;
    }
    const Range all{0, dense_source_ ? expand_->row_tiles(mid_.w) : expand_->tiles(mid_.w)};
    for (int y = y0, n = 1; y < y1; y += n) {
      float* c = frame.scratch + ring_.at(0, y % ring_.h, 0);
      if (dense_source_) n = std::min(y1 - y, ring_.h - y % ring_.h);  // rows that follow each other in the ring
      expand_->run({source_row(source, y), c, ring_.block_stride(), nullptr, 0, mid_.w, static_cast<int>(all.end),
                    prepared_row(frame, y - y0), expand_room(), frame.scratch + prepared_at(), n, 0, ring_.pitch()},
                   all, expand_->rows(y), some, ahead);
    }
  }

  void depthwise(const Frame& frame, const Target& target, int block, int y0, int y1) const {
    const PackedWeights& w = *dw_.weights;
    thread_local std::vector<const float*> rows;
    rows.resize(static_cast<size_t>(pointers_));
    int n = 0;
    if (any_) {
      for (int y = y0; y < y1; ++y) {
        for (int ky = 0; ky < w.kh; ++ky) rows[n++] = row(frame, block, top(y) + ky * window_.dilation_h);
      }
    } else {
      for (int r = 0; r < rows_needed(y1 - y0); ++r) rows[n++] = row(frame, block, top(y0) + r);
    }
    DwArgs d;
    d.rows = rows.data();
    d.w = dw_floats_.get() + ptrdiff_t{block} * w.kh * w.kw * BLOCK;
    d.bias = w.bias + block * BLOCK;
    // A strip is filled from its top; the strip for the whole map, and the destination, at row y0.
    d.dst = !project_ ? frame.arena + dst_.at(block, y0, 0)
                      : target.memory + target.tensor->at(block, target.tensor == &whole_ ? y0 : 0, 0);
    d.dst_stride = project_ ? target.tensor->pitch() : dst_.pitch();
    d.oh = y1 - y0;
    d.ow = ow_;
    d.act = dw_.act;
    d.kh = w.kh;
    d.kw = w.kw;
    d.stride_h = window_.stride_h;
    d.stride_w = window_.stride_w;
    d.dilation_w = window_.dilation_w;
    fn_(d);
  }

  // The first padded pixel that the leftmost output reads in row y of the expanded map.
  const float* row(const Frame& frame, int block, int y) const {
    if (y < 0 || y >= mid_.h) return zeros_.data();
    if (expand_) return frame.scratch + ring_.at(block, y % ring_.h, -window_.pad_left);
    return frame.arena + src_.at(block, y, -window_.pad_left);
  }

  // Tiles of the last convolution over rows y0 .. y1 - 1: along all of them, or along each where rows have padding.
  ptrdiff_t tiles(int y0, int y1) const {
    return flat_ ? project_->tiles((y1 - y0) * ow_) : ptrdiff_t{project_->tiles(ow_)} * (y1 - y0);
  }

  // Of tiles of rows y0 .. y1 - 1, which follow each other in the strip.
  void prepare(const Frame& frame, const Target& target, int y0, int y1, Range part) const {
    const ConvKernel& kernel = *target.project;
    const ptrdiff_t begin = pixel(kernel, y0, y1, part.begin), end = pixel(kernel, y0, y1, part.end);
    kernel.prepare(target.memory + target.tensor->at(0, 0, 0) + begin * BLOCK, end - begin,
                   prepared_pixel(frame, target, y0, y1, part, begin), room(*target.tensor));
  }

  // The first pixel of a tile of rows y0 .. y1 - 1.
  ptrdiff_t pixel(const ConvKernel& kernel, int y0, int y1, ptrdiff_t tile) const {
    const int width = flat_ ? (y1 - y0) * ow_ : ow_, per_row = kernel.tiles(width);
    return tile / per_row * width + ConvKernel::first_pixel(width, per_row, tile % per_row);
  }

  // Where a pixel is that was prepared with those tiles.
  float* prepared_pixel(const Frame& frame, const Target& target, int y0, int y1, Range part, ptrdiff_t at) const {
    const ConvKernel& kernel = *target.project;
    if (kernel.on_amx()) at -= pixel(kernel, y0, y1, part.begin);
    return kernel.at(frame.scratch + prepared_at(), at);
  }

  void project(const Frame& frame, const Target& target, int y0, int y1, Range part, Range panels,
               WeightsAhead& ahead) const {
    const ConvKernel& kernel = *target.project;
    const int width = flat_ ? (y1 - y0) * ow_ : ow_;
    const ptrdiff_t per_row = kernel.tiles(width);
    for (ptrdiff_t row = part.begin / per_row; row * per_row < part.end; ++row) {
      const int y = static_cast<int>(row);
      const Range tiles{std::max(part.begin - row * per_row, ptrdiff_t{0}),
                        std::min(part.end - row * per_row, per_row)};
      if (!flat_ && tiles.begin == 0) {
        clear_padding(frame.arena, dst_, kernel.blocks(panels), {y0 + y, y0 + y + 1});
      }
      const float* add = has_add_ ? frame.arena + add_.at(0, y0 + y, 0) : nullptr;
      if (adds_expanded_) add = frame.scratch + ring_.at(0, (y0 + y) % ring_.h, 0);
      kernel.run({target.memory + target.tensor->at(0, y, 0), frame.arena + dst_.at(0, y0 + y, 0), dst_.block_stride(),
                  add, (adds_expanded_ ? ring_ : add_).block_stride(), width, static_cast<int>(per_row),
                  prepared_pixel(frame, target, y0, y1, part, row * width), room(*target.tensor),
                  frame.scratch + prepared_at()},
                 tiles, kernel.rows(0), panels, ahead);
    }
  }

  const DwFn fn_;
  const bool any_;
  const Tensor src_, dst_, mid_;
  const ConvSpec dw_;
  const std::shared_ptr<const float> dw_floats_;
  const Window window_;
  const bool adds_expanded_;
  const int oh_, ow_;
  const Region zeros_;
  std::optional<ConvKernel> expand_, project_, project_whole_;
  Window expand_window_;
  std::shared_ptr<const Picture> picture_;
  int picture_rows_ = 0;  // that there is memory for
  Tensor ring_, strip_;   // in the scratch of a thread
  Tensor whole_;          // in the shared memory
  Tensor add_;
  bool has_add_ = false, flat_ = false;
  bool dense_source_ = false;  // a map of pixels as many as the expanded map has, one behind the other
  bool through_ = false;       // the expanded rows are made as one and copied into the ring
  int rows_ = 1, rows_at_a_time_ = 1, ring_rows_ = 1, pointers_ = 0;
  std::vector<Range> groups_;  // blocks that are expanded and filtered together
};

}  // namespace

OpPtr make_strip(const KernelTable& table, const std::string& name, const Tensor& src, const Tensor& dst,
                 const Tensor* add, const StripSpec& spec) {
  const PackedWeights& w = *spec.depthwise.weights;
  const Window& window = spec.depthwise.window;
  const Tensor& mid = spec.mid;
  check(w.depthwise && w.oc == mid.c && !mid.image && !dst.image, name, "weights do not fit the tensors");
  check(window.stride_h > 0 && window.stride_w > 0 && window.dilation_h > 0 && window.dilation_w > 0, name,
        "strides and dilations must be positive");
  check_padding(name, mid, spec.ow, spec.depthwise);
  check_act(name, spec.depthwise.act);
  if (spec.expand) {
    check_padding(name, src, mid.w, *spec.expand);
    check_act(name, spec.expand->act);
  } else {
    check(src.c == mid.c && src.h == mid.h && src.w == mid.w && src.pitch() == mid.pitch() && !src.image &&
              src.runs == nullptr,
          name, "the source is not what the depthwise convolution reads");
  }
  check(spec.oh == dst.h && spec.ow == dst.w && spec.oh > 0, name, "the output has another shape");
  if (spec.project) {
    const PackedWeights& p = *spec.project->weights;
    const Window& pw = spec.project->window;
    check_act(name, spec.project->act);
    check(p.kh * p.kw == 1 && pw.stride_h * pw.stride_w == 1 && pw.pad_top == 0 && pw.pad_left == 0, name,
          "the last convolution must be 1x1 with stride 1");
    check(add == nullptr || (add->c == dst.c && add->h == dst.h && add->w == dst.w && !add->image), name,
          "the tensor to add has another shape");
  } else {
    check(dst.c == mid.c && add == nullptr, name, "the output has another shape");
  }
  if (spec.adds_expanded) {
    check(spec.expand && spec.project && add == nullptr, name, "what is added must be made by the first convolution");
    check(mid.c == dst.c && mid.h == dst.h && mid.w == dst.w && window.pad_top < w.kh, name,
          "what is added has another shape");
  }
  const bool square = w.kh == w.kw && window.stride_h == window.stride_w && window.dilation_h * window.dilation_w == 1;
  DwFn fn = square ? find_dw(table, w.kh, window.stride_h) : nullptr;
  const std::string size =
      fn == nullptr ? "any" : std::to_string(w.kh) + "x" + std::to_string(w.kw) + "s" + std::to_string(window.stride_h);
  if (fn == nullptr) fn = find_dw(table, 0, 0);
  check(fn != nullptr, name, "the kernel table has no depthwise kernel");
  std::string id = std::string("dw_f32/") + table.isa + "/" + size;
  if (spec.expand || spec.project) {
    const auto dense = [](const ConvSpec& conv) {
      return std::string(conv.inner ? "inner" : conv.amx ? "amx" : "conv");
    };
    id = (spec.expand ? dense(*spec.expand) + "+" : "") + id + (spec.project ? "+" + dense(*spec.project) : "") + "/" +
         std::to_string(spec.rows);
  }
  return std::make_unique<StripOp>(table, name, id, fn, spec, src, dst, add);
}

}  // namespace fmn
