// Quantised ops that are not convolutions. Plain loops over blocks of 16 bytes: they are a small part of the time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/u8_ops.h"

namespace fmn {

namespace {

uint8_t to_byte(float value, const Requant& r) {
  // The bounds keep the conversion defined; what they cut is clamped anyway.
  const float rounded = std::nearbyintf(std::min(std::max(value, -1e6f), 1e6f));
  return static_cast<uint8_t>(std::clamp(static_cast<int32_t>(rounded) + r.zero, r.lo, r.hi));
}

// Whether the rows of a block follow each other.
bool dense(const Tensor& t) { return t.pad_left + t.pad_right == 0 && !t.image; }

// Calls f(block, y, bytes of dst, pixels) for all rows, as many at once as `joined` allows, and fills the padding.
template <class F>
void byte_runs(const Frame& frame, const Tensor& dst, Team& team, bool joined, F f) {
  team.share(ptrdiff_t{dst.blocks()} * dst.h, grain_of_bytes(dst.pitch()), [&](Range part) {
    for (ptrdiff_t i = part.begin; i < part.end;) {
      const int block = static_cast<int>(i / dst.h), y = static_cast<int>(i % dst.h);
      const ptrdiff_t rows = joined ? std::min<ptrdiff_t>(dst.h - y, part.end - i) : 1;
      f(block, y, frame.bytes() + dst.at(block, y, 0), rows * dst.w);
      clear_padding(frame.arena, dst, {block, block + 1}, {y, y + rows});
      i += rows;
    }
  });
}

// Calls f(block, y, row of dst) for all rows, and fills the padding.
template <class F>
void byte_rows(const Frame& frame, const Tensor& dst, Team& team, F f) {
  for_rows(dst, team, [&](int block, int y) {
    f(block, y, frame.bytes() + dst.at(block, y, 0));
    clear_padding(frame.arena, dst, {block, block + 1}, {y, y + 1});
  });
}

class BinaryU8Op final : public Op {
 public:
  BinaryU8Op(std::string name, std::string kernel, void (*run)(const EltU8Args&), const Tensor& a, const Tensor& b,
             const Tensor& dst, const AddFactors& factors, float factor, const Requant& requant,
             const AddFloats& floats)
      : Op(std::move(name), std::move(kernel)),
        run_(run),
        a_(a),
        b_(b),
        dst_(dst),
        one_pixel_(b.h * b.w == 1),
        factors_(factors),
        factor_(factor),
        requant_(requant),
        floats_(floats),
        za_(floats.ra > 0 ? floats.added : a.zero),
        zb_(floats.ra > 0 ? floats.added : b.zero) {}

  void run(const Frame& frame, Team& team) const override {
    const bool joined = dense(a_) && dense(dst_) && (one_pixel_ || dense(b_));
    byte_runs(frame, dst_, team, joined, [&](int block, int y, uint8_t* dst, ptrdiff_t pixels) {
      run_({frame.bytes() + a_.at(block, y, 0), frame.bytes() + b_.at(block, one_pixel_ ? 0 : y, 0), one_pixel_, za_,
            zb_, factors_.ma, factors_.mb, factors_.shift, factor_, dst, pixels, requant_, floats_.ra, floats_.rb,
            floats_.rest});
    });
  }

 private:
  void (*const run_)(const EltU8Args&);
  const Tensor a_, b_, dst_;
  const bool one_pixel_;
  const AddFactors factors_;
  const float factor_;
  const Requant requant_;
  const AddFloats floats_;
  const int32_t za_, zb_;
};

class LookupU8Op final : public Op {
 public:
  LookupU8Op(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst, const Lookup& lookup)
      : Op(std::move(name), std::string("lookup_u8/") + table.isa),
        table_(table),
        src_(src),
        dst_(dst),
        lookup_(lookup) {}

  void run(const Frame& frame, Team& team) const override {
    const bool joined = dense(src_) && dense(dst_);
    byte_runs(frame, dst_, team, joined, [&](int block, int y, uint8_t* dst, ptrdiff_t pixels) {
      table_.lookup(frame.bytes() + src_.at(block, y, 0), dst, pixels * BLOCK, lookup_.data());
    });
  }

