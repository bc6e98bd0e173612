// One dense convolution as the ops use it: its weights cut into panels, its window cut into segments, and the GEMM
// kernels for its tiles. Where A and C lie is the caller's business: a tensor, a ring of rows, a strip.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/amx.h"
#include "runtime/inner.h"
#include "runtime/ops.h"

namespace fmn {

constexpr ptrdiff_t L2_FLOATS = (ptrdiff_t{1} << 20) / ptrdiff_t{sizeof(float)};  // of small cores today

// Depthwise convolutions of so many rows are shared by rows, others by blocks of channels.
constexpr int LEAST_ROWS_TO_SHARE = 28;

class ConvKernel {
 public:
  // The part of the window that lies inside of the map, for one output row.
  struct Rows {
    int begin, end;  // rows of the window
  };
  // Pixels that follow each other, without the panel. They are cut into tiles of nearly equal size: some of n pixels,
  // then some of n - 1.
  struct Pixels {
    const float* a;
    float* c;
    ptrdiff_t c_stride;
    const float* add;  // or null
    ptrdiff_t add_stride;
    int count;
    int tiles;                        // at least tiles(count)
    const float* prepared = nullptr;  // where prepare() put the first of them
    ptrdiff_t room = 0;               // and for how many there is room
    float* memory = nullptr;          // of all that is prepared, prepared_floats(room)
    // So many such rows, whose A and what is prepared follow each other without a gap and whose C is so many floats
    // apart: then all tiles, cut by row_tiles, without add.
    int rows = 1;
    ptrdiff_t a_pitch = 0;  // on AMX: of A, if its rows have gaps; they are then cut each for itself
    ptrdiff_t c_pitch = 0;
    // On AMX: the pixels are rows of so many, of which the first row_width go to rows of C that are c_pitch
    // apart and get what is added from rows that are add_pitch apart; they are cut as one all the same.
    int row_pixels = 0, row_width = 0;
    ptrdiff_t add_pitch = 0;
  };

  // src gives the layout of A: pixel, row and block strides; its offset is not used.
  ConvKernel(const KernelTable& table, const std::string& name, const Tensor& src, int out_channels,
             const ConvSpec& spec);

  const std::vector<Panel>& panels() const {
    return spec_.inner ? spec_.inner->panels : spec_.amx ? spec_.amx->panels : spec_.weights->panels;
  }
  int mr() const { return mr_; }
  const PackedWeights& weights() const { return *spec_.weights; }
  const std::string& id() const { return id_; }  // e.g. gemm_f32/avx512/14x32

  // Row of the source that the first window row of output row y reads; may be negative.
  int top(int y) const { return y * spec_.window.stride_h - spec_.window.pad_top; }
  // And the first one behind the last.
  int bottom(int y) const { return top(y) + (spec_.weights->kh - 1) * spec_.window.dilation_h + 1; }
  Rows rows(int y) const;

  int tiles(int pixels) const { return (pixels + mr_ - 1) / mr_; }
  // Into how many tiles rows are cut that are run together: if possible of one size, of which one call does all rows.
  int row_tiles(int width) const;

  // What is made of pixels that follow each other, before any panel of them: with inner products what is subtracted,
  // with AMX their parts. It costs as much as one or two output channels.
  bool prepares() const { return spec_.inner != nullptr || spec_.amx != nullptr; }
  // `to` is where the first of them goes in memory for `room` pixels: at(memory, its number). scale: null or a factor
  // for every channel of the source; with inner products, which read the source itself, their products go to `scaled`,
  // which may be `a`.
  void prepare(const float* a, ptrdiff_t pixels, float* to, ptrdiff_t room, const float* scale = nullptr,
               float* scaled = nullptr) const;
  ptrdiff_t prepared_floats(ptrdiff_t room) const {
    if (spec_.amx) return plane_floats(room) + AMX_SUMS;
    return spec_.inner ? room : 0;
  }
  float* at(float* prepared, ptrdiff_t pixel) const { return prepared + pixel * (spec_.amx ? BLOCK : 1); }
  // Whether AMX computes it. Weights should then be walked over once for every few tiles, so that what is prepared
  // stays in the cache; and rows of A and of C may have gaps (Pixels::a_pitch, row_pixels).
  bool on_amx() const { return spec_.amx != nullptr; }

  // Of panels begin .. end - 1, which of them to run by one call from `begin` on.
  Range together(ptrdiff_t begin, ptrdiff_t end) const { return {begin, spec_.amx ? end : begin + 1}; }
  Range blocks(Range some) const {
    const Panel& last = panels()[static_cast<size_t>(some.end - 1)];
    return {panels()[static_cast<size_t>(some.begin)].block, last.block + last.nb};
  }

