// The Python face of the runtime: builds Programs, runs them, and shows single kernels to the tests.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "bindings.h"
#include "runtime/amx.h"
#include "runtime/cpu.h"
#include "runtime/dispatch.h"
#include "runtime/inner.h"
#include "runtime/program.h"
#include "runtime/strassen.h"
#include "runtime/winograd.h"

namespace py = pybind11;

namespace fmn {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using Pair = std::pair<int, int>;

std::shared_ptr<const PackedWeights> pack(const std::shared_ptr<WeightStore>& store, const FloatArray& weight,
                                          const std::optional<FloatArray>& bias, int groups, bool depthwise, bool whole,
                                          const std::string& isa, PackOptions options) {
  if (weight.ndim() != 4) throw std::invalid_argument("weight must have the shape (oc, kh, kw, ic / groups)");
  const KernelTable& table = kernel_table(isa);
  const auto dim = [&](int i) { return static_cast<int>(weight.shape(i)); };
  if (bias && (bias->ndim() != 1 || bias->shape(0) != weight.shape(0))) {
    throw std::invalid_argument("bias must have the shape (oc,)");
  }
  if (groups < 1 || dim(0) % groups != 0) throw std::invalid_argument("groups must divide the output channels");
  const WeightShape shape{dim(0), dim(1), dim(2), dim(3) * groups, groups};
  return pack_weights(store, weight.data(), bias ? bias->data() : nullptr, shape, depthwise,
                      {table.panel_blocks, whole ? 0 : table.half_panel_blocks}, options);
}

py::tuple unpack(const PackedWeights& p) {
  FloatArray weight({p.oc, p.kh, p.kw, p.ic / p.groups}), bias(p.oc);
  unpack_weights(p, weight.mutable_data(), bias.mutable_data());
  return py::make_tuple(weight, bias);
}

Act act(const std::string& kind, float lo, float hi, float alpha, float beta) {
  const std::pair<const char*, ActKind> kinds[] = {{"clamp", ActKind::clamp},
                                                   {"hard_sigmoid", ActKind::hard_sigmoid},
                                                   {"hard_swish", ActKind::hard_swish},
                                                   {"sigmoid", ActKind::sigmoid},
                                                   {"swish", ActKind::swish}};
  for (const auto& [name, k] : kinds) {
    if (kind == name) return {k, lo, hi, alpha, beta};
  }
  throw std::invalid_argument("no such activation: " + kind);
}

std::vector<PoolSpan> spans(const std::vector<std::tuple<int, int, float>>& list) {
  std::vector<PoolSpan> result;
  for (const auto& [begin, end, count] : list) result.push_back({begin, end, count});
  return result;
}

Window window(Pair stride, Pair dilation, Pair pad) {
  return {stride.first, stride.second, dilation.first, dilation.second, pad.first, pad.second};
}

const Tensor* optional_tensor(const Program& p, int id) { return id < 0 ? nullptr : &p.tensor(id); }

// mid: (h, w, pad_left, pad_right) of what the depthwise convolution reads; expand and project may be null. oh and ow
// of the depthwise output are those of dst.
void append_strip(Program& p, const std::string& name, int src, int dst, int add, std::array<int, 4> mid,
                  const ConvSpec* expand, const ConvSpec& depthwise, const ConvSpec* project, int rows,
                  bool adds_expanded) {
  StripSpec spec{{}, p.tensor(dst).h, p.tensor(dst).w, expand, depthwise, project, rows, adds_expanded};
  spec.mid.c = depthwise.weights->oc;
  spec.mid.h = mid[0];
  spec.mid.w = mid[1];
  spec.mid.pad_left = mid[2];
  spec.mid.pad_right = mid[3];
  p.append(make_strip(p.table(), name, p.source(src), p.tensor(dst), optional_tensor(p, add), spec));
}

InputKind input_kind(const std::string& layout, const py::array& x) {
  const bool u8 = py::isinstance<py::array_t<uint8_t>>(x), f32 = py::isinstance<py::array_t<float>>(x);
  if (layout == "pixels" && u8) return InputKind::pixels_u8;
  if (layout == "NHWC" && f32) return InputKind::f32_nhwc;
  if (layout == "NCHW" && f32) return InputKind::f32_nchw;
  throw std::invalid_argument("layout must be pixels (uint8), NHWC or NCHW (float32)");
}

// x: (n, h, w, c) or, for NCHW, (n, c, h, w). Returns (n, oh, ow, oc), and seconds per op if asked for.
py::object run(const Program& program, const py::array& x, const std::string& layout, int threads, bool profile) {
  const InputKind kind = input_kind(layout, x);
  if (!(x.flags() & py::array::c_style) || x.ndim() != 4)
    throw std::invalid_argument("x must be contiguous, of rank 4");
  const Tensor& in = program.input();
  const bool nchw = kind == InputKind::f32_nchw;
  const py::ssize_t h = x.shape(nchw ? 2 : 1), w = x.shape(nchw ? 3 : 2), c = x.shape(nchw ? 1 : 3);
  if (h != in.h || w != in.w || c != in.c) throw std::invalid_argument("x does not have the shape of this program");
  if (reinterpret_cast<uintptr_t>(x.data()) % static_cast<size_t>(x.itemsize()) != 0) {
    throw std::invalid_argument("x is not aligned to its dtype");
  }
  const Tensor& out = program.output();
  py::array_t<float> y({x.shape(0), py::ssize_t{out.h}, py::ssize_t{out.w}, py::ssize_t{out.c}});
  std::vector<double> times(profile ? program.ops().size() : 0);
  const void* src = x.data();
  float* dst = y.mutable_data();
  const py::ssize_t n = x.shape(0);
  without_gil([&] { program.run(src, kind, n, dst, threads, profile ? times.data() : nullptr); });
  if (profile) return py::make_tuple(y, times);
  return std::move(y);
}

// --- single kernels, for the tests: buffers may end at a guard page ---------------------------------------

py::list kernels(const std::string& isa) {
  const KernelTable& table = kernel_table(isa);
  py::list list;
  for (int i = 0; i < table.n_gemm; ++i) {
    const GemmEntry& e = table.gemm[i];
    list.append(py::dict(py::arg("op") = "gemm_f32", py::arg("mr") = e.mr, py::arg("nb") = e.nb,
                         py::arg("half") = e.half, py::arg("xs") = e.xs, py::arg("halves") = e.halves));
  }
  for (int i = 0; i < table.n_dw; ++i) {
    list.append(
        py::dict(py::arg("op") = "dw_f32", py::arg("k") = table.dw[i].k, py::arg("stride") = table.dw[i].stride));
  }
  return list;
}

// Flat float32 buffers; a_at is the index of the first pixel's segment origin in a.
void test_gemm(const std::string& isa, ptrdiff_t tiles, int mr, int nb, bool half, int xs, bool halves, int run_time_xs,
               const FloatArray& a, ptrdiff_t a_at, const std::vector<std::pair<ptrdiff_t, ptrdiff_t>>& segments,
               const FloatArray& b, const FloatArray& bias, FloatArray& c, ptrdiff_t c_stride,
               const std::optional<FloatArray>& add, ptrdiff_t add_stride, const Act& act) {
  const GemmEntry* entry = find_gemm(kernel_table(isa), mr, nb, half, xs, halves);
  if (entry == nullptr) throw std::invalid_argument("no such kernel");
  std::vector<Segment> segs;
  for (const auto& [offset, len] : segments) segs.push_back({offset, len});
  GemmArgs g;
  g.tiles = tiles;
  g.a = a.data() + a_at;
  g.xs = run_time_xs;
  g.segs = segs.data();
  g.n_segs = static_cast<ptrdiff_t>(segs.size());
  g.b = b.data();
  g.bias = bias.data();
  g.c = c.mutable_data();
  g.c_stride = c_stride;
  g.add = add ? add->data() : nullptr;
  g.add_stride = add_stride;
  g.act = act;
  g.prefetch = reinterpret_cast<const char*>(g.b);
  g.prefetch_later = nullptr;
  entry->run(g);
}

// rows: indices into src of the rows' first pixels.
void test_dw(const std::string& isa, int k, int stride, const FloatArray& src, const std::vector<ptrdiff_t>& rows,
             const FloatArray& w, const FloatArray& bias, FloatArray& dst, ptrdiff_t dst_stride, ptrdiff_t oh,
             ptrdiff_t ow, const Act& act, Pair size, Pair strides, int dilation_w) {
  const DwFn fn = find_dw(kernel_table(isa), k, stride);
  if (fn == nullptr) throw std::invalid_argument("no such kernel");
  std::vector<const float*> pointers;
  for (const ptrdiff_t at : rows) pointers.push_back(src.data() + at);
  fn({pointers.data(), w.data(), bias.data(), dst.mutable_data(), dst_stride, oh, ow, act, size.first, size.second,
      strides.first, strides.second, dilation_w});
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Kernels and runtime of fastmobilenet; use fastmobilenet.Model instead.";
  m.def("supported_isas", &supported_isas, "ISAs that this CPU runs, best first.");
  m.def("built_isas", &built_isas, "ISAs in this build, best first.");
  m.def(
      "default_isa", [](const std::string& name) { return std::string(kernel_table(name).isa); }, py::arg("name") = "",
      "The floating point ISA in use: that of a name, of FASTMOBILENET_ISA, or the best supported one. Raises "
      "ValueError "
      "if it is not supported.");
  m.def(
      "peak_gflops",
      [](const std::string& isa, double seconds) {
        const KernelTable& table = kernel_table(isa);
        const py::gil_scoped_release release;
        return peak_gflops(table, seconds);
      },
      py::arg("isa") = "", py::arg("seconds") = 0.05, "float32 multiply-add rate of one core in GFLOP/s, best burst.");
  m.def("pool_size", &pool_size, "Worker threads made so far.");
  m.def("set_worker_delay_us", &set_worker_delay_us, py::arg("microseconds"),
        "For tests: threads of the pool wait up to so long, at random, wherever they can; -1: they never join a run.");
  m.def("set_spin_us", &set_spin_us, py::arg("microseconds"),
        "How long an idle worker looks for work before it sleeps.");
  m.def("release_free_memory", &release_free_memory, "Gives freed memory back to the system, where that is possible.");
  m.attr("MAX_THREADS") = MAX_THREADS;

  py::class_<WeightStore, std::shared_ptr<WeightStore>>(m, "WeightStore")
      .def(py::init<>())
      .def_property_readonly("nbytes", &WeightStore::bytes);
  py::class_<PackedWeights, std::shared_ptr<PackedWeights>>(m, "PackedWeights")
      .def_readonly("oc", &PackedWeights::oc)
      .def_readonly("ic", &PackedWeights::ic)
      .def_readonly("panel_blocks", &PackedWeights::panel_blocks)
      .def_property_readonly("whole_panels", &PackedWeights::whole_panels)
      .def_property_readonly("in_24_bits", [](const PackedWeights& p) { return p.in_24_bits != nullptr; })
      .def("unpack", &unpack, "(weight (oc, kh, kw, ic), bias (oc,)), new arrays.")
      .def(
          "norms",
          [](const PackedWeights& p) {
            const WeightNorms n = weight_norms(p);
            const auto array = [](const std::vector<double>& v) {
              return py::array_t<double>(static_cast<py::ssize_t>(v.size()), v.data());
            };
            const FloatArray bias(p.oc, p.bias);
            return py::make_tuple(array(n.out), array(n.in), bias);
          },
          "Root of the sum of squares of the weights of each output channel, and of each input channel; the bias.")
      .def(
          "inner_noise",
          [](const PackedWeights& p, double size, const FloatArray& squares, const std::vector<int>& pieces) {
            if (squares.ndim() != 1 || squares.shape(0) != p.ic)
              throw std::invalid_argument("squares must have one value for each input channel");
            return inner_noise(p, size, squares.data(), pieces);
          },
          py::arg("size"), py::arg("squares"), py::arg("pieces") = std::vector<int>(),
          "How much larger InnerWeights of this size make rounding errors, for inputs with channels of these mean "
          "squares (ic,).");
  m.def(
      "pack",
      [](const std::shared_ptr<WeightStore>& store, const FloatArray& weight, const std::optional<FloatArray>& bias,
         int groups, bool depthwise, bool whole, const std::string& isa, bool by_vectors, bool separate) {
        return std::const_pointer_cast<PackedWeights>(
            pack(store, weight, bias, groups, depthwise, whole, isa, {by_vectors, separate}));
      },
      py::arg("store"), py::arg("weight"), py::arg("bias"), py::arg("groups"), py::arg("depthwise"), py::arg("whole"),
      py::arg("isa"), py::arg("by_vectors") = false, py::arg("separate") = false);

  py::class_<Act>(m, "Act").def(py::init(&act), py::arg("kind"), py::arg("lo"), py::arg("hi"), py::arg("alpha"),
                                py::arg("beta"));
  py::class_<ConvSpec>(m, "ConvSpec")
      .def(py::init([](const std::shared_ptr<PackedWeights>& weights, Pair stride, Pair dilation, Pair pad,
                       const Act& act, const std::shared_ptr<InnerWeights>& inner,
                       const std::shared_ptr<AmxWeights>& amx) {
             return ConvSpec{weights, window(stride, dilation, pad), act, inner, amx};
           }),
           py::arg("weights"), py::arg("stride"), py::arg("dilation"), py::arg("pad"), py::arg("act"),
           py::arg("inner").none(true), py::arg("amx").none(true));
  py::class_<WinogradWeights, std::shared_ptr<WinogradWeights>>(m, "WinogradWeights")
      .def(py::init([](const std::shared_ptr<PackedWeights>& plain, int stride) {
             return std::const_pointer_cast<WinogradWeights>(winograd_weights(plain, stride));
           }),
           py::arg("plain"), py::arg("stride"));
  py::class_<Arenas, std::shared_ptr<Arenas>>(m, "Arenas", "Memory for the tensors of runs, shared by Programs.")
      .def(py::init<>())
      .def_property_readonly("nbytes", &Arenas::bytes, "What lies idle, in bytes.");
  py::class_<StrassenWeights, std::shared_ptr<StrassenWeights>>(m, "StrassenWeights")
      .def(py::init([](const std::shared_ptr<PackedWeights>& weights, int levels, int groups) {
             return std::const_pointer_cast<StrassenWeights>(strassen_weights(weights, levels, groups));
           }),
           py::arg("weights"), py::arg("levels"), py::arg("groups"));
  py::class_<InnerWeights, std::shared_ptr<InnerWeights>>(m, "InnerWeights")
      .def(py::init([](const std::shared_ptr<PackedWeights>& weights, double size, const std::vector<int>& pieces) {
             return std::const_pointer_cast<InnerWeights>(inner_weights(weights, size, pieces));
           }),
           py::arg("weights"), py::arg("size"), py::arg("pieces") = std::vector<int>());
  py::class_<AmxWeights, std::shared_ptr<AmxWeights>>(m, "AmxWeights")
      .def(py::init([](const std::shared_ptr<PackedWeights>& weights, const std::vector<int>& pieces) {
             return std::const_pointer_cast<AmxWeights>(amx_weights(weights, pieces));
           }),
           py::arg("weights"), py::arg("pieces") = std::vector<int>());
  m.def(
      "has_amx", [](const std::string& isa) { return kernel_table(isa).isa == std::string("avx512") && amx_kernels(); },
      py::arg("isa"), "Whether 1x1 convolutions of the ISA may be computed by AMX: AVX-512 on a CPU that has tiles.");
  m.def(
      "has_inner", [](const std::string& isa) { return kernel_table(isa).inner.pixels != nullptr; }, py::arg("isa"),
      "Whether the ISA has kernels of inner products.");
  m.def("adds_apart", &adds_apart, "Whether Strassen's product is faster than plain sums on this CPU.");
  m.def("adds_beside_multiplies", &adds_beside_multiplies,
        "Whether inner products are faster than plain sums on this CPU.");
  py::class_<Program> program(m, "Program");
  program
      .def(py::init([](const std::string& isa, ptrdiff_t floats, std::shared_ptr<Arenas> arenas) {
             return std::make_unique<Program>(kernel_table(isa), floats, std::move(arenas));
           }),
           py::arg("isa"), py::arg("arena_floats"), py::arg("arenas").none(false))
      .def("tensor", py::overload_cast<int, int, int, int, int, bool, ptrdiff_t>(&Program::tensor), py::arg("c"),
           py::arg("h"), py::arg("w"), py::arg("pad_left"), py::arg("pad_right"), py::arg("image"), py::arg("offset"))
      .def(
          "scattered",
          [](Program& p, const std::vector<std::array<int, 3>>& runs) {
            std::vector<Program::Run> list;
            for (const auto& [tensor, lane, count] : runs) list.push_back({tensor, lane, count});
            return p.scattered(list);
          },
          py::arg("runs"))
      .def(
          "input",
          [](Program& p, int dst, std::pair<std::vector<float>, std::vector<float>> pixels,
             std::pair<std::vector<float>, std::vector<float>> floats, bool swap, bool one_reader) {
            p.input(
                std::make_shared<const Picture>(p.table(), p.tensor(dst), Normalization{pixels.first, pixels.second},
                                                Normalization{floats.first, floats.second}, swap),
                one_reader);
          },
          py::arg("dst"), py::arg("pixels"), py::arg("floats"), py::arg("swap"), py::arg("one_reader"))
      .def(
          "conv",
          [](Program& p, const std::string& name, int src, int dst, int add, const ConvSpec& spec, int scale) {
            p.append(make_conv(p.table(), name, p.source(src), p.tensor(dst), optional_tensor(p, add), spec,
                               optional_tensor(p, scale)));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("add"), py::arg("spec"), py::arg("scale") = -1)
      .def(
          "winograd",
          [](Program& p, const std::string& name, int src, int dst, int add, const ConvSpec& spec,
             const std::shared_ptr<WinogradWeights>& weights, int chunk) {
            p.append(make_winograd(p.table(), name, p.tensor(src), p.tensor(dst), optional_tensor(p, add), spec,
                                   weights, chunk));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("add"), py::arg("spec"), py::arg("weights"),
          py::arg("chunk"))
      .def(
          "strassen",
          [](Program& p, const std::string& name, int src, int dst, int add,
             const std::shared_ptr<StrassenWeights>& weights, const Act& act, int rows) {
            p.append(make_strassen(p.table(), name, p.tensor(src), p.tensor(dst), optional_tensor(p, add),
                                   {weights, act, rows}));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("add"), py::arg("weights"), py::arg("act"),
          py::arg("rows"))
      .def("strip", &append_strip, py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("add"), py::arg("mid"),
           py::arg("expand").none(true), py::arg("depthwise"), py::arg("project").none(true), py::arg("rows"),
           py::arg("adds_expanded"))
      .def(
          "global_avg_pool",
          [](Program& p, const std::string& name, int src, int dst) {
            p.append(make_global_avg_pool(p.table(), name, p.tensor(src), p.tensor(dst)));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"))
      .def(
          "window_pool",
          [](Program& p, const std::string& name, int src, int dst, bool max,
             const std::vector<std::tuple<int, int, float>>& rows,
             const std::vector<std::tuple<int, int, float>>& columns) {
            p.append(make_window_pool(p.table(), name, p.tensor(src), p.tensor(dst),
                                      max ? PoolKind::max : PoolKind::mean, spans(rows), spans(columns)));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("max"), py::arg("rows"), py::arg("columns"))
      .def(
          "conv_pool",
          [](Program& p, const std::string& name, int src, int dst, const ConvSpec& conv, Pair mid, bool max,
             const std::vector<std::tuple<int, int, float>>& rows,
             const std::vector<std::tuple<int, int, float>>& columns, int rows_at_a_time) {
            p.append(make_conv_pool(p.table(), name, p.tensor(src), p.tensor(dst),
                                    {&conv, mid.first, mid.second, max ? PoolKind::max : PoolKind::mean, spans(rows),
                                     spans(columns), rows_at_a_time}));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("conv"), py::arg("mid"), py::arg("max"),
          py::arg("rows"), py::arg("columns"), py::arg("rows_at_a_time"))
      .def(
          "add",
          [](Program& p, const std::string& name, int a, int b, int dst, const Act& act) {
            p.append(make_add(p.table(), name, p.tensor(a), optional_tensor(p, b), p.tensor(dst), act));
          },
          py::arg("name"), py::arg("a"), py::arg("b"), py::arg("dst"), py::arg("act"))
      .def(
          "mul",
          [](Program& p, const std::string& name, int a, int b, int dst, const Act& act) {
            p.append(make_mul(p.table(), name, p.tensor(a), p.tensor(b), p.tensor(dst), act));
          },
          py::arg("name"), py::arg("a"), py::arg("b"), py::arg("dst"), py::arg("act"))
      .def(
          "gather",
          [](Program& p, const std::string& name, const std::vector<int>& sources, int dst,
             const std::vector<int>& index) {
            std::vector<Tensor> tensors;
            for (const int id : sources) tensors.push_back(p.tensor(id));
            p.append(make_gather(p.table(), name, tensors, p.tensor(dst), index));
          },
          py::arg("name"), py::arg("sources"), py::arg("dst"), py::arg("index"))
      .def(
          "lrn",
          [](Program& p, const std::string& name, int src, int dst, int size, double alpha, double beta, double bias) {
            p.append(make_lrn(name, p.tensor(src), p.tensor(dst), {size, alpha, beta, bias}));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"), py::arg("size"), py::arg("alpha"), py::arg("beta"),
          py::arg("bias"))
      .def(
          "softmax",
          [](Program& p, const std::string& name, int src, int dst) {
            p.append(make_softmax(name, p.tensor(src), p.tensor(dst)));
          },
          py::arg("name"), py::arg("src"), py::arg("dst"))
      .def("finish", &Program::finish, py::arg("input"), py::arg("output"))
      .def("run", &run, py::arg("x"), py::arg("layout"), py::arg("threads"), py::arg("profile") = false)
      .def_property_readonly("isa", [](const Program& p) { return std::string(p.table().isa); })
      .def_property_readonly("arena_bytes", &Program::arena_bytes)
      .def_property_readonly("steps", [](const Program& p) {
        std::vector<std::pair<std::string, std::string>> list;
        for (const OpPtr& op : p.ops()) list.emplace_back((op->reads_picture ? "input + " : "") + op->name, op->kernel);
        return list;
      });

  bind_u8(m, program);
  bind_detection(m, program);

  m.def("_kernels", &kernels, py::arg("isa"));
  m.def("_test_gemm", &test_gemm, py::arg("isa"), py::arg("tiles"), py::arg("mr"), py::arg("nb"), py::arg("half"),
        py::arg("xs"), py::arg("halves"), py::arg("run_time_xs"), py::arg("a").noconvert(), py::arg("a_at"),
        py::arg("segments"), py::arg("b").noconvert(), py::arg("bias").noconvert(), py::arg("c").noconvert(),
        py::arg("c_stride"), py::arg("add").noconvert(), py::arg("add_stride"), py::arg("act"));
  m.def("_test_dw", &test_dw, py::arg("isa"), py::arg("k"), py::arg("stride"), py::arg("src").noconvert(),
        py::arg("rows"), py::arg("w").noconvert(), py::arg("bias").noconvert(), py::arg("dst").noconvert(),
        py::arg("dst_stride"), py::arg("oh"), py::arg("ow"), py::arg("act"), py::arg("size"), py::arg("strides"),
        py::arg("dilation_w"));
}

}  // namespace fmn
