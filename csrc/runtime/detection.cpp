#include "runtime/detection.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

namespace fmn {

namespace {

bool finite(const Box& b) {
  return std::isfinite(b.x0) && std::isfinite(b.y0) && std::isfinite(b.x1) && std::isfinite(b.y1);
}

float area(const Box& b) { return std::max(b.x1 - b.x0, 0.0f) * std::max(b.y1 - b.y0, 0.0f); }

// Common area / area of both. Boxes without area overlap nothing: 0 / 0 is not above any threshold.
float overlap(const Box& a, float area_a, const Box& b, float area_b) {
  const float w = std::min(a.x1, b.x1) - std::max(a.x0, b.x0), h = std::min(a.y1, b.y1) - std::max(a.y0, b.y0);
  if (!(w > 0 && h > 0)) return 0;
  const float common = w * h;
  return common / (area_a + area_b - common);
}

// Scores and places as numbers that sort as detections do: the higher score first, then the lower place.
using Key = uint64_t;

Key key(float score, uint32_t place) {
  score += 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  bits ^= bits >> 31 != 0 ? 0xffffffffu : 0x80000000u;  // rises with the score
  return Key{bits} << 32 | static_cast<uint32_t>(~place);
}

uint32_t place(Key k) { return ~static_cast<uint32_t>(k); }

float score_of(Key k) {
  auto bits = static_cast<uint32_t>(k >> 32);
  bits ^= bits >> 31 != 0 ? 0x80000000u : 0xffffffffu;
  float s;
  std::memcpy(&s, &bits, sizeof s);
  return s;
}

// Gives keys from the largest down, and does no more work than is asked for: mostly a few hundred of 100,000 are.
class Descending {
 public:
  explicit Descending(std::vector<Key>& keys) : keys_(keys), heap_end_(keys.size()) {
    std::make_heap(keys_.begin(), keys_.end());
  }
  bool empty() const { return heap_end_ == 0; }
  Key next() {
    if (!sorted_ && ++taken_ > keys_.size() / 16 + 64) {  // pops are dearer than what is left of a sort
      std::sort(keys_.begin(), keys_.begin() + static_cast<ptrdiff_t>(heap_end_));
      sorted_ = true;
    }
    if (!sorted_) std::pop_heap(keys_.begin(), keys_.begin() + static_cast<ptrdiff_t>(heap_end_));
    return keys_[--heap_end_];
  }

 private:
  std::vector<Key>& keys_;
  size_t heap_end_, taken_ = 0;
  bool sorted_ = false;
};

// The best candidates, between `most` and twice as many, and whether worse ones were left out. Mostly they are enough,
// and then the other 100,000 cost one comparison each.
class Candidates {
 public:
  Candidates(float threshold, size_t most) : least_(threshold), most_(most) { keys_.reserve(2 * most); }
  float least() const { return least_; }  // what is below need not be offered
  bool complete() const { return complete_; }
  std::vector<Key>& keys() { return keys_; }
  void offer(float score, uint32_t place) {
    const Key k = key(score, place);
    if (k < last_) return;
    keys_.push_back(k);
    if (keys_.size() < 2 * most_) return;
    const auto last = keys_.begin() + static_cast<ptrdiff_t>(most_);
    std::nth_element(keys_.begin(), last - 1, keys_.end(), std::greater<Key>());
    last_ = last[-1];
    least_ = score_of(last_);  // equal scores still come in: their places may be lower
    keys_.erase(last, keys_.end());
    complete_ = false;
  }

 private:
  std::vector<Key> keys_;
  float least_;
  Key last_ = 0;
  size_t most_;
  bool complete_ = true;
};

// What was kept so far, and which of it belongs to a class.
class Kept {
 public:
  Kept(int classes, int room) : last_(static_cast<size_t>(classes), -1) {
    boxes_.reserve(static_cast<size_t>(room));
    links_.reserve(static_cast<size_t>(room));
  }
  bool overlaps(int label, const Box& box, float box_area, double threshold) const {
    for (int i = last_[static_cast<size_t>(label)]; i >= 0; i = links_[static_cast<size_t>(i)].before) {
      const Link& link = links_[static_cast<size_t>(i)];
      if (overlap(boxes_[static_cast<size_t>(i)], link.area, box, box_area) > threshold) return true;
    }
    return false;
  }
  void add(int label, const Box& box, float box_area) {
    boxes_.push_back(box);
    links_.push_back({box_area, last_[static_cast<size_t>(label)]});
    last_[static_cast<size_t>(label)] = static_cast<int>(boxes_.size()) - 1;
  }

