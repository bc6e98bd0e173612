#include "runtime/conv_kernel.h"

#include <algorithm>
#include <type_traits>

#include "runtime/cpu.h"
#include "runtime/dispatch.h"

namespace fmn {

namespace {

constexpr int MAX_INNER_ROWS = 10;

}  // namespace

ConvKernel::ConvKernel(const KernelTable& table, const std::string& name, const Tensor& src, int out_channels,
                       const ConvSpec& spec)
    : spec_(spec),
      floats_(spec.inner || spec.amx ? nullptr : spec.weights->floats.get()),
      src_h_(src.h),
      table_panel_blocks_(table.panel_blocks),
      inner_(table.inner),
      amx_(spec.amx ? amx_kernels() : nullptr) {
  const PackedWeights& w = *spec_.weights;
  const Window& window = spec.window;
  check(w.panel_blocks == table.panel_blocks, name, "the weights are packed for another ISA");
  check(!w.depthwise && w.ic == src.c && w.oc == out_channels, name, "weights do not fit the tensors");
  check(window.stride_h > 0 && window.stride_w > 0 && window.dilation_h > 0 && window.dilation_w > 0, name,
        "strides and dilations must be positive");
  check(src.runs == nullptr || (w.kh * w.kw == 1 && w.groups == 1 && window.stride_h * window.stride_w == 1), name,
        "only a 1x1 convolution reads scattered channels");
  check(!spec.inner || !spec.amx, name, "it cannot be computed in two ways");
  if (prepares()) {
    const std::string kind = spec.inner ? "inner" : "amx";
    check((spec.inner ? spec.inner->plain.get() : spec.amx->plain) == spec.weights.get(), name,
          "the weights are of another layer");
    check(spec.inner ? table.inner.pixels != nullptr : amx_ != nullptr, name,
          spec.inner ? "the ISA has no kernels of inner products" : "the CPU has no AMX");
    const bool pointwise = w.kh * w.kw * window.stride_h * window.stride_w == 1;
    check(!src.image && w.groups == 1, name, "it is for maps in blocks");
    check(spec.amx || (pointwise && window.pad_top == 0 && window.pad_left == 0), name,
          "it is for 1x1 convolutions of stride 1");
    segments_.push_back(cut(src, w.panels.front()));
    std::vector<Segment>& list = segments_.front().list;
    if (spec.amx) {  // channels are split once, for all taps
      const auto n = static_cast<size_t>(spec.amx->n_pieces());
      for (size_t i = 0; i < list.size(); i += n)
        taps_.push_back((list[i].offset - list[0].offset) / BLOCK * AMX_PLANE);
      if (!pointwise) list.resize(std::min(list.size(), n));
    }
    const std::vector<int>& pieces = spec.inner ? spec.inner->pieces : spec.amx->pieces;
    const auto same = [](const Segment& s, int piece) { return s.len == piece; };
    check(std::equal(list.begin(), list.end(), pieces.begin(), pieces.end(), same), name,
          "the weights are for other pieces of the input");
    xs_ = ptrdiff_t{BLOCK} * window.stride_w;
    mr_ = spec.inner ? MAX_INNER_ROWS : AMX_PIXELS;
    rows_at_once_.assign(static_cast<size_t>(mr_ + 1), true);
    id_ = std::string("gemm_f32/") + table.isa + "/" + std::to_string(mr_) + "x32/" + kind;
    return;
  }

  for (const Panel& p : w.panels) {
    const Panel* before = &p == w.panels.data() ? nullptr : &p - 1;
    if (before == nullptr || p.ic_begin != before->ic_begin || p.ic_end != before->ic_end) {
      segments_.push_back(cut(src, p));
    }
    segments_of_.push_back(segments_.size() - 1);
  }

  xs_ = ptrdiff_t{src.pixel()} * window.stride_w;
  int xs = static_cast<int>(xs_);
  if (max_mr(table, 1, xs) == 0) xs = 0;  // no kernel was compiled for this stride: take it at run time
  const int nb = std::min(w.panel_blocks, w.blocks());
  mr_ = max_mr(table, nb, xs);
  rows_at_once_.assign(static_cast<size_t>(mr_ + 1), true);
  fns_.assign(static_cast<size_t>((nb + 1) * 2 * (mr_ + 1)), nullptr);
  for (const Panel& p : w.panels) {
    for (int m = 1; m <= mr_; ++m) {
      const GemmEntry* entry = find_gemm(table, m, p.nb, p.half, xs, prefers_halves(p.nb));
      check(entry != nullptr, name, "the kernel table has no kernel for a tile");
      fns_[fn_index(p, m)] = entry->run;
      if (!entry->rows) rows_at_once_[static_cast<size_t>(m)] = false;
    }
  }
  id_ = std::string("gemm_f32/") + table.isa + "/" + std::to_string(mr_) + "x" + std::to_string(nb * BLOCK);
}

ConvKernel::Segments ConvKernel::cut(const Tensor& src, const Panel& panel) const {
  const PackedWeights& w = *spec_.weights;
  const Window& window = spec_.window;
  Segments s;
  if (src.runs != nullptr) {
    s.list = *src.runs;
    s.per_row = static_cast<int>(s.list.size());
    return s;
  }
  for (int ky = 0; ky < w.kh; ++ky) {
    const ptrdiff_t row = ptrdiff_t{ky} * window.dilation_h * src.pitch();
    if (src.image && window.dilation_w == 1 && w.groups == 1) {  // the pixels of a window row follow each other
      s.list.push_back({row, ptrdiff_t{w.kw} * w.ic});
      continue;
    }
    for (int kx = 0; kx < w.kw; ++kx) {
      const ptrdiff_t at = row + ptrdiff_t{kx} * window.dilation_w * src.pixel();
      for (int ic = panel.ic_begin; ic < panel.ic_end;) {
        const int end = src.image ? panel.ic_end : std::min(panel.ic_end, (ic / BLOCK + 1) * BLOCK);
        s.list.push_back({at + (src.image ? ic : ic / BLOCK * src.block_stride() + ic % BLOCK), end - ic});
        ic = end;
      }
    }
  }
  s.per_row = static_cast<int>(s.list.size()) / w.kh;
  return s;
}

ConvKernel::Rows ConvKernel::rows(int y) const {
  const PackedWeights& w = *spec_.weights;
  const int dilation = spec_.window.dilation_h;
  int first = 0, last = w.kh;
  while (first < last && top(y) + first * dilation < 0) ++first;
  while (last > first && top(y) + (last - 1) * dilation >= src_h_) --last;
  return {first, last};
}

int ConvKernel::row_tiles(int width) const {
  const int least = tiles(width);
  for (int n = least; n <= 2 * least; ++n) {
    if (width % n == 0 && rows_at_once_[static_cast<size_t>(width / n)]) return n;
  }
  return least;
}

void ConvKernel::run(const Pixels& pixels, Range part, const Rows& rows, Range some, WeightsAhead& ahead) const {
  if (spec_.amx) {
    run_amx(pixels, part, rows, some, ahead);
    return;
  }
  const Panel& panel = panels()[static_cast<size_t>(some.begin)];
  const int size = pixels.count / pixels.tiles;
  if (pixels.rows > 1 && (pixels.count % pixels.tiles != 0 || !rows_at_once_[static_cast<size_t>(size)])) {
    Pixels row = pixels;
    row.rows = 1;
    for (int y = 0; y < pixels.rows; ++y) {
      run(row, part, rows, some, ahead);
      row.a += pixels.count * xs_;
      row.c += pixels.c_pitch;
      if (row.prepared != nullptr) row.prepared += pixels.count;
    }
    return;
  }
  if (spec_.inner) {
    run_inner(pixels, part, panel, ahead);
    return;
  }
  GemmArgs g;
  g.xs = xs_;
  const Segments& segments = segments_[segments_of_[static_cast<size_t>(&panel - panels().data())]];
  g.segs = segments.list.data() + ptrdiff_t{rows.begin} * segments.per_row;
  g.n_segs = ptrdiff_t{rows.end - rows.begin} * segments.per_row;
  const ptrdiff_t k = spec_.weights->k(panel);
  g.b = weights_of(panel) + k / spec_.weights->kh * rows.begin * panel.width();
  g.bias = spec_.weights->bias + panel.block * BLOCK;
  run_tiles(g, pixels, part, panel, ahead, [&](ptrdiff_t, int mr) { fns_[fn_index(panel, mr)](g); });
}

// What the two kinds of kernels have in common: where the tiles of each width lie, and what they fetch. run(pixel, mr).
template <class Args, class Run>
void ConvKernel::run_tiles(Args& g, const Pixels& pixels, Range part, const Panel& panel, WeightsAhead& ahead,
                           Run&& run) const {
  const ptrdiff_t k = spec_.weights->k(panel);
  g.c_stride = pixels.c_stride;
  g.add_stride = pixels.add_stride;
  g.act = spec_.act;
  if (pixels.rows > 1) {
    g.row_tiles = pixels.tiles;
    g.row_gap = pixels.c_pitch - ptrdiff_t{pixels.count} * BLOCK;
  }
  by_width(pixels.count, pixels.tiles, part, [&](ptrdiff_t tiles, ptrdiff_t x, int mr) {
    g.tiles = tiles * pixels.rows;
    g.a = pixels.a + x * xs_;
    g.c = pixels.c + panel.block * pixels.c_stride + x * BLOCK;
    g.add = pixels.add != nullptr ? pixels.add + panel.block * pixels.add_stride + x * BLOCK : nullptr;
    if constexpr (std::is_same_v<Args, InnerArgs>) {
      ptrdiff_t room = k * g.tiles;
      for (CacheLines& soon : g.soon) {
        soon = ahead.piece(room);
        room -= (soon.end - soon.at) / 64;
      }
    } else {
      const char* soon = ahead.take(k * g.tiles);
      g.prefetch = soon != nullptr ? soon : reinterpret_cast<const char*>(g.b);
    }
    g.prefetch_later = ahead.far->take(k * g.tiles);
    run(x, mr);
  });
}

void ConvKernel::prepare(const float* a, ptrdiff_t pixels, float* to, ptrdiff_t room, const float* scale,
                         float* scaled) const {
  const std::vector<Segment>& list = segments_.front().list;
  const auto n = static_cast<ptrdiff_t>(list.size());
  if (spec_.inner) {
    inner_.pixels({a, list.data(), n, pixels, to, scale, scaled});
  } else {
    amx_->split({a, BLOCK, list.data(), n, pixels, reinterpret_cast<char*>(to), room * AMX_PLANE, scale});
  }
}

// Rows are cut as one, with the gaps between them.
void ConvKernel::run_amx(const Pixels& pixels, Range part, const Rows& rows, Range some, WeightsAhead& ahead) const {
  const bool apart = pixels.a_pitch != 0;
  const int count = apart ? pixels.count : pixels.count * pixels.rows,
            first = first_pixel(pixels.count, pixels.tiles, part.begin);
  const Panel &panel = panels()[static_cast<size_t>(some.begin)], &last = panels()[static_cast<size_t>(some.end - 1)];
  AmxArgs g;
  g.rows = apart ? pixels.rows : 1;
  g.a_pitch = pixels.a_pitch / BLOCK * AMX_PLANE;
  g.pixels = pixels.rows > 1 ? count : first_pixel(pixels.count, pixels.tiles, part.end) - first;
  if (g.pixels == 0) return;
  const ptrdiff_t n_tiles = (g.pixels + AMX_PIXELS - 1) / AMX_PIXELS;
  g.mr = (g.pixels + n_tiles - 1) / n_tiles;
  g.a = reinterpret_cast<const char*>(pixels.prepared + first * xs_);
  g.xs = xs_ / BLOCK * AMX_PLANE;
  g.plane = pixels.room * AMX_PLANE;
  g.sums = pixels.memory + plane_floats(pixels.room);
  g.n_segs = spec_.amx->n_pieces();
  g.taps = taps_.data() + ptrdiff_t{rows.begin} * spec_.weights->kw;
  g.n_taps = ptrdiff_t{rows.end - rows.begin} * spec_.weights->kw;
  g.c_stride = pixels.c_stride;
  g.add_stride = pixels.add_stride;
  g.act = spec_.act;
  const bool as_rows = pixels.row_pixels > 0;
  g.row_pixels = as_rows ? pixels.row_pixels : pixels.count;
  g.row_width = as_rows ? pixels.row_width : pixels.count;
  g.c_pitch = pixels.c_pitch;
  g.add_pitch = pixels.add_pitch;
  const ptrdiff_t row = first / g.row_pixels;
  g.column = first - row * g.row_pixels;

  // All of the next panel, and what of the next layer that leaves room for.
  constexpr ptrdiff_t MOST_LINES = 16, MOST_LATER = 4;
  const auto up = [](ptrdiff_t n, ptrdiff_t by) { return (n + by - 1) / by; };
  const ptrdiff_t in_panel = std::max<ptrdiff_t>(groups(g.n_taps), 1) * n_tiles * g.rows,
                  in_all = in_panel * (some.end - some.begin);
  const ptrdiff_t panel_lines = spec_.amx->panel_floats(panel) / BLOCK;
  g.next_lines = std::min(up(panel_lines, in_panel), MOST_LINES);
  const char* soon = ahead.take(g.next_lines * in_panel);
  g.next = soon != nullptr ? soon : reinterpret_cast<const char*>(weights_of(panel));
  g.later_lines = std::min(up(ahead.later.lines(), in_all), MOST_LATER);
  g.later = ahead.later.take(g.later_lines * in_all);
  if (g.later == nullptr) {
    g.later_lines = 1;
    g.later = ahead.far->take(in_all);
  }
  if (g.later == nullptr) g.later_lines = 0;

  const auto run = [&](const Panel& from, ptrdiff_t n) {
    g.panels = n;
    const ptrdiff_t floats = spec_.amx->panel_floats(from);
    g.panel_bytes = floats * ptrdiff_t{sizeof(float)};
    g.b = reinterpret_cast<const char*>(weights_of(from) + floats / spec_.weights->kh * rows.begin);
    g.bias = spec_.weights->bias + from.block * BLOCK;
    g.c = pixels.c + from.block * pixels.c_stride + row * g.c_pitch;
    g.add = pixels.add != nullptr ? pixels.add + from.block * pixels.add_stride + row * g.add_pitch : nullptr;
    amx_->gemm[from.nb - 1](g);
  };
  const bool narrow = last.nb == 1;  // and the only one
  const ptrdiff_t wide = some.end - some.begin - (narrow ? 1 : 0);
  if (wide > 0) run(panel, wide);
  if (narrow) run(last, 1);
}

void ConvKernel::run_inner(const Pixels& pixels, Range part, const Panel& panel, WeightsAhead& ahead) const {
  const ptrdiff_t lane = ptrdiff_t{panel.block} * BLOCK;
  InnerArgs g;
  g.segs = segments_.front().list.data();
  g.n_segs = static_cast<ptrdiff_t>(segments_.front().list.size());
  g.b = weights_of(panel);
  g.init = spec_.inner->init + lane;
  g.scale = spec_.inner->scale + lane;
  run_tiles(g, pixels, part, panel, ahead, [&](ptrdiff_t x, int mr) {
    g.pixels = pixels.prepared + x;
    inner_.gemm[(mr - 1) * 3 + (panel.half ? 0 : panel.nb)].run(g);
  });
}

}  // namespace fmn
