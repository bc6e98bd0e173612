// 1x1 convolutions by Strassen's product in Winograd's form (strassen.h): fewer multiplications than the sum that
// defines the layer, for some additions of maps. See csrc/README.md for when it pays.
//
// The pixels of a chunk of rows are halved (an odd one in the middle belongs to both halves and is computed twice,
// equally well), the input channels by blocks, the output channels by panels:
//
//   for each chunk:  s1 .. s4 of its pixels, for all channels        in the second-level cache
//     for each group of panels:  the seven products                  each is a GEMM with `add`; sums in between and the
//                                                                    weights of one product stay near the core
//
// With two levels each of the seven is done in this way again. Panels that have no partner are computed as ever.
//
// Threads share out the groups of all chunks. Each makes the sums of a chunk that it works on for itself: to read them
// from another core's cache takes longer (Zen 4, two threads: 10 % of a layer). What is added to what depends on shapes
// only: the bits are the same for every thread count.
#include "runtime/strassen.h"

#include <algorithm>
#include <array>
#include <climits>
#include <limits>

#include "runtime/conv_kernel.h"
#include "runtime/cpu.h"
#include "runtime/dispatch.h"

namespace fmn {

namespace {

constexpr int MAX_FACTORS = STRASSEN_PRODUCTS * STRASSEN_PRODUCTS;

// Pixels of some panels: of a tensor, or dense in the scratch.
struct Place {
  float* p;                // the first pixel, block 0
  ptrdiff_t block_stride;  // floats from block to block
  ptrdiff_t panel_stride;  // and from panel to panel
  int x;                   // column of the first pixel
  int w;                   // pixels of a row, which `gap` floats follow
  ptrdiff_t gap;

  int run() const { return w - x; }  // pixels up to the gap
  void skip(int pixels) {
    const int to = x + pixels, rows = to / w;
    p += ptrdiff_t{pixels} * BLOCK + rows * gap;
    x = to - rows * w;
  }
  // From pixel `pixels` and panel `panels` on.
  Place part(int pixels, ptrdiff_t panels) const {
    Place place = *this;
    place.skip(pixels);
    place.p += panels * panel_stride;
    return place;
  }
};

constexpr int NO_GAP = INT_MAX;

// One of the factors on the side of the pixels.
struct Factor {
  const float* p;  // the first pixel
  int made;        // 0: a part of the source; n: of the sums of level n
};

struct Bias {
  const float* p;
  ptrdiff_t panel_stride;
  Bias part(ptrdiff_t panels) const { return {p + panels * panel_stride, panel_stride}; }
};

bool is_dense(const Tensor& t) { return t.pad_left + t.pad_right == 0; }

class StrassenOp final : public Op {
 public:
  StrassenOp(const KernelTable& table, const std::string& name, const std::string& id, ConvKernel kernel,
             const Tensor& src, const Tensor& dst, const Tensor* add, const StrassenSpec& spec)
      : Op(name, id),
        table_(table),
        kernel_(std::move(kernel)),
        weights_(spec.weights),
        act_(spec.act),
        src_(src),
        dst_(dst),
        add_(add != nullptr ? *add : dst),
        has_add_(add != nullptr),
        dense_(is_dense(dst) && (add == nullptr || is_dense(*add))),
        levels_(spec.weights->levels),
        rows_(std::min(spec.rows, dst.h)),
        nb_(weights_->weights->panel_blocks),
        zeros_(static_cast<size_t>(nb_ * BLOCK)) {
    mr_ = max_mr(table, nb_, BLOCK);
    for (int m = 0; m <= mr_; ++m)
      fns_.push_back(m > 0 ? find_gemm(table, m, nb_, false, BLOCK, prefers_halves(nb_))->run : nullptr);
    k_ = weights_->weights->ic >> levels_;
    strides_[0] = src.block_stride();
    ptrdiff_t temporary = 0;
    int m = rows_ * dst.w;
    for (int level = 1, count = 1; level <= levels_; ++level, count *= STRASSEN_PRODUCTS) {
      m = (m + 1) / 2;
      strides_[level] = ptrdiff_t{m} * BLOCK;
      sums_[level] = strides_[level] * (src.blocks() >> level);
      sums_at_[level] = sum_floats_;
      sum_floats_ += 4 * count * sums_[level];
      temporary += 4 * strides_[level] * nb_ << (levels_ - level);
    }
    temporary_floats_ = temporary;
    for (int level = 0; level <= levels_; ++level) {
      for (ptrdiff_t k = 0; k < k_; k += BLOCK) segments_[level].push_back({k / BLOCK * strides_[level], BLOCK});
    }
  }

