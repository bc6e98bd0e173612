// The Python face of detectors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <exception>
#include <limits>
#include <optional>

#include "bindings.h"
#include "runtime/detection.h"
#include "runtime/threads.h"

namespace py = pybind11;

namespace fmn {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

void check_rows(const FloatArray& rows, const DetectionSpec& spec) {
  if (rows.ndim() != 3 || rows.shape(1) != spec.n_anchors() || rows.shape(2) != spec.columns()) {
    throw std::invalid_argument("rows must have the shape (n, anchors, 4 + classes)");
  }
}

// (boxes (k, 4) as x0, y0, x1, y1, scores (k,), labels (k,), anchors (k,))
py::tuple arrays(const std::vector<Found>& found) {
  const auto k = static_cast<py::ssize_t>(found.size());
  py::array_t<float> boxes({k, py::ssize_t{4}}), scores(k);
  py::array_t<int32_t> labels(k), anchors(k);
  for (py::ssize_t i = 0; i < k; ++i) {
    const Found& f = found[static_cast<size_t>(i)];
    const float corners[] = {f.box.x0, f.box.y0, f.box.x1, f.box.y1};
    std::copy_n(corners, 4, boxes.mutable_data(i, 0));
    scores.mutable_at(i) = f.score;
    labels.mutable_at(i) = f.label;
    anchors.mutable_at(i) = f.anchor;
  }
  return py::make_tuple(boxes, scores, labels, anchors);
}

// One picture a job; what is found does not depend on who looks.
py::list run(const DetectionSpec& spec, const FloatArray& rows, float threshold, int threads) {
  check_rows(rows, spec);
  const py::ssize_t n = rows.shape(0);
  const float* data = rows.data();
  std::vector<std::vector<Found>> found(static_cast<size_t>(n));
  without_gil([&] {
    std::vector<std::exception_ptr> errors(static_cast<size_t>(n));
    const ptrdiff_t floats = spec.n_anchors() * spec.columns();
    const auto picture = [&](ptrdiff_t i) {
      try {
        found[static_cast<size_t>(i)] = detect(spec, data + i * floats, threshold);
      } catch (...) {  // no memory
        errors[static_cast<size_t>(i)] = std::current_exception();
      }
    };
    run_parallel(static_cast<int>(std::clamp<py::ssize_t>(n, 1, threads)), [&](Team& team) {
      team.share(n, 1, [&](Range part) {
        for (ptrdiff_t i = part.begin; i < part.end; ++i) picture(i);
      });
    });
    for (const auto& e : errors) {
      if (e) std::rethrow_exception(e);
    }
  });
  py::list result;
  for (const auto& f : found) result.append(arrays(f));
  return result;
}

FloatArray decode(const DetectionSpec& spec, const FloatArray& rows) {
  check_rows(rows, spec);
  FloatArray boxes({rows.shape(0), rows.shape(1), py::ssize_t{4}});
  static_assert(sizeof(Box) == 4 * sizeof(float));
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
    decode_boxes(spec, rows.data(i, 0, 0), reinterpret_cast<Box*>(boxes.mutable_data(i, 0, 0)));
  }
  return boxes;
}

py::tuple nms(const FloatArray& boxes, const FloatArray& scores, DetectionSpec spec, float threshold) {
  if (boxes.ndim() != 2 || boxes.shape(1) != 4 || scores.ndim() != 2 || scores.shape(0) != boxes.shape(0)) {
    throw std::invalid_argument("boxes must have the shape (n, 4) and scores (n, classes)");
  }
  spec.classes = static_cast<int>(scores.shape(1));
  if (boxes.shape(0) > 0 && spec.classes > 0x7fffffff / boxes.shape(0)) throw std::invalid_argument("too many scores");
  std::vector<Found> found;
  const auto* corners = reinterpret_cast<const Box*>(boxes.data());
  without_gil([&] { found = suppress(spec, corners, scores.data(), boxes.shape(0), threshold); });
  return arrays(found);
}

}  // namespace

