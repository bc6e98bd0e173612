// Winograd convolutions: tiles of 4x4 outputs, a chunk of them at a time.
//
//   source --transform--> V [36][block][tile][16] --36 products of matrices--> M [36][block][tile][16] --transform-->
//                            (or 81 instead of 36: stride 2)
//
// for all input channels of a chunk, and then panel by panel of the output channels: M of one panel stays in the
// caches between the products and the transform. The distance of two elements of V and of M is an odd number of cache
// lines, or a transform would find all of its 36 lines in one set of the first-level cache.
//
// The bias is added by the products of element (1, 1), whose column of A^T is all ones: it then reaches every output.
//
// Threads: ranges of tiles, for which each reads all weights. If all tiles are one chunk, and the weights much more
// than what the other thread has transformed, the input transforms are shared and panels are dealt out, or ranges of
// tiles of them where they are not as many for each thread.
#include "runtime/winograd.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/dispatch.h"

namespace fmn {

namespace {

constexpr int OUT = 4, MAX_EDGE = 9;

class WinogradOp final : public Op {
 public:
  WinogradOp(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const Tensor* add,
             const ConvSpec& spec, std::shared_ptr<const WinogradWeights> weights, int chunk)
      : Op(std::move(name), id(table, *weights->plain)),
        input_(table.winograd_input[weights->stride - 1]),
        output_(table.winograd_output[weights->stride - 1]),
        src_(src),
        dst_(dst),
        window_(spec.window),
        act_(spec.act),
        weights_(std::move(weights)),
        edge_(weights_->edge()),
        elements_(weights_->elements()),
        step_(OUT * weights_->stride),
        columns_((dst.w + OUT - 1) / OUT),
        n_tiles_(ptrdiff_t{columns_} * ((dst.h + OUT - 1) / OUT)) {
    if (add != nullptr) add_ = *add;
    has_add_ = add != nullptr;
    const ptrdiff_t chunks = (n_tiles_ + chunk - 1) / chunk;
    chunk_ = (n_tiles_ + chunks - 1) / chunks;
    const PackedWeights& w = *weights_->plain;
    const int nb = widest(w);
    v_stride_ = (src.blocks() * chunk_ | 1) * BLOCK;
    m_stride_ = (nb * chunk_ | 1) * BLOCK;
    for (int b = 0; b < src.blocks(); ++b) {
      segments_.push_back({b * chunk_ * BLOCK, std::min(src.c - b * BLOCK, BLOCK)});
    }
    mr_ = max_mr(table, nb, BLOCK);
    for (const Panel& p : w.panels) {
      for (int m = 1; m <= mr_; ++m) {
        fns_.push_back(find_gemm(table, m, p.nb, p.half, BLOCK, prefers_halves(p.nb))->run);
        check(fns_.back() != nullptr, this->name, "the kernel table has no kernel for a tile");
      }
    }
    zeros_.assign(static_cast<size_t>(std::max(columns_ * step_ + edge_, nb)) * BLOCK, 0.0f);
  }

  ptrdiff_t scratch_floats() const override { return v_floats() + m_floats() + PATCH + 2 * edge_floats(); }
  ptrdiff_t shared_floats() const override { return shares_panels() ? v_floats() : 0; }
  WeightStream first_weights() const override {
    const Panel& first = panels().front();
    return {weights_->panel(first), ptrdiff_t{elements_} * src_.c * first.width()};
  }
  bool fetches_ahead() const override { return true; }