 private:
  const U8Table& table_;
  const Tensor src_, dst_;
  const Lookup lookup_;
};

class PoolU8Op final : public Op {
 public:
  PoolU8Op(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst, const PoolU8& pool,
           std::vector<PoolSpan> rows, std::vector<PoolSpan> columns)
      : Op(std::move(name), pool.kind == PoolKind::max ? "max_pool_u8" : "avg_pool_u8"),
        table_(table),
        src_(src),
        dst_(dst),
        pool_(pool),
        rows_(std::move(rows)),
        columns_(std::move(columns)) {}

  void run(const Frame& frame, Team& team) const override {
    // The rows that are read count, not those that are written: few, where a map becomes a pixel.
    const ptrdiff_t bytes = src_.pitch() * std::max(rows_[0].end - rows_[0].begin, 1);
    team.share(ptrdiff_t{dst_.blocks()} * dst_.h, grain_of_bytes(bytes), [&](Range part) {
      for (ptrdiff_t i = part.begin; i < part.end; ++i) {
        row(frame, static_cast<int>(i / dst_.h), static_cast<int>(i % dst_.h));
      }
    });
  }

 private:
  void row(const Frame& frame, int block, int y) const {
    uint8_t* dst = frame.bytes() + dst_.at(block, y, 0);
    const PoolSpan& r = rows_[static_cast<size_t>(y)];
    for (int x = 0; x < dst_.w; ++x, dst += BLOCK) {
      const PoolSpan& c = columns_[static_cast<size_t>(x)];
      if (pool_.kind == PoolKind::max) {
        largest(frame, block, r, c, dst);
      } else {
        mean(frame, block, r, c, dst);
      }
    }
    clear_padding(frame.arena, dst_, {block, block + 1}, {y, y + 1});
  }

  void largest(const Frame& frame, int block, const PoolSpan& r, const PoolSpan& c, uint8_t* dst) const {
    uint8_t most[BLOCK] = {};
    for (int y = r.begin; y < r.end; ++y) {
      const uint8_t* p = frame.bytes() + src_.at(block, y, c.begin);
      for (int x = c.begin; x < c.end; ++x, p += BLOCK) {
        for (int i = 0; i < BLOCK; ++i) most[i] = std::max(most[i], p[i]);
      }
    }
    std::memcpy(dst, most, BLOCK);
  }

  void mean(const Frame& frame, int block, const PoolSpan& r, const PoolSpan& c, uint8_t* dst) const {
    int32_t sum[BLOCK] = {};
    const ptrdiff_t width = c.end - c.begin;
    const bool joined = width * BLOCK == src_.pitch();  // the rows follow each other
    for (int y = r.begin; y < r.end; y += joined ? r.end : 1) {
      table_.sum(frame.bytes() + src_.at(block, y, c.begin), joined ? width * (r.end - r.begin) : width, sum);
    }
    // What the window has of the map; what of it counts is another matter where padding counts.
    const int32_t inside = (r.end - r.begin) * (c.end - c.begin);
    for (int i = 0; i < BLOCK; ++i) sum[i] -= inside * src_.zero;
    const int32_t count = static_cast<int32_t>(r.count * c.count);
    switch (pool_.rule) {
      case MeanRule::requantize: return requantize(sum, r.count * double{c.count}, dst);
      case MeanRule::average: return average(sum, count, dst);
      case MeanRule::mean: return mean_rule(sum, count, dst);
    }
  }

  void requantize(const int32_t* sum, double count, uint8_t* dst) const {
    const auto factor = static_cast<float>(pool_.src_scale / (pool_.dst_scale * count));
    const Requant requant{dst_.zero, 0, 255};
    for (int i = 0; i < BLOCK; ++i) dst[i] = to_byte(static_cast<float>(sum[i]) * factor, requant);
  }

  void average(const int32_t* sum, int32_t count, uint8_t* dst) const {
    for (int i = 0; i < BLOCK; ++i) {
      const int64_t s = sum[i] + int64_t{src_.zero - pool_.added} * count;
      const int64_t magnitude = (2 * std::abs(s) + count) / (2 * int64_t{count});
      dst[i] = static_cast<uint8_t>(std::clamp<int64_t>((s < 0 ? -magnitude : magnitude) + pool_.added, 0, 255));
    }
  }