  // Tiles [part.begin, part.end) of the pixels, of panels that belong together. `ahead`: what to fetch meanwhile.
  void run(const Pixels& pixels, Range part, const Rows& rows, Range some, WeightsAhead& ahead) const;

  // Whether tiles along rows of so many pixels are so much narrower than the widest that it pays to cut several rows
  // as one, write that into a buffer and copy it from there: rows of 7 in tiles of 6 run at 0.71 of the peak, and 49
  // pixels at 0.9 (AVX2). The source must have its rows without a gap.
  bool rows_waste(int width) const {
    const PackedWeights& w = *spec_.weights;
    const bool in_place = w.kh * w.kw * spec_.window.stride_h * spec_.window.stride_w == 1 && w.groups == 1;
    return in_place && !prepares() && 8 * tiles(width) * mr_ > 9 * width;
  }
  // What run_through needs for so many pixels.
  ptrdiff_t through_floats(ptrdiff_t pixels) const { return pixels * BLOCK * table_panel_blocks_; }

  // Tiles of `count` pixels that are rows of `width`, by way of `buffer`; row(block, y) is where row y of a block of C
  // begins.
  template <class F>
  void run_through(float* buffer, const float* a, int count, int n_tiles, Range part, ptrdiff_t p, int width,
                   WeightsAhead& ahead, F&& row) const {
    const Panel& panel = panels()[static_cast<size_t>(p)];
    const ptrdiff_t stride = ptrdiff_t{count} * BLOCK;
    run({a, buffer - panel.block * stride, stride, nullptr, 0, count, n_tiles}, part, rows(0), {p, p + 1}, ahead);
    const int begin = first_pixel(count, n_tiles, part.begin), end = first_pixel(count, n_tiles, part.end);
    for (int b = 0; b < panel.nb; ++b) {
      for (int x = begin, next; x < end; x = next) {
        next = std::min(end, (x / width + 1) * width);
        const float* from = buffer + b * stride + ptrdiff_t{x} * BLOCK;
        std::copy(from, from + ptrdiff_t{next - x} * BLOCK, row(panel.block + b, x / width) + x % width * BLOCK);
      }
    }
  }

  // Of tile t of n that cut `count` pixels.
  static int first_pixel(int count, int n, ptrdiff_t t) {
    const int size = (count + n - 1) / n, wide = n - (n * size - count), i = static_cast<int>(t);
    return i <= wide ? i * size : wide * size + (i - wide) * (size - 1);
  }

  // The weights of panel p, empty if there is no such panel.
  WeightStream stream(ptrdiff_t p) const {
    if (p >= static_cast<ptrdiff_t>(panels().size())) return {};
    const Panel& panel = panels()[static_cast<size_t>(p)];
    return {weights_of(panel), spec_.amx ? spec_.amx->panel_floats(panel) : spec_.weights->k(panel) * panel.width()};
  }

  // What to fetch during some panels if `next` is read after this layer.
  WeightsAhead ahead(Range some, const WeightStream& next, FarWeights* far) const {
    return ahead(some, {0, 1}, 1, next, far);
  }

  // The same for some of the tiles of the panels.
  WeightsAhead ahead(Range some, Range tiles, ptrdiff_t n_tiles, const WeightStream& next, FarWeights* far) const {
    return {stream(some.end).part(tiles, n_tiles),
            next.part({some.begin * n_tiles + tiles.begin, (some.end - 1) * n_tiles + tiles.end},
                      static_cast<ptrdiff_t>(panels().size()) * n_tiles),
            far};
  }

  // Cache lines of other weights that so many tiles of each panel can fetch.
  ptrdiff_t far_lines(ptrdiff_t n_tiles) const {
    ptrdiff_t lines = 0;
    for (const Panel& p : panels())
      lines += (spec_.amx ? groups(static_cast<ptrdiff_t>(taps_.size())) : spec_.weights->k(p)) * n_tiles;
    return lines;
  }

  // Does all tiles of all panels with the other threads: run(some, tiles, ahead) for some tiles of some panels.
  // panels_outside: walk over all tiles for each panel, else over all panels for every few tiles. Before a thread runs
  // tiles whose pixels are prepared, it calls prepare_tiles(tiles): of all, or of MOST_TILES at a time.
  static constexpr int MOST_TILES = 8;  // a row of 112 pixels; its part of A stays in the first-level cache
  template <class S, class F>
  void share(Team& team, ptrdiff_t n_tiles, bool panels_outside, const WeightStream& next, FarWeights* far,
             S&& prepare_tiles, F&& run) const;