  void run(const Frame& frame, Team& team) const override {
    const int count = team.count();
    const auto n_panels = static_cast<ptrdiff_t>(panels().size());
    if (count > 1 && n_panels >= count && shares_panels()) {
      const ptrdiff_t bytes = n_tiles_ * elements_ * BLOCK * ptrdiff_t{sizeof(float)};
      team.share(src_.blocks(), grain_of_bytes(bytes), [&](Range mine) {
        for (ptrdiff_t b = mine.begin; b < mine.end; ++b) read(frame, frame.shared, b, {0, n_tiles_});
      });
      const ptrdiff_t pieces = n_panels % count == 0 ? 1 : std::min<ptrdiff_t>(count, (n_tiles_ + mr_ - 1) / mr_);
      team.share(n_panels * pieces, 1, [&](Range mine) {
        for (ptrdiff_t i = mine.begin; i < mine.end; ++i) {
          const Range tiles = split(n_tiles_, static_cast<int>(pieces), static_cast<int>(i % pieces));
          const ptrdiff_t p = i / pieces;
          multiply_and_write(frame, frame.shared + tiles.begin * BLOCK, tiles, {p, p + 1}, true);
        }
      });
      return;
    }
    const ptrdiff_t own_end = split(n_tiles_, count, team.index()).end;
    team.share(n_tiles_, std::min(chunk_, (n_tiles_ + count - 1) / count), [&](Range mine) {
      const ptrdiff_t chunks = (mine.end - mine.begin + chunk_ - 1) / chunk_;
      for (ptrdiff_t i = 0; i < chunks; ++i) {
        const Range part = split(mine.end - mine.begin, static_cast<int>(chunks), static_cast<int>(i));
        const Range tiles{mine.begin + part.begin, mine.begin + part.end};
        for (ptrdiff_t b = 0; b < src_.blocks(); ++b) read(frame, frame.scratch, b, tiles);
        multiply_and_write(frame, frame.scratch, tiles, {0, n_panels}, tiles.end == own_end);
      }
    });
  }

 private:
  static constexpr ptrdiff_t PATCH = MAX_EDGE * MAX_EDGE * BLOCK;  // also of 4 x 4 outputs and what is added to them

  static int widest(const PackedWeights& w) { return std::min(w.panel_blocks, w.blocks()); }
  static std::string id(const KernelTable& table, const PackedWeights& w) {
    const int nb = widest(w);
    return std::string("winograd_f32/") + table.isa + "/" + std::to_string(max_mr(table, nb, BLOCK)) + "x" +
           std::to_string(nb * BLOCK);
  }

  const std::vector<Panel>& panels() const { return weights_->plain->panels; }
  ptrdiff_t v_floats() const { return v_stride_ * elements_; }
  bool shares_panels() const { return n_tiles_ == chunk_ && weights_->floats() > 4 * v_floats(); }
  ptrdiff_t m_floats() const { return m_stride_ * elements_; }
  ptrdiff_t edge_floats() const { return ptrdiff_t{columns_} * OUT * BLOCK; }

  // Calls f(first tile, row of tiles, first column, how many) for the tiles of each row.
  template <class F>
  void for_tile_rows(Range tiles, F f) const {
    for (ptrdiff_t t = tiles.begin; t < tiles.end;) {
      const ptrdiff_t row = t / columns_, column = t % columns_;
      const ptrdiff_t n = std::min(columns_ - column, tiles.end - t);
      f(t, static_cast<int>(row), static_cast<int>(column), static_cast<int>(n));
      t += n;
    }
  }

  // B^T d B of one block of the source.
  void read(const Frame& frame, float* v, ptrdiff_t block, Range tiles) const {
    const int b = static_cast<int>(block), stored = src_.w + src_.pad_right;
    float* const patch = frame.scratch + v_floats() + m_floats();
    for_tile_rows(tiles, [&](ptrdiff_t tile, int row, int column, int n) {
      const float* rows[MAX_EDGE];
      const auto set_rows = [&](int x) {
        for (int r = 0; r < edge_; ++r) {
          const int y = row * step_ - window_.pad_top + r;
          rows[r] = y < 0 || y >= src_.h ? zeros_.data() : frame.arena + src_.at(b, y, x);
        }
      };
      const int x = column * step_ - window_.pad_left, last = x + (n - 1) * step_;
      const bool over = last + edge_ > stored;  // the last tile needs pixels that are not there
      float* const dst = v + (block * chunk_ + tile - tiles.begin) * BLOCK;
      set_rows(x);
      input_({rows, over ? n - 1 : n, dst, v_stride_});
      if (!over) return;
      set_rows(last);
      const ptrdiff_t there = std::clamp(stored - last, 0, edge_) * ptrdiff_t{BLOCK};
      for (int r = 0; r < edge_; ++r) {
        float* const to = patch + r * edge_ * BLOCK;
        std::fill(std::copy(rows[r], rows[r] + there, to), to + edge_ * BLOCK, 0.0f);
        rows[r] = to;
      }
      input_({rows, 1, dst + (n - 1) * BLOCK, v_stride_});
    });
  }