  void mean_rule(const int32_t* sum, int32_t count, uint8_t* dst) const {
    const auto zx = static_cast<float>(src_.zero - pool_.added), zy = static_cast<float>(dst_.zero - pool_.added);
    const float n = static_cast<float>(count), inverse = 1.0f / n;
    const float f = static_cast<float>(pool_.src_scale) / static_cast<float>(pool_.dst_scale) * inverse;
    const float zeros = zx * n, taken = zeros * f, rest = zy - taken;
    for (int i = 0; i < BLOCK; ++i) {
      const float s = static_cast<float>(sum[i] + (src_.zero - pool_.added) * count), scaled = s * f;
      dst[i] = to_byte(scaled + rest, {pool_.added, 0, 255});
    }
  }

  const U8Table& table_;
  const Tensor src_, dst_;
  const PoolU8 pool_;
  const std::vector<PoolSpan> rows_, columns_;
};

class GatherU8Op final : public Op {
 public:
  GatherU8Op(std::string name, const std::vector<Tensor>& sources, const std::vector<Lookup>& lookups,
             const Tensor& dst, const std::vector<int>& index)
      : Op(std::move(name), "gather_u8"), sources_(sources), lookups_(lookups), dst_(dst) {
    for (int channel : index) {
      size_t s = 0;
      while (channel >= sources[s].c) channel -= sources[s++].c;
      from_.push_back({s, channel});
    }
  }

  void run(const Frame& frame, Team& team) const override {
    byte_rows(frame, dst_, team, [&](int block, int y, uint8_t* dst) {
      for (int i = 0; i < BLOCK; ++i) {
        const int channel = block * BLOCK + i;
        if (channel >= dst_.c) {
          for (int x = 0; x < dst_.w; ++x) dst[x * BLOCK + i] = dst_.zero;
          continue;
        }
        const From& from = from_[static_cast<size_t>(channel)];
        const Tensor& t = sources_[from.source];
        const Lookup& lookup = lookups_[from.source];
        const uint8_t* src = frame.bytes() + t.at(from.channel / BLOCK, y, 0) + from.channel % BLOCK;
        for (int x = 0; x < dst_.w; ++x) dst[x * BLOCK + i] = lookup[src[x * BLOCK]];
      }
    });
  }

 private:
  struct From {
    size_t source;
    int channel;
  };
  const std::vector<Tensor> sources_;
  const std::vector<Lookup> lookups_;
  const Tensor dst_;
  std::vector<From> from_;
};

class SoftmaxU8Op final : public Op {
 public:
  SoftmaxU8Op(std::string name, const Tensor& src, const Tensor& dst, const std::array<float, 256>& table,
              float dst_scale)
      : Op(std::move(name), "softmax_u8"), src_(src), dst_(dst), table_(table), dst_scale_(dst_scale) {}

  void run(const Frame& frame, Team& team) const override {
    team.share(src_.h, 1, [&](Range rows) {
      for (int y = static_cast<int>(rows.begin); y < rows.end; ++y) {
        for (int x = 0; x < src_.w; ++x) pixel(frame.bytes(), y, x);
      }
      clear_padding(frame.arena, dst_, {0, dst_.blocks()}, rows);
    });
  }

 private:
  void pixel(uint8_t* bytes, int y, int x) const {
    const auto at = [&](const Tensor& t, int c) -> uint8_t& { return bytes[t.at(c / BLOCK, y, x) + c % BLOCK]; };
    int most = 0;
    for (int c = 0; c < src_.c; ++c) most = std::max<int>(most, at(src_, c));
    float sum = 0;
    const auto e = [&](int c) { return table_[static_cast<size_t>(most - at(src_, c))]; };
    for (int c = 0; c < src_.c; ++c) sum += e(c);
    const float whole = sum * dst_scale_, factor = 1.0f / whole;
    for (int c = 0; c < src_.c; ++c) {
      const float p = e(c) * factor, up = p + 0.5f;
      at(dst_, c) =
          static_cast<uint8_t>(std::clamp(static_cast<int>(std::floor(std::min(up, 1e6f))) + dst_.zero, 0, 255));
    }
  }