 private:
  struct Link {
    float area;
    int before;  // of the same class, or -1
  };
  std::vector<int> last_;
  std::vector<Box> boxes_;
  std::vector<Link> links_;
};

// Places are class * n + anchor. Greedy over all classes at once: whether a candidate is kept depends on better ones
// of its own class alone, so the best `detections` of all classes are found without looking at the others.
std::vector<Found> greedy(const DetectionSpec& spec, const Box* boxes, ptrdiff_t n, int classes,
                          std::vector<Key>& keys) {
  const auto room = std::min(static_cast<size_t>(spec.detections), keys.size());
  std::vector<Found> found;
  found.reserve(room);
  Kept kept(classes, static_cast<int>(room));
  struct Count {
    int seen, kept;
  };
  std::vector<Count> counts(static_cast<size_t>(classes), Count{0, 0});
  int open = classes;  // classes that may still give something
  for (Descending rest(keys); !rest.empty() && found.size() < room && open > 0;) {
    const Key k = rest.next();
    const int label = static_cast<int>(place(k) / n), anchor = static_cast<int>(place(k) % n);
    Count& count = counts[static_cast<size_t>(label)];
    const auto closed = [&] {
      return (spec.candidates > 0 && count.seen >= spec.candidates) ||
             (spec.per_class > 0 && count.kept >= spec.per_class);
    };
    if (closed()) continue;
    ++count.seen;
    const Box& box = boxes[anchor];
    const float size = area(box);
    if (!kept.overlaps(label, box, size, spec.iou_threshold)) {
      ++count.kept;
      kept.add(label, box, size);
      found.push_back({box, score_of(k), label, anchor});
    }
    if (closed()) --open;
  }
  return found;
}

// The classes of an anchor, best first.
void best_classes(const float* scores, int first, int classes, int count, int* best) {
  std::vector<int> order(static_cast<size_t>(classes - first));
  std::iota(order.begin(), order.end(), first);
  const auto rank = [&](int c) { return std::isnan(scores[c]) ? -std::numeric_limits<float>::infinity() : scores[c]; };
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](int a, int b) { return rank(a) > rank(b) || (rank(a) == rank(b) && a < b); });
  std::copy_n(order.begin(), count, best);
}

// Candidates to begin with, beside four for each detection.
constexpr size_t FIRST_CANDIDATES = 1024;

