// The Python face of quantised networks.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <optional>

#include "bindings.h"
#include "runtime/program.h"
#include "runtime/u8_dispatch.h"
#include "runtime/u8_ops.h"

namespace py = pybind11;

namespace fmn {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Pair = std::pair<int, int>;

template <class T>
const T* keep(WeightStore& store, const Array<T>& values) {
  const size_t bytes = static_cast<size_t>(values.size()) * sizeof(T);
  auto* copy = store.allocate((bytes + sizeof(float) - 1) / sizeof(float));
  std::memcpy(copy, values.data(), bytes);
  return reinterpret_cast<const T*>(copy);
}

// shape: (oc, kh, kw, ic). panels: (block, blocks, passes, offset in bytes) of a dense convolution.
std::shared_ptr<PackedU8> pack(const std::shared_ptr<WeightStore>& store, const std::string& isa,
                               const Array<int8_t>& weight, const Array<int32_t>& bias, const Array<float>& scale,
                               std::array<int, 4> shape, bool depthwise, int passes, int dw_k,
                               const std::vector<std::array<ptrdiff_t, 4>>& panels) {
  const int blocks = (shape[0] + BLOCK - 1) / BLOCK;
  if (bias.size() != blocks * BLOCK || scale.size() != blocks * BLOCK) {
    throw std::invalid_argument("bias and scale need a value for every channel of every block");
  }
  auto packed = std::make_shared<PackedU8>();
  packed->store = store;
  packed->isa = isa;
  packed->weight = keep(*store, weight);
  packed->bias = keep(*store, bias);
  packed->scale = keep(*store, scale);
  packed->oc = shape[0];
  packed->kh = shape[1];
  packed->kw = shape[2];
  packed->ic = shape[3];
  packed->depthwise = depthwise;
  packed->passes = passes;
  packed->dw_k = dw_k;
  for (const auto& p : panels) {
    packed->panels.push_back({static_cast<int>(p[0]), static_cast<int>(p[1]), static_cast<int>(p[2]), p[3]});
  }
  return packed;
}

Lookup lookup(const Array<uint8_t>& table) {
  if (table.size() != 256) throw std::invalid_argument("a table needs 256 bytes");
  Lookup result;
  std::copy_n(table.data(), 256, result.begin());
  return result;
}

std::vector<Lookup> lookups(const std::vector<Array<uint8_t>>& tables) {
  std::vector<Lookup> result;
  for (const auto& t : tables) result.push_back(lookup(t));
  return result;
}

Requant requant(std::array<int, 3> r) { return {r[0], r[1], r[2]}; }

std::vector<PoolSpan> pool_spans(const std::vector<std::tuple<int, int, float>>& list) {
  std::vector<PoolSpan> result;
  for (const auto& [begin, end, count] : list) result.push_back({begin, end, count});
  return result;
}

// "max" and "requantize" too.
MeanRule mean_rule(const std::string& name) {
  if (name == "average") return MeanRule::average;
  if (name == "mean") return MeanRule::mean;
  return MeanRule::requantize;
}

// (tensor, zero, factors, requant)
using SumAfter = std::tuple<int, int, std::array<int, 3>, std::array<int, 3>>;
using Spans = std::vector<std::tuple<int, int, float>>;

}  // namespace

