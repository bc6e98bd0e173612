#include "runtime/program.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "runtime/cpu.h"
#include "runtime/fpenv.h"

namespace fmn {

// Cache lines that are fetched ahead of a run of small ops: half of the second-level cache of small cores today.
constexpr ptrdiff_t MAX_AHEAD = 512 * 1024 / 64;

// And of those that only wait for their weights: what is fetched too early is gone again when it is read. Where the
// third level is small and shared with other guests (Zen 4), it is worth it to have them there at least; elsewhere
// (Granite Rapids) only what stays in the second level is, and more would take the place of what is needed before (2 %
// of MobileNetV2 0.5).
ptrdiff_t max_far() { return (streams_faster_alone() ? 4 : 1) * 1024 * 1024 / 64; }

// Kernels of bytes may read a cache line beyond the last pixel.
constexpr ptrdiff_t SLACK = 16;

Program::Program(const KernelTable& table, ptrdiff_t arena_floats, std::shared_ptr<Arenas> arenas)
    : table_(table), arena_floats_((arena_floats + SLACK + 1023) / 1024 * 1024), arenas_(std::move(arenas)) {
  check(arena_floats >= 0, "program", "the arena has a negative size");
}

int Program::tensor(int c, int h, int w, int pad_left, int pad_right, bool image, ptrdiff_t offset) {
  check(c > 0 && h > 0 && w > 0 && pad_left >= 0 && pad_right >= 0 && offset >= 0, "tensor", "sizes must be positive");
  Tensor t;
  t.c = c;
  t.h = h;
  t.w = w;
  t.pad_left = pad_left;
  t.pad_right = pad_right;
  t.image = image;
  t.offset = offset;
  check(t.floats() <= arena_floats_ - offset, "tensor", "does not fit into the arena");
  tensors_.push_back(t);
  return static_cast<int>(tensors_.size()) - 1;
}

int Program::tensor_u8(int c, int h, int w, const std::array<int, 4>& pads, bool image, uint8_t zero,
                       ptrdiff_t offset) {
  check(c > 0 && h > 0 && w > 0 && offset >= 0 && *std::min_element(pads.begin(), pads.end()) >= 0, "tensor",
        "sizes must be positive");
  check(!image || c <= 4, "tensor", "an image of bytes has up to four channels");
  Tensor t;
  t.c = c;
  t.h = h;
  t.w = w;
  t.pad_top = pads[0];
  t.pad_bottom = pads[1];
  t.pad_left = pads[2];
  t.pad_right = pads[3];
  t.image = image;
  t.u8 = true;
  t.zero = zero;
  t.offset = offset;
  check(t.floats() <= arena_floats_ - SLACK - offset, "tensor", "does not fit into the arena");
  tensors_.push_back(t);
  return static_cast<int>(tensors_.size()) - 1;
}

int Program::scattered(const std::vector<Run>& runs) {
  check(!runs.empty(), "tensor", "has no channels");
  Tensor t = tensor(runs.front().tensor);
  const ptrdiff_t first = t.at(0, 0, 0);
  t.c = 0;
  std::vector<Segment> segments;
  for (const Run& run : runs) {
    const Tensor& s = tensor(run.tensor);
    check(!s.image && !s.u8 && s.h == t.h && s.w == t.w && s.pad_left == t.pad_left && s.pad_right == t.pad_right,
          "tensor", "its channels lie in tensors of unlike shape");
    check(run.lane >= 0 && run.count > 0 && run.count <= s.c - run.lane, "tensor", "no such channel");
    t.c += run.count;
    for (int lane = run.lane, end = run.lane + run.count; lane < end;) {
      const int next = std::min(end, (lane / BLOCK + 1) * BLOCK);
      segments.push_back({s.at(lane / BLOCK, 0, 0) + lane % BLOCK - first, next - lane});
      lane = next;
    }
  }
  t.runs = std::make_shared<const std::vector<Segment>>(std::move(segments));
  tensors_.push_back(std::move(t));
  return static_cast<int>(tensors_.size()) - 1;
}

const Tensor& Program::source(int id) const {
  check(id >= 0 && static_cast<size_t>(id) < tensors_.size(), "program", "no such tensor");
  return tensors_[static_cast<size_t>(id)];
}

const Tensor& Program::tensor(int id) const {
  const Tensor& t = source(id);
  check(t.runs == nullptr, "program", "only a 1x1 convolution reads scattered channels");
  return t;
}

void Program::input(std::shared_ptr<const Picture> picture, bool one_reader) {
  if (one_reader) {
    picture_ = std::move(picture);
  } else {
    append(make_input(table_, picture));
  }
}

void Program::append(OpPtr op) {
  if (picture_ != nullptr) {
    const std::shared_ptr<const Picture> picture = std::move(picture_);
    op->reads_picture = op->read(picture);
    if (!op->reads_picture) append(make_input(table_, picture));
  }
  const auto pages = [](ptrdiff_t floats) { return (floats + 1023) / 1024 * 1024; };  // that threads do not share one
  scratch_floats_ = std::max(scratch_floats_, pages(op->scratch_floats()));
  shared_floats_ = std::max(shared_floats_, pages(op->shared_floats()));
  ops_.push_back(std::move(op));
}

void Program::finish(int input, int output) {
  check(picture_ == nullptr, "program", "nothing reads the picture");
  append(make_output(tensor(output)));
  for (size_t i = ops_.size(); i-- > 0;) {
    Op& op = *ops_[i];
    const Op* next = i + 1 < ops_.size() ? ops_[i + 1].get() : nullptr;
    if (next != nullptr) op.next_weights = next->weights;
    op.weights = op.first_weights();
    if (next != nullptr && !op.fetches_ahead()) op.weights = op.weights.then(&next->weights, MAX_AHEAD);
  }
  plan_far();
  tensor(input);
  input_ = input;
  output_ = output;
}

// Matrix-vector products take as long as their weights take to arrive, and weights that were read a run ago may be
// nowhere nearer than in memory. So the ops before them fetch them: the last one what is read first, so that it is
// still in the second-level cache then; the rest is at least in the third level.
void Program::plan_far() {
  std::vector<FarWeights> wanted;  // the last is read first
  for (size_t i = ops_.size(); i-- > 0;) {
    Op& op = *ops_[i];
    FarWeights weights = op.streamed_weights();
    ptrdiff_t room = max_far();
    for (const FarWeights& w : wanted) room -= w.left;
    weights.left = std::min(weights.left, room);
    if (weights.left > 0) wanted.push_back(weights);
    const ptrdiff_t most = op.far_lines();
    if (most <= 0 || wanted.empty()) continue;
    op.far = wanted.back();
    op.far.left = std::min(op.far.left, most);
    wanted.back().take(op.far.left);
    if (wanted.back().left <= 0) wanted.pop_back();
  }
}

void Program::run(const void* input, InputKind kind, ptrdiff_t n, float* output, int threads, double* times) const {
  if (output_ < 0) throw std::logic_error("Program.run before finish");
  const Tensor &in = this->input(), &out = this->output();
  const ptrdiff_t in_values = ptrdiff_t{in.c} * in.h * in.w, out_values = ptrdiff_t{out.c} * out.h * out.w;
  const ptrdiff_t in_bytes = in_values * (kind == InputKind::pixels_u8 ? 1 : static_cast<ptrdiff_t>(sizeof(float)));
  threads = std::min(std::max(threads, 1), MAX_THREADS);
  const ptrdiff_t shared_floats = threads > 1 ? shared_floats_ : 0;
  const ptrdiff_t floats = arena_floats_ + shared_floats + threads * scratch_floats_;
  const Arenas::Lease arena(*arenas_, static_cast<size_t>(floats) * sizeof(float));
  float* const shared = arena.data() + arena_floats_;
  float* const scratch = shared + shared_floats;
  run_parallel(threads, [&](Team& team) {
    const FlushDenormals flush;
    using Clock = std::chrono::steady_clock;
    auto last = Clock::now();
    for (ptrdiff_t i = 0; i < n; ++i) {
      FarWeights far;
      const Frame frame{arena.data(), scratch + team.index() * scratch_floats_,
                        shared,       static_cast<const char*>(input) + i * in_bytes,
                        kind,         output + i * out_values,
                        &far};
      for (size_t step = 0; step < ops_.size(); ++step) {
        far = ops_[step]->far.part(team.index(), team.count());
        ops_[step]->run(frame, team);
        if (times != nullptr && team.index() == 0) {
          const auto now = Clock::now();
          times[step] += std::chrono::duration<double>(now - last).count();
          last = now;
        }
      }
    }
  });
}

}  // namespace fmn