  ptrdiff_t scratch_floats() const override { return sum_floats_ + temporary_floats_; }
  WeightStream first_weights() const override { return stream(0); }
  bool fetches_ahead() const override { return true; }
  ptrdiff_t far_lines() const override {
    const ptrdiff_t pixels = ptrdiff_t{dst_.h} * dst_.w >> levels_;
    return k_ * (pixels + mr_ - 1) / mr_ * static_cast<ptrdiff_t>(weights_->factors.size());
  }

  void run(const Frame& frame, Team& team) const override {
    const ptrdiff_t chunks = (dst_.h + rows_ - 1) / rows_, groups = weights_->groups;
    Job job{frame, frame.scratch, frame.scratch + sum_floats_, {}, -1, 0, 0};
    team.share(chunks * groups, 1, [&](Range part) {
      for (ptrdiff_t i = part.begin; i < part.end; ++i) {
        const ptrdiff_t chunk = i / groups;
        const int y0 = static_cast<int>(chunk) * rows_, y1 = std::min(y0 + rows_, dst_.h);
        if (chunk != job.chunk) make_factors(job, y0, y1);
        job.chunk = chunk;
        job.group = i % groups;
        run_group(job, y0, y1);
        run_alone(job, y0, y1);
      }
    });
  }

 private:
  // What one thread is at.
  struct Job {
    const Frame& frame;
    float* sums;
    float* temporary;
    Factor factors[MAX_FACTORS];  // of the chunk, whose sums are made
    ptrdiff_t chunk;
    ptrdiff_t group;
    int product;  // the next one of the group
  };

  // The weights of factor i, counted through all groups.
  WeightStream stream(ptrdiff_t i) const {
    if (i >= static_cast<ptrdiff_t>(weights_->factors.size())) return {};
    return {weights_->factors[static_cast<size_t>(i)], ptrdiff_t{k_} * nb_ * BLOCK};
  }

  void make_factors(Job& job, int y0, int y1) const {
    Factor parents[STRASSEN_PRODUCTS], *to = job.factors;
    parents[0] = {job.frame.arena + src_.at(0, y0, 0), 0};
    int m = (y1 - y0) * dst_.w, blocks = src_.blocks();
    for (int level = 1, count = 1; level <= levels_; ++level, count *= STRASSEN_PRODUCTS) {
      const int half = (m + 1) / 2;
      blocks /= 2;
      to = job.factors;
      for (int i = 0; i < count; ++i) {
        const Factor& parent = parents[i];
        const ptrdiff_t stride = strides_[parent.made];
        const auto at = [&](int lower, int right) {
          return parent.p + lower * ptrdiff_t{m - half} * BLOCK + right * blocks * stride;
        };
        float* const s = job.sums + sums_at_[level] + 4 * i * sums_[level];
        for (ptrdiff_t b = 0; b < blocks; ++b) {
          float* const d = s + b * strides_[level];
          table_.strassen_sums({at(0, 0) + b * stride, at(0, 1) + b * stride, at(1, 0) + b * stride,
                                at(1, 1) + b * stride, d, d + sums_[level], d + 2 * sums_[level], d + 3 * sums_[level],
                                ptrdiff_t{half} * BLOCK});
        }
        const auto sum = [&](int n) { return Factor{s + (n - 1) * sums_[level], level}; };
        const Factor list[STRASSEN_PRODUCTS] = {
            {at(0, 0), parent.made}, {at(0, 1), parent.made}, sum(2), sum(3), {at(1, 1), parent.made}, sum(1), sum(4)};
        to = std::copy(list, list + STRASSEN_PRODUCTS, to);
      }
      if (level < levels_) std::copy(job.factors, to, parents);
      m = half;
    }
  }

  void run_group(Job& job, int y0, int y1) const {
    for (int p = 0; p < 1 << levels_; ++p) {
      const Panel& panel = kernel_.panels()[static_cast<size_t>(job.group + p * weights_->groups)];
      clear_padding(job.frame.arena, dst_, {panel.block, panel.block + panel.nb}, {y0, y1});
    }
    const ptrdiff_t first = job.group * nb_;
    Place c = place(job.frame, dst_, y0), add = place(job.frame, add_, y0);
    c.p += first * c.block_stride;
    add.p += first * add.block_stride;
    const Bias bias{weights_->weights->bias + first * BLOCK, ptrdiff_t{weights_->groups} * nb_ * BLOCK};
    job.product = 0;
    multiply(job, levels_, c, has_add_ ? &add : nullptr, bias, act_, (y1 - y0) * dst_.w, job.temporary);
  }

  Place place(const Frame& frame, const Tensor& t, int y) const {
    return {frame.arena + t.at(0, y, 0),
            t.block_stride(),
            weights_->groups * nb_ * t.block_stride(),
            0,
            is_dense(t) ? NO_GAP : t.w,
            ptrdiff_t{t.pad_left + t.pad_right} * BLOCK};
  }

