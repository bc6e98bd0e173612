// From what an SSD computes to boxes: scores, decoded boxes, and the suppression of those that overlap a better one.
//
// fastmobilenet/reference_detection.py computes the same in NumPy and is the definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fmn {

struct Box {
  float x0, y0, x1, y1;
};

enum class Scores { plain, sigmoid, softmax };

struct DetectionSpec {
  std::vector<float> anchors;  // [n][4]: the centre and the size, (x, y, w, h)
  int classes = 0;             // columns of scores, the background among them
  // Of a box, (dx, dy, dw, dh) or with `yx` (dy, dx, dh, dw): centre + delta / scale * size, size * exp(delta / scale)
  bool yx = false;
  float scale[4] = {1, 1, 1, 1};  // x, y, w, h
  float limit = 0;                // largest delta / scale of a size
  bool clip = false;              // boxes to 0..width and 0..height
  float width = 1, height = 1;
  Scores scores = Scores::plain;
  bool background = false;   // class 0 is none
  double iou_threshold = 1;  // a box whose overlap with a better one of its class is above this goes
  int candidates = 0;        // best ones of each class that are looked at; 0: all
  int per_class = 0;         // of one class that are kept; 0: all
  int detections = 0;        // that are kept in all
  bool agnostic = false;     // one suppression over all classes, of the best class of each anchor
  int per_anchor = 1;        // with `agnostic`: classes that a kept anchor gives

  ptrdiff_t n_anchors() const { return static_cast<ptrdiff_t>(anchors.size() / 4); }
  int columns() const { return 4 + classes; }
};

struct Found {
  Box box;
  float score;
  int label;   // the column of scores
  int anchor;  // its number
};

// rows: [n_anchors][4 + classes] -> boxes [n_anchors].
void decode_boxes(const DetectionSpec& spec, const float* rows, Box* boxes);

// rows: [n_anchors][4 + classes] -> what is found, best first; of equal scores the lower class, then the lower anchor.
// Scores below `threshold` do not count, nor NaN, nor boxes with a coordinate that is no finite number.
std::vector<Found> detect(const DetectionSpec& spec, const float* rows, float threshold);

// The same of decoded boxes [n] and scores [n][classes] as they are.
std::vector<Found> suppress(const DetectionSpec& spec, const Box* boxes, const float* scores, ptrdiff_t n,
                            float threshold);

}  // namespace fmn