  void multiply_and_write(const Frame& frame, const float* v, Range tiles, Range part, bool last) const {
    float* const m = frame.scratch + v_floats();
    const PackedWeights& w = *weights_->plain;
    const auto n = tiles.end - tiles.begin;
    const ptrdiff_t calls = (n + mr_ - 1) / mr_, size = (n + calls - 1) / calls, wide = n - calls * (size - 1);
    for (ptrdiff_t p = part.begin; p < part.end; ++p) {
      const Panel& panel = panels()[static_cast<size_t>(p)];
      const ptrdiff_t k = src_.c, element = k * panel.width();
      WeightStream later;
      if (last) later = next_weights.part({p, p + 1}, static_cast<ptrdiff_t>(panels().size()));
      GemmArgs g;
      g.xs = BLOCK;
      g.segs = segments_.data();
      g.n_segs = static_cast<ptrdiff_t>(segments_.size());
      g.c_stride = chunk_ * BLOCK;
      g.add = nullptr;
      g.add_stride = 0;
      g.prefetch_later = nullptr;
      g.act = {ActKind::clamp, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity(), 0, 0};
      for (int e = 0; e < elements_; ++e) {
        g.b = weights_->panel(panel) + e * element;
        g.bias = e == edge_ + 1 ? w.bias + panel.block * BLOCK : zeros_.data();
        const bool more = e + 1 < elements_ || p + 1 < part.end;
        WeightsAhead ahead{more ? WeightStream(g.b + element, element) : WeightStream(), later, nullptr};
        const auto some = [&](ptrdiff_t begin, ptrdiff_t count, ptrdiff_t mr) {
          if (count <= 0) return;
          g.tiles = count;
          g.a = v + e * v_stride_ + begin * BLOCK;
          g.c = m + e * m_stride_ + begin * BLOCK;
          const char* soon = ahead.take(k * count);
          g.prefetch = soon != nullptr ? soon : reinterpret_cast<const char*>(g.b);
          fns_[static_cast<size_t>(p * mr_ + mr - 1)](g);
        };
        some(0, wide, size);
        some(wide * size, calls - wide, size - 1);
        later = ahead.later;
      }
      for (int b = 0; b < panel.nb; ++b) write(frame, m + b * chunk_ * BLOCK, panel.block + b, tiles);
    }
  }

  // act(A^T m A + add) into one block of the destination.
  void write(const Frame& frame, const float* m, int block, Range tiles) const {
    float* const patch = frame.scratch + v_floats() + m_floats();
    float* const outside = patch + PATCH;  // for rows below the map, and what is added to them
    for_tile_rows(tiles, [&](ptrdiff_t tile, int row, int column, int n) {
      const int y0 = row * OUT, y1 = std::min(y0 + OUT, dst_.h), x = column * OUT, last = x + (n - 1) * OUT;
      if (column == 0) clear_padding(frame.arena, dst_, {block, block + 1}, {y0, y1});
      const auto at = [&](const Tensor& t, int r, int px) { return frame.arena + t.at(block, y0 + r, px); };
      const bool over = last + OUT > dst_.w;
      float* rows[OUT];
      const float* add[OUT];
      for (int r = 0; r < OUT; ++r) {
        rows[r] = y0 + r < y1 ? at(dst_, r, x) : outside;
        add[r] = has_add_ && y0 + r < y1 ? at(add_, r, x) : outside + edge_floats();
      }
      const float* const src = m + (tile - tiles.begin) * BLOCK;
      output_({src, m_stride_, over ? n - 1 : n, rows, has_add_ ? add : nullptr, act_});
      if (!over) return;
      const ptrdiff_t inside = (dst_.w - last) * ptrdiff_t{BLOCK};
      for (int r = 0; r < OUT; ++r) {
        rows[r] = patch + r * OUT * BLOCK;
        float* const to = patch + (OUT + r) * OUT * BLOCK;
        if (has_add_ && y0 + r < y1) std::copy(at(add_, r, last), at(add_, r, last) + inside, to);
        add[r] = to;
      }
      output_({src + (n - 1) * BLOCK, m_stride_, 1, rows, has_add_ ? add : nullptr, act_});
      for (int r = 0; y0 + r < y1; ++r) std::copy(rows[r], rows[r] + inside, at(dst_, r, last));
    });
  }