// `row(i)` gives the scores [classes] of anchor i, valid until the next call, or null where none reaches the threshold.
template <class Row>
std::vector<Found> select(const DetectionSpec& spec, const Box* boxes, ptrdiff_t n, float threshold, Row row) {
  const int first = spec.background ? 1 : 0, classes = spec.classes;
  const int shown = spec.agnostic ? std::min(spec.per_anchor, classes - first) : 0;
  std::vector<int> best;  // of every anchor: [n][shown]
  std::vector<float> best_scores;
  if (spec.agnostic) {
    best.resize(static_cast<size_t>(n * shown));
    best_scores.resize(best.size());
  }
  std::vector<Found> found;
  for (size_t most = FIRST_CANDIDATES + 4 * static_cast<size_t>(spec.detections);; most *= 16) {
    Candidates candidates(threshold, most);
    for (ptrdiff_t i = 0; i < n; ++i) {
      if (!finite(boxes[i])) continue;
      const float* scores = row(i);
      if (scores == nullptr) continue;
      if (!spec.agnostic) {
        for (int c = first; c < classes; ++c) {
          if (scores[c] >= candidates.least()) candidates.offer(scores[c], static_cast<uint32_t>(c * n + i));
        }
        continue;
      }
      int* own = best.data() + i * shown;
      best_classes(scores, first, classes, shown, own);
      for (int k = 0; k < shown; ++k) best_scores[static_cast<size_t>(i * shown + k)] = scores[own[k]];
      if (scores[own[0]] >= candidates.least()) candidates.offer(scores[own[0]], static_cast<uint32_t>(i));
    }
    found = greedy(spec, boxes, n, spec.agnostic ? 1 : classes, candidates.keys());
    if (candidates.complete() || found.size() == static_cast<size_t>(spec.detections)) break;
  }
  if (!spec.agnostic) return found;
  std::vector<Found> shown_classes;
  shown_classes.reserve(found.size() * static_cast<size_t>(shown));
  for (Found f : found) {
    for (int k = 0; k < shown; ++k) {
      f.label = best[static_cast<size_t>(f.anchor * shown + k)];
      f.score = best_scores[static_cast<size_t>(f.anchor * shown + k)];
      shown_classes.push_back(f);
    }
  }
  return shown_classes;
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// What is left of a threshold for a comparison before rounding.
constexpr float SLACK = 1e-3f;

// The scores of a row, computed where one may reach the threshold.
class RowScores {
 public:
  RowScores(const DetectionSpec& spec, const float* rows, float threshold)
      : spec_(spec), rows_(rows), row_(static_cast<size_t>(spec.classes)) {
    const bool all = spec.agnostic && spec.per_anchor > 1;  // lower scores are shown beside the best one
    const bool odds = threshold > 0 && threshold < 1 && !all;
    if (spec.scores == Scores::sigmoid && odds) least_ = std::log(threshold / (1 - threshold));
    if (spec.scores == Scores::softmax && odds) least_ = std::log(threshold);
    least_ -= SLACK * (1 + std::fabs(least_));
  }

  const float* operator()(ptrdiff_t i) {
    const float* x = rows_ + i * spec_.columns() + 4;
    if (spec_.scores == Scores::plain) return x;
    const int first = spec_.background ? 1 : 0, classes = spec_.classes;
    float most = x[first];
    for (int c = first + 1; c < classes; ++c) most = std::max(most, x[c]);
    if (spec_.scores == Scores::sigmoid) {
      if (most < least_) return nullptr;
      for (int c = first; c < classes; ++c) row_[static_cast<size_t>(c)] = x[c] < least_ ? 0.0f : sigmoid(x[c]);
      return row_.data();
    }
    // No class has a larger share of itself and the background than exp(most - x[0]).
    if (spec_.background && most - x[0] < least_) return nullptr;
    if (spec_.background) most = std::max(most, x[0]);
    float sum = 0;
    for (int c = 0; c < classes; ++c) sum += row_[static_cast<size_t>(c)] = std::exp(x[c] - most);
    for (float& v : row_) v /= sum;
    return row_.data();
  }

 private:
  const DetectionSpec& spec_;
  const float* rows_;
  float least_ = -std::numeric_limits<float>::infinity();
  std::vector<float> row_;
};

}  // namespace

void decode_boxes(const DetectionSpec& spec, const float* rows, Box* boxes) {
  const int x = spec.yx ? 1 : 0, y = 1 - x;
  const ptrdiff_t n = spec.n_anchors();
  for (ptrdiff_t i = 0; i < n; ++i) {
    const float* delta = rows + i * spec.columns();
    const float* a = spec.anchors.data() + 4 * i;
    const float cx = delta[x] / spec.scale[0] * a[2] + a[0], cy = delta[y] / spec.scale[1] * a[3] + a[1];
    // A NaN stays one: the box is then left out.
    const auto half = [&](float d, float scale, float size) {
      d /= scale;
      return 0.5f * (std::exp(d > spec.limit ? spec.limit : d) * size);
    };
    const float w = half(delta[2 + x], spec.scale[2], a[2]), h = half(delta[2 + y], spec.scale[3], a[3]);
    Box box{cx - w, cy - h, cx + w, cy + h};
    if (spec.clip) {
      const auto clip = [](float v, float most) { return v < 0 ? 0 : v > most ? most : v; };
      box = {clip(box.x0, spec.width), clip(box.y0, spec.height), clip(box.x1, spec.width), clip(box.y1, spec.height)};
    }
    boxes[i] = box;
  }
}

std::vector<Found> detect(const DetectionSpec& spec, const float* rows, float threshold) {
  std::vector<Box> boxes(static_cast<size_t>(spec.n_anchors()));
  decode_boxes(spec, rows, boxes.data());
  return select(spec, boxes.data(), spec.n_anchors(), threshold, RowScores(spec, rows, threshold));
}

std::vector<Found> suppress(const DetectionSpec& spec, const Box* boxes, const float* scores, ptrdiff_t n,
                            float threshold) {
  return select(spec, boxes, n, threshold, [&](ptrdiff_t i) { return scores + i * spec.classes; });
}

}  // namespace fmn