void bind_u8(py::module_& m, py::class_<Program>& program) {
  m.def("supported_u8_isas", &supported_u8_isas, "ISAs of quantised kernels that this CPU runs, best first.");
  m.def(
      "u8_isa",
      [](const std::string& isa) {
        const U8Table& t = u8_table(isa);
        return py::make_tuple(std::string(t.isa), t.panel_blocks, t.offset, t.needs_127, t.pairwise);
      },
      py::arg("isa") = "",
      "The quantised kernels that go with an ISA: (name, blocks of a panel, what they take off activations, whether "
      "weights of -128 are wrong there, whether it multiplies pairs).");
  m.def(
      "u8_peak_gops",
      [](const std::string& isa, double seconds) {
        const U8Table& table = u8_table(isa);
        const py::gil_scoped_release release;
        return u8_peak_gops(table, seconds);
      },
      py::arg("isa") = "", py::arg("seconds") = 0.05, "Multiply-add rate of bytes of one core in Gop/s, best burst.");
  m.def(
      "dw_words", [](int k, int stride, int kw) { return dw_words(k, stride, kw, false); }, py::arg("k"),
      py::arg("stride"), py::arg("kw"), "Words of packed depthwise weights for a row of the window.");

  py::class_<PackedU8, std::shared_ptr<PackedU8>>(m, "PackedU8");
  m.def("pack_u8", &pack, py::arg("store"), py::arg("isa"), py::arg("weight"), py::arg("bias"), py::arg("scale"),
        py::arg("shape"), py::arg("depthwise"), py::arg("passes"), py::arg("dw_k"), py::arg("panels"));
  py::class_<ConvU8Spec>(m, "ConvU8Spec")
      .def(py::init([](const std::shared_ptr<PackedU8>& weights, Pair stride, Pair dilation, Pair pad,
                       std::array<int, 3> r) {
             return ConvU8Spec{weights,
                               {stride.first, stride.second, dilation.first, dilation.second, pad.first, pad.second},
                               requant(r),
                               {}};
           }),
           py::arg("weights"), py::arg("stride"), py::arg("dilation"), py::arg("pad"), py::arg("requant"));

  program
      .def("tensor_u8", &Program::tensor_u8, py::arg("c"), py::arg("h"), py::arg("w"), py::arg("pads"),
           py::arg("image"), py::arg("zero"), py::arg("offset"))
      .def(
          "input_u8",
          [](Program& p, const std::string& isa, int dst, const std::vector<Array<uint8_t>>& pixels,
             const std::vector<double>& mean, const std::vector<double>& std, float scale, bool swap) {
            p.append(make_input_u8(u8_table(isa), p.tensor(dst), {lookups(pixels), mean, std, scale, swap}));
          },
          py::arg("isa"), py::arg("dst"), py::arg("pixels"), py::arg("mean"), py::arg("std"), py::arg("scale"),
          py::arg("swap"))
      .def(
          "conv_u8",
          [](Program& p, const std::string& isa, const std::string& name, int src, int dst, ConvU8Spec spec,
             const std::optional<Array<uint8_t>>& table_after, const std::optional<SumAfter>& sum_after) {
            const U8Table& table = u8_table(isa);
            if (table_after) spec.after.lookup = std::make_shared<Lookup>(lookup(*table_after));
            if (sum_after) {
              const auto& [other, zero, f, r] = *sum_after;
              spec.after.add = std::make_shared<Tensor>(p.tensor(other));
              spec.after.zero = zero;
              spec.after.factors = {f[0], f[1], f[2]};
              spec.after.requant = requant(r);
            }
            p.append(spec.weights->depthwise ? make_depthwise_u8(table, name, p.tensor(src), p.tensor(dst), spec)
                                             : make_conv_u8(table, name, p.tensor(src), p.tensor(dst), spec));
          },
          py::arg("isa"), py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("spec"),
          py::arg("table_after") = py::none(), py::arg("sum_after") = py::none(),
          "table_after: (256,) for the bytes of the convolution. sum_after: (tensor to add, zero point of the "
          "convolution's own bytes, (its factor, that of the tensor, shift), (zero, lo, hi) of the sum).")
      .def(
          "add_u8",
          [](Program& p, const std::string& isa, const std::string& name, int a, int b, int dst, std::array<int, 3> f,
             std::array<int, 3> r) {
            p.append(make_add_u8(u8_table(isa), name, p.tensor(a), p.tensor(b), p.tensor(dst), {f[0], f[1], f[2]},
                                 requant(r)));
          },
          py::arg("isa"), py::arg("name"), py::arg("a"), py::arg("b"), py::arg("dst"), py::arg("factors"),
          py::arg("requant"))
      .def(
          "add_floats_u8",
          [](Program& p, const std::string& isa, const std::string& name, int a, int b, int dst, std::array<float, 3> f,
             int added, std::array<int, 2> bounds) {
            p.append(make_add_floats_u8(u8_table(isa), name, p.tensor(a), p.tensor(b), p.tensor(dst),
                                        {f[0], f[1], f[2], added}, bounds[0], bounds[1]));
          },
          py::arg("isa"), py::arg("name"), py::arg("a"), py::arg("b"), py::arg("dst"), py::arg("factors"),
          py::arg("added"), py::arg("bounds"))
      .def(
          "mul_u8",
          [](Program& p, const std::string& isa, const std::string& name, int a, int b, int dst, float factor,
             std::array<int, 3> r) {
            p.append(make_mul_u8(u8_table(isa), name, p.tensor(a), p.tensor(b), p.tensor(dst), factor, requant(r)));
          },
          py::arg("isa"), py::arg("name"), py::arg("a"), py::arg("b"), py::arg("dst"), py::arg("factor"),
          py::arg("requant"))
      .def(
          "lookup_u8",
          [](Program& p, const std::string& isa, const std::string& name, int src, int dst,
             const Array<uint8_t>& table) {
            p.append(make_lookup_u8(u8_table(isa), name, p.tensor(src), p.tensor(dst), lookup(table)));
          },
          py::arg("isa"), py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("table"))
      .def(
          "pool_u8",
          [](Program& p, const std::string& isa, const std::string& name, int src, int dst, const std::string& rule,
             int added, double src_scale, double dst_scale, const Spans& rows, const Spans& columns) {
            const PoolU8 pool{rule == "max" ? PoolKind::max : PoolKind::mean, mean_rule(rule), added, src_scale,
                              dst_scale};
            p.append(make_pool_u8(u8_table(isa), name, p.tensor(src), p.tensor(dst), pool, pool_spans(rows),
                                  pool_spans(columns)));
          },
          py::arg("isa"), py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("rule"), py::arg("added"),
          py::arg("src_scale"), py::arg("dst_scale"), py::arg("rows"), py::arg("columns"))
      .def(
          "gather_u8",
          [](Program& p, const std::string& name, const std::vector<int>& sources,
             const std::vector<Array<uint8_t>>& tables, int dst, const std::vector<int>& index) {
            std::vector<Tensor> tensors;
            for (const int id : sources) tensors.push_back(p.tensor(id));
            p.append(make_gather_u8(name, tensors, lookups(tables), p.tensor(dst), index));
          },
          py::arg("name"), py::arg("sources"), py::arg("tables"), py::arg("dst"), py::arg("index"))
      .def(
          "softmax_u8",
          [](Program& p, const std::string& name, int src, int dst, const Array<float>& table, float dst_scale) {
            if (table.size() != 256) throw std::invalid_argument("a table needs 256 values");
            std::array<float, 256> values;
            std::copy_n(table.data(), 256, values.begin());
            p.append(make_softmax_u8(name, p.tensor(src), p.tensor(dst), values, dst_scale));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("table"), py::arg("dst_scale"))
      .def(
          "quantize",
          [](Program& p, const std::string& name, int src, int dst, float scale) {
            p.append(make_quantize(name, p.tensor(src), p.tensor(dst), scale));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("scale"))
      .def(
          "dequantize",
          [](Program& p, const std::string& name, int src, int dst, float scale) {
            p.append(make_dequantize(name, p.tensor(src), p.tensor(dst), scale));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("scale"));
}

}  // namespace fmn