  // c = act(bias + a b + add): m pixels of 2^level panels, a and b being the next factors of the job. add and c are
  // different memory: a pixel in the middle of an odd number is read and written twice.
  void multiply(Job& job, int level, const Place& c, const Place* add, const Bias& bias, const Act& act, int m,
                float* temporary) const {
    if (level == 0) return multiply_once(job, c, add, bias, act, m);
    const int half = (m + 1) / 2, shift = m - half, panels = 1 << (level - 1);
    const ptrdiff_t stride = ptrdiff_t{half} * BLOCK, size = stride * nb_ * panels;
    Place t[4];
    for (int i = 0; i < 4; ++i) t[i] = {temporary + i * size, stride, stride * nb_, 0, NO_GAP, 0};
    const Place &x = t[0], &x2 = t[1], &y = t[2], &w = t[3];
    float* const rest = temporary + 4 * size;
    const Bias none{zeros_.data(), 0}, right = bias.part(panels);
    const Act linear{ActKind::clamp, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity(), 0,
                     0};
    const auto product = [&](const Place& to, const Place* plus, const Bias& b, const Act& a) {
      multiply(job, level - 1, to, plus, b, a, half, rest);
    };
    // with = sum + the quarter of add that belongs there, or the sum itself
    const auto with_add = [&](const Place& value, int lower, int right_half, const Place& with) -> const Place* {
      if (add == nullptr) return &value;
      add_places(with, value, add->part(lower * shift, right_half * panels), linear, half, panels);
      return &with;
    };
    product(x, nullptr, none, linear);                           // a11 b11
    product(c.part(0, 0), with_add(x, 0, 0, y), bias, act);      // a12 b21
    product(x2, &x, none, linear);                               // s2 t2
    product(y, &x2, none, linear);                               // s3 t3
    product(c.part(shift, 0), with_add(y, 1, 0, w), bias, act);  // a22 t4
    product(w, nullptr, right, linear);                          // s1 t1
    last_sums(c.part(shift, panels), w, *with_add(y, 1, 1, x), act, x, x2, half, panels);
    product(c.part(0, panels), with_add(x, 0, 1, y), none, act);  // s4 b22
  }

  void multiply_once(Job& job, Place c, const Place* add, const Bias& bias, const Act& act, int m) const {
    const int n = weights_->products(), index = job.product++;
    const Factor& a = job.factors[index];
    WeightsAhead ahead{
        stream(job.group * n + index + 1),
        next_weights.part({job.group * n + index, job.group * n + index + 1}, n * ptrdiff_t{weights_->groups}),
        job.frame.far};
    GemmArgs g;
    g.xs = BLOCK;
    g.segs = segments_[a.made].data();
    g.n_segs = static_cast<ptrdiff_t>(segments_[a.made].size());
    g.b = weights_->factors[static_cast<size_t>(job.group * n + index)];
    g.bias = bias.p;
    g.c_stride = c.block_stride;
    g.act = act;
    Place plus = add != nullptr ? *add : c;
    g.add_stride = plus.block_stride;
    for (int done = 0; done < m;) {
      const int pixels = std::min({m - done, c.run(), plus.run()});
      const int tiles = (pixels + mr_ - 1) / mr_, size = (pixels + tiles - 1) / tiles;
      const int wide = tiles - (tiles * size - pixels);  // tiles of `size` pixels, the others have one less
      for (const auto& [count, mr] : {std::pair{wide, size}, std::pair{tiles - wide, size - 1}}) {
        if (count == 0) continue;
        g.tiles = count;
        g.a = a.p + ptrdiff_t{done} * BLOCK;
        g.c = c.p;
        g.add = add != nullptr ? plus.p : nullptr;
        const char* soon = ahead.take(ptrdiff_t{k_} * count);
        g.prefetch = soon != nullptr ? soon : reinterpret_cast<const char*>(g.b);
        g.prefetch_later = ahead.far->take(ptrdiff_t{k_} * count);
        fns_[static_cast<size_t>(mr)](g);
        c.skip(count * mr);
        plus.skip(count * mr);
        done += count * mr;
      }
    }
  }

  // c = act(a + b)
  void add_places(const Place& c, const Place& a, const Place& b, const Act& act, int m, int panels) const {
    for_runs(std::array{c, a, b}, m, panels, [&](const auto& p, ptrdiff_t floats) {
      table_.add({p[1].p, p[2].p, false, p[0].p, floats, act});
    });
  }

  // c = act(w + y), and x = w + x2
  void last_sums(const Place& c, const Place& w, const Place& y, const Act& act, const Place& x, const Place& x2, int m,
                 int panels) const {
    for_runs(std::array{c, w, y, x, x2}, m, panels, [&](const auto& p, ptrdiff_t floats) {
      table_.strassen_last({p[1].p, p[2].p, p[4].p, p[0].p, p[3].p, floats, act});
    });
  }