 private:
  void run_inner(const Pixels& pixels, Range part, const Panel& panel, WeightsAhead& ahead) const;
  void run_amx(const Pixels& pixels, Range part, const Rows& rows, Range some, WeightsAhead& ahead) const;
  ptrdiff_t plane_floats(ptrdiff_t room) const { return amx_planes(spec_.amx->n_pieces()) * room * BLOCK; }
  ptrdiff_t groups(ptrdiff_t n_taps) const { return n_taps * amx_groups(spec_.amx->n_pieces()); }
  template <class Args, class Run>
  void run_tiles(Args& g, const Pixels& pixels, Range part, const Panel& panel, WeightsAhead& ahead, Run&& run) const;
  const float* weights_of(const Panel& panel) const {
    const float* all = spec_.inner ? spec_.inner->weight : spec_.amx ? spec_.amx->weight : floats_.get();
    return all + panel.offset;
  }

  // The tiles `part` of n that cut `count` pixels: some(tiles, first pixel, pixels of a tile) for those of each width.
  template <class F>
  static void by_width(int count, int n, Range part, F&& some) {
    const int size = (count + n - 1) / n, wide = n - (n * size - count);  // tiles of `size` pixels
    const ptrdiff_t middle = std::clamp<ptrdiff_t>(wide, part.begin, part.end);
    if (part.begin < middle) some(middle - part.begin, part.begin * size, size);
    if (middle < part.end) some(part.end - middle, first_pixel(count, n, middle), size - 1);
  }

  const ConvSpec spec_;
  const std::shared_ptr<const float> floats_;  // if they are read
  const int src_h_;
  // (ky, kx, channel block), as the weights lie. Panels that read the same channels share a list.
  struct Segments {
    std::vector<Segment> list;
    int per_row = 0;  // of one ky
  };
  Segments cut(const Tensor& src, const Panel& panel) const;
  std::vector<Segments> segments_;
  std::vector<size_t> segments_of_;  // of a panel
  std::vector<GemmFn> fns_;          // [nb][half][mr]
  std::vector<bool> rows_at_once_;   // [mr], whether the kernels of all panels do rows with gaps between
  size_t fn_index(const Panel& p, int mr) const {
    return static_cast<size_t>((p.nb * 2 + (p.half ? 1 : 0)) * (mr_ + 1) + mr);
  }
  int table_panel_blocks_ = 1;
  ptrdiff_t xs_ = 0;
  const InnerKernels& inner_;
  const AmxKernels* const amx_ = nullptr;
  std::vector<ptrdiff_t> taps_;  // of AMX
  int mr_ = 0;
  std::string id_;
};

template <class S, class F>
void ConvKernel::share(Team& team, ptrdiff_t n_tiles, bool panels_outside, const WeightStream& next, FarWeights* far,
                       S&& prepare_tiles, F&& run) const {
  const auto n_panels = static_cast<ptrdiff_t>(panels().size());
  const ptrdiff_t macs = mr_ * spec_.weights->k(panels().front()) * panels().front().width();  // of a tile
  // A call takes a while before the tile unit is at work: two parts a thread.
  const auto large = [&](ptrdiff_t n) { return n / (2 * team.count()); };
  if (panels_outside && on_amx()) {
    const ptrdiff_t least = grain_of_macs(macs * n_tiles);
    bool ready = false;
    team.share(n_panels, std::max(large(n_panels), least), [&](Range part) {
      if (part.begin == part.end) return;
      if (!ready) prepare_tiles(Range{0, n_tiles});
      ready = true;
      WeightsAhead soon = ahead(part, next, far);
      run(part, Range{0, n_tiles}, soon);
    });
    return;
  }
  if (panels_outside) {
    // Threads share the panels, down to the tiles of one.
    bool ready = !prepares();
    team.share(n_panels * n_tiles, grain_of_macs(macs), [&](Range part) {
      if (!ready) prepare_tiles(Range{0, n_tiles});
      ready = true;
      for (ptrdiff_t at = part.begin; at < part.end;) {
        const ptrdiff_t p = at / n_tiles;
        const Range tiles{at - p * n_tiles, std::min(part.end - p * n_tiles, n_tiles)}, one{p, p + 1};
        WeightsAhead soon = ahead(one, tiles, n_tiles, next, far);
        run(one, tiles, soon);
        at = p * n_tiles + tiles.end;
      }
    });
    return;
  }
  ptrdiff_t grain = std::min(ptrdiff_t{MOST_TILES}, grain_of_macs(macs * n_panels));
  if (on_amx()) grain = std::clamp(large(n_tiles), grain, ptrdiff_t{MOST_TILES});
  team.share(n_tiles, grain, [&](Range part) {
    for (ptrdiff_t begin = part.begin; begin < part.end; begin += MOST_TILES) {
      const Range tiles{begin, std::min(begin + MOST_TILES, part.end)};
      if (prepares()) prepare_tiles(tiles);
      for (Range some = together(0, n_panels); some.begin < n_panels; some = together(some.end, n_panels)) {
        WeightsAhead soon = ahead(some, next, far);
        run(some, tiles, soon);
      }
    }
  });
}

}  // namespace fmn