  void (*const input_)(const WinogradInputArgs&);
  void (*const output_)(const WinogradOutputArgs&);
  const Tensor src_, dst_;
  Tensor add_;
  bool has_add_ = false;
  const Window window_;
  const Act act_;
  const std::shared_ptr<const WinogradWeights> weights_;
  const int edge_, elements_, step_;  // step: pixels from one tile to the next
  const int columns_;                 // tiles of a row
  const ptrdiff_t n_tiles_;
  ptrdiff_t chunk_ = 0, v_stride_ = 0, m_stride_ = 0;
  std::vector<Segment> segments_;
  int mr_ = 0;
  std::vector<GemmFn> fns_;   // [panel][mr - 1]
  std::vector<float> zeros_;  // a row above or below the map; a bias
};

}  // namespace

std::shared_ptr<const WinogradWeights> winograd_weights(const std::shared_ptr<const PackedWeights>& plain, int stride) {
  const PackedWeights& w = *plain;
  check(w.kh == 3 && w.kw == 3 && w.groups == 1 && !w.depthwise, "winograd", "needs a dense 3x3 convolution");
  check(stride == 1 || stride == 2, "winograd", "needs stride 1 or 2");
  auto result = std::make_shared<WinogradWeights>();
  result->plain = plain;
  result->stride = stride;
  float* const to = w.store->allocate(static_cast<size_t>(result->floats()));
  result->weight = to;
  static const double G1[6][3] = {{1.0 / 4, 0, 0},
                                  {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                  {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                  {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                  {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                  {0, 0, 1}};
  static const double G2[9][3] = {{1.0 / 2, 0, 0},
                                  {-1.0 / 2, 0, -1.0 / 2},
                                  {-1.0 / 6, 0, 1.0 / 6},
                                  {1.0 / 6, 0, 1.0 / 3},
                                  {0, 0, 1},
                                  {0, 1, 0},
                                  {0, 1, 0},
                                  {0, 1, 0},
                                  {0, 1, 0}};
  const double(*const g)[3] = stride == 1 ? G1 : G2;
  const int edge = result->edge();
  const std::shared_ptr<const float> floats = w.floats.get();
  for (const Panel& p : w.panels) {
    const ptrdiff_t taps = ptrdiff_t{w.ic} * p.width();  // floats from one tap to the next, and from element to element
    const float* const from = floats.get() + p.offset;
    float* const out = to + (result->panel(p) - result->weight);
    for (ptrdiff_t i = 0; i < taps; ++i) {
      for (int y = 0; y < edge; ++y) {
        double row[3] = {};
        for (int r = 0; r < 3; ++r) {
          for (int x = 0; x < 3; ++x) row[x] += g[y][r] * static_cast<double>(from[(r * 3 + x) * taps + i]);
        }
        for (int x = 0; x < edge; ++x) {
          const double sum = row[0] * g[x][0] + row[1] * g[x][1] + row[2] * g[x][2];
          out[(y * edge + x) * taps + i] = static_cast<float>(sum);
        }
      }
    }
  }
  return result;
}

OpPtr make_winograd(const KernelTable& table, std::string name, const Tensor& src, const Tensor& dst, const Tensor* add,
                    const ConvSpec& spec, const std::shared_ptr<const WinogradWeights>& weights, int chunk) {
  const PackedWeights& w = *weights->plain;
  const Window& window = spec.window;
  check(w.panel_blocks == table.panel_blocks, name, "the weights are packed for another ISA");
  check(w.ic == src.c && w.oc == dst.c && !src.image && !dst.image, name, "weights do not fit the tensors");
  check(window.stride_h == weights->stride && window.stride_w == weights->stride, name,
        "the weights are transformed for another stride");
  check(window.dilation_h * window.dilation_w == 1, name, "needs dilation 1");
  check(chunk > 0, name, "a chunk has at least one tile");
  check(add == nullptr || (add->c == dst.c && add->h == dst.h && add->w == dst.w && !add->image), name,
        "the tensor to add has another shape");
  check_padding(name, src, dst.w, spec);
  check_act(name, spec.act);
  return std::make_unique<WinogradOp>(table, std::move(name), src, dst, add, spec, weights, chunk);
}

}  // namespace fmn