  // Calls f(places, floats) for all pixels of some panels, as many at a time as lie without a gap in all the places.
  template <size_t N, class F>
  void for_runs(const std::array<Place, N>& places, int m, int panels, F f) const {
    const ptrdiff_t floats = ptrdiff_t{m} * BLOCK;
    const bool dense = std::all_of(places.begin(), places.end(), [&](const Place& p) {
      return p.w == NO_GAP && p.block_stride == floats && p.panel_stride == nb_ * floats;
    });
    if (dense) return f(places, panels * nb_ * floats);
    for (int block = 0; block < panels * nb_; ++block) {
      std::array<Place, N> at = places;
      for (Place& p : at) p.p += block / nb_ * p.panel_stride + block % nb_ * p.block_stride;
      for (int done = 0; done < m;) {
        int pixels = m - done;
        for (const Place& p : at) pixels = std::min(pixels, p.run());
        f(at, ptrdiff_t{pixels} * BLOCK);
        for (Place& p : at) p.skip(pixels);
        done += pixels;
      }
    }
  }

  // The panels without a partner: as many of their tiles, counted panel by panel, as belong to the group.
  void run_alone(const Job& job, int y0, int y1) const {
    const int rows = dense_ ? 1 : y1 - y0, width = dense_ ? (y1 - y0) * dst_.w : dst_.w;
    const ptrdiff_t per_row = kernel_.tiles(width), first = ptrdiff_t{weights_->groups} << levels_;
    const ptrdiff_t all = (static_cast<ptrdiff_t>(kernel_.panels().size()) - first) * rows * per_row;
    Range part = split(all, weights_->groups, static_cast<int>(job.group));
    while (part.begin < part.end) {
      const ptrdiff_t row = part.begin / per_row, p = first + row / rows;
      const Panel& panel = kernel_.panels()[static_cast<size_t>(p)];
      const int y = y0 + static_cast<int>(row % rows);
      const Range tiles{part.begin % per_row, std::min(part.end - row * per_row, per_row)};
      if (tiles.begin == 0) clear_padding(job.frame.arena, dst_, {panel.block, panel.block + panel.nb}, {y, y + 1});
      WeightsAhead ahead = kernel_.ahead({p, p + 1}, next_weights, job.frame.far);
      float* const arena = job.frame.arena;
      kernel_.run(
          {arena + src_.at(0, y, 0), arena + dst_.at(0, y, 0), dst_.block_stride(),
           has_add_ ? arena + add_.at(0, y, 0) : nullptr, add_.block_stride(), width, static_cast<int>(per_row)},
          tiles, {0, 1}, {p, p + 1}, ahead);
      part.begin += tiles.end - tiles.begin;
    }
  }

  const KernelTable& table_;
  const ConvKernel kernel_;
  const std::shared_ptr<const StrassenWeights> weights_;
  const Act act_;
  const Tensor src_, dst_, add_;
  const bool has_add_;
  const bool dense_;  // no tensor has padding between its rows
  const int levels_;
  const int rows_;  // of a chunk
  const int nb_;    // blocks of a panel
  const Region zeros_;
  int mr_ = 0, k_ = 0;       // pixels of a tile; input channels of a factor
  std::vector<GemmFn> fns_;  // [mr]
  std::vector<Segment> segments_[MAX_STRASSEN_LEVELS + 1];
  ptrdiff_t strides_[MAX_STRASSEN_LEVELS + 1] = {};  // floats from block to block: of the source, of the sums
  ptrdiff_t sums_[MAX_STRASSEN_LEVELS + 1] = {}, sums_at_[MAX_STRASSEN_LEVELS + 1] = {};  // floats of one sum
  ptrdiff_t sum_floats_ = 0, temporary_floats_ = 0;
};

}  // namespace

OpPtr make_strassen(const KernelTable& table, const std::string& name, const Tensor& src, const Tensor& dst,
                    const Tensor* add, const StrassenSpec& spec) {
  const PackedWeights& w = *spec.weights->weights;
  check(is_dense(src) && !src.image && !dst.image && src.h == dst.h && src.w == dst.w, name,
        "the source must be a map without padding");
  check(add == nullptr || (add->c == dst.c && add->h == dst.h && add->w == dst.w && !add->image), name,
        "the tensor to add has another shape");
  check(spec.rows > 0, name, "a chunk must have rows");
  check_act(name, spec.act);
  ConvKernel kernel(table, name, src, dst.c, ConvSpec{spec.weights->weights, Window(), spec.act, nullptr, nullptr});
  check(max_mr(table, w.panel_blocks, BLOCK) > 0, name, "the kernel table has no kernel for a tile");
  const std::string id = kernel.id() + "/strassen" + std::to_string(spec.weights->levels);
  return std::make_unique<StrassenOp>(table, name, id, std::move(kernel), src, dst, add, spec);
}

}  // namespace fmn