  const Tensor src_, dst_;
  const std::array<float, 256> table_;
  const float dst_scale_;
};

bool same_shape(const Tensor& a, const Tensor& b) {
  return a.c == b.c && a.h == b.h && a.w == b.w && !a.image && !b.image;
}

OpPtr binary(std::string name, std::string kernel, void (*run)(const EltU8Args&), const Tensor& a, const Tensor& b,
             const Tensor& dst, const AddFactors& factors, float factor, const Requant& requant,
             const AddFloats& floats = {}) {
  check(a.u8 && b.u8 && dst.u8 && same_shape(a, dst), name, "shapes differ");
  check(same_shape(b, dst) || (b.c == dst.c && b.h * b.w == 1 && !b.image), name, "shapes differ");
  return std::make_unique<BinaryU8Op>(std::move(name), std::move(kernel), run, a, b, dst, factors, factor, requant,
                                      floats);
}

}  // namespace

void check_add_factors(const std::string& name, const AddFactors& f) {
  const int32_t most = (1 << 21) + 1;
  check(f.ma >= 0 && f.mb >= 0 && f.ma <= most && f.mb <= most && f.shift >= 1 && f.shift <= 30, name,
        "the factors are out of range");
}

OpPtr make_add_u8(const U8Table& table, std::string name, const Tensor& a, const Tensor& b, const Tensor& dst,
                  const AddFactors& f, const Requant& requant) {
  check_add_factors(name, f);
  return binary(std::move(name), std::string("add_u8/") + table.isa, table.add, a, b, dst, f, 0, requant);
}

OpPtr make_add_floats_u8(const U8Table& table, std::string name, const Tensor& a, const Tensor& b, const Tensor& dst,
                         const AddFloats& f, int lo, int hi) {
  check(f.ra > 0 && f.rb > 0 && f.added >= 0 && f.added <= 128 && f.ra <= 1e4f && f.rb <= 1e4f &&
            std::abs(f.rest) <= 1e7f,
        name, "the scales of its inputs and of its output do not fit");
  return binary(std::move(name), std::string("add_floats_u8/") + table.isa, table.add_floats, a, b, dst, {0, 0, 1}, 0,
                {f.added, lo, hi}, f);
}

OpPtr make_mul_u8(const U8Table& table, std::string name, const Tensor& a, const Tensor& b, const Tensor& dst,
                  float factor, const Requant& requant) {
  check(std::abs(factor) <= 1e4f, name, "the scales of its inputs and of its output do not fit");
  return binary(std::move(name), std::string("mul_u8/") + table.isa, table.mul, a, b, dst, {0, 0, 1}, factor, requant);
}

OpPtr make_lookup_u8(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst,
                     const Lookup& lookup) {
  check(src.u8 && dst.u8 && same_shape(src, dst), name, "shapes differ");
  return std::make_unique<LookupU8Op>(table, std::move(name), src, dst, lookup);
}

OpPtr make_pool_u8(const U8Table& table, std::string name, const Tensor& src, const Tensor& dst, const PoolU8& pool,
                   std::vector<PoolSpan> rows, std::vector<PoolSpan> columns) {
  check(src.u8 && dst.u8 && src.c == dst.c && !src.image && !dst.image, name, "shapes do not fit");
  const auto fit = [](const std::vector<PoolSpan>& spans, int outputs, int size) {
    return spans.size() == static_cast<size_t>(outputs) &&
           std::all_of(spans.begin(), spans.end(), [&](const PoolSpan& s) { return s.begin >= 0 && s.end <= size; });
  };
  check(fit(rows, dst.h, src.h) && fit(columns, dst.w, src.w), name, "the windows do not fit the map");
  return std::make_unique<PoolU8Op>(table, std::move(name), src, dst, pool, std::move(rows), std::move(columns));
}

OpPtr make_gather_u8(std::string name, const std::vector<Tensor>& sources, const std::vector<Lookup>& lookups,
                     const Tensor& dst, const std::vector<int>& index) {
  int channels = 0;
  for (const Tensor& s : sources) {
    check(s.u8 && s.h == dst.h && s.w == dst.w && !s.image, name, "shapes do not fit");
    channels += s.c;
  }
  check(dst.u8 && !dst.image && index.size() == static_cast<size_t>(dst.c) && lookups.size() == sources.size(), name,
        "shapes do not fit");
  for (const int i : index) check(i >= 0 && i < channels, name, "no such channel");
  return std::make_unique<GatherU8Op>(std::move(name), sources, lookups, dst, index);
}

OpPtr make_softmax_u8(std::string name, const Tensor& src, const Tensor& dst, const std::array<float, 256>& table,
                      float dst_scale) {
  check(src.u8 && dst.u8 && same_shape(src, dst), name, "shapes differ");
  return std::make_unique<SoftmaxU8Op>(std::move(name), src, dst, table, dst_scale);
}

}  // namespace fmn