void bind_detection(py::module_& m, py::class_<Program>& program) {
  py::class_<DetectionSpec>(m, "DetectionSpec")
      .def(py::init([](const FloatArray& anchors, int classes, bool yx, std::array<float, 4> scale, float limit,
                       std::optional<std::array<float, 2>> clip, const std::string& scores, bool background,
                       double iou_threshold, int candidates, int per_class, int detections, bool agnostic,
                       int per_anchor) {
             if (anchors.ndim() != 2 || anchors.shape(1) != 4 || anchors.shape(0) < 1) {
               throw std::invalid_argument("anchors must have the shape (n, 4)");
             }
             if (classes <= (background ? 1 : 0) || classes > 0x7fffffff / anchors.shape(0)) {
               throw std::invalid_argument("wrong number of classes");
             }
             if (detections < 1 || per_anchor < 1 || candidates < 0 || per_class < 0) {
               throw std::invalid_argument("wrong number of detections");
             }
             DetectionSpec s;
             s.anchors.assign(anchors.data(), anchors.data() + anchors.size());
             s.classes = classes;
             s.yx = yx;
             std::copy(scale.begin(), scale.end(), s.scale);
             s.limit = limit;
             s.clip = clip.has_value();
             if (clip) {
               s.width = (*clip)[0];
               s.height = (*clip)[1];
             }
             s.scores = scores == "softmax" ? Scores::softmax : scores == "sigmoid" ? Scores::sigmoid : Scores::plain;
             s.background = background;
             s.iou_threshold = iou_threshold;
             s.candidates = candidates;
             s.per_class = per_class;
             s.detections = detections;
             s.agnostic = agnostic;
             s.per_anchor = per_anchor;
             return s;
           }),
           py::arg("anchors"), py::arg("classes"), py::kw_only(), py::arg("yx") = false,
           py::arg("scale") = std::array<float, 4>{1, 1, 1, 1},
           py::arg("limit") = std::numeric_limits<float>::infinity(), py::arg("clip") = py::none(),
           py::arg("scores") = "plain", py::arg("background") = false, py::arg("iou_threshold") = 1.0,
           py::arg("candidates") = 0, py::arg("per_class") = 0, py::arg("detections") = 100,
           py::arg("agnostic") = false, py::arg("per_anchor") = 1)
      .def("run", &run, py::arg("rows"), py::arg("threshold"), py::arg("threads") = 1,
           "[(boxes, scores, labels, anchors) of every picture] of rows (n, anchors, 4 + classes).")
      .def("decode", &decode, py::arg("rows"), "Boxes (n, anchors, 4), as x0, y0, x1, y1.");
  m.def(
      "nms",
      [](const FloatArray& boxes, const FloatArray& scores, float threshold, double iou_threshold, int candidates,
         int per_class, int detections, bool agnostic, int per_anchor) {
        DetectionSpec s;
        s.iou_threshold = iou_threshold;
        s.candidates = candidates;
        s.per_class = per_class;
        s.detections = detections;
        s.agnostic = agnostic;
        s.per_anchor = per_anchor;
        return nms(boxes, scores, s, threshold);
      },
      py::arg("boxes"), py::arg("scores"), py::arg("threshold"), py::arg("iou_threshold"), py::kw_only(),
      py::arg("candidates") = 0, py::arg("per_class") = 0, py::arg("detections") = 100, py::arg("agnostic") = false,
      py::arg("per_anchor") = 1,
      "(boxes, scores, labels, numbers) of what is kept of boxes (n, 4), scores (n, classes).");
  program.def(
      "rows",
      [](Program& p, const std::string& name, const std::vector<int>& sources, int dst,
         const std::vector<int>& columns) {
        std::vector<Tensor> tensors;
        for (const int id : sources) tensors.push_back(p.tensor(id));
        p.append(make_rows(name, tensors, p.tensor(dst), columns));
      },
      py::arg("name"), py::arg("sources"), py::arg("dst"), py::arg("columns"));
}

}  // namespace fmn
