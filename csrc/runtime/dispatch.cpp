#include "runtime/dispatch.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>

#include "runtime/cpu.h"
#include "runtime/u8_dispatch.h"

namespace fmn {

#ifdef FMN_HAVE_AVX512
namespace avx512 {
extern const KernelTable table;
}
#endif
#ifdef FMN_HAVE_AMX
namespace amx {
extern const AmxKernels table;
}
#endif
#ifdef FMN_HAVE_AVX2
namespace avx2 {
extern const KernelTable table;
}
#endif
#ifdef FMN_HAVE_NEON
namespace neon {
extern const KernelTable table;
}
#endif
namespace scalar {
extern const KernelTable table;
}

namespace {

struct Candidate {
  const KernelTable* table;
  bool (*supported)();
};

// Best first: the first supported one is used.
const Candidate CANDIDATES[] = {
#ifdef FMN_HAVE_AVX512
    {&avx512::table, has_avx512},
#endif
#ifdef FMN_HAVE_AVX2
    {&avx2::table, has_avx2},
#endif
#ifdef FMN_HAVE_NEON
    {&neon::table, always},  // part of every AArch64
#endif
    {&scalar::table, always},
};

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : CANDIDATES) {
    if (c.supported()) names.emplace_back(c.table->isa);
  }
  return names;
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : CANDIDATES) names.emplace_back(c.table->isa);
  return names;
}

const KernelTable& kernel_table(const std::string& isa) {
  std::string wanted = isa;
  std::string source = "isa";
  if (wanted.empty()) {
    const char* env = std::getenv("FASTMOBILENET_ISA");
    if (env != nullptr) wanted = env;
    source = "FASTMOBILENET_ISA";
  }
  // The name of a quantised ISA stands for the floating point one that it extends.
  const std::string given = wanted;
  const std::vector<std::string> quantised = supported_u8_isas();
  if (std::find(quantised.begin(), quantised.end(), wanted) != quantised.end()) {
    wanted = wanted.substr(0, wanted.find('_'));
    if (wanted == "avx") wanted = "avx2";
  }
  for (const Candidate& c : CANDIDATES) {
    if (c.supported() && (wanted.empty() || wanted == c.table->isa)) return *c.table;
  }
  std::string names;
  for (const std::string& name : supported_isas()) names += (names.empty() ? "" : ", ") + name;
  for (const std::string& name : quantised) {
    if (names.find(name) == std::string::npos) names += ", " + name;
  }
  throw std::invalid_argument(source + "=" + given + " is not supported here; this machine has: " + names);
}

const GemmEntry* find_gemm(const KernelTable& table, int mr, int nb, bool half, int xs, bool halves) {
  const GemmEntry* found = nullptr;
  for (int i = 0; i < table.n_gemm; ++i) {
    const GemmEntry& e = table.gemm[i];
    if (e.mr != mr || e.nb != nb || e.half != half || e.xs != xs) continue;
    if (e.halves == halves) return &e;
    if (!e.halves) found = &e;
  }
  return found;
}

DwFn find_dw(const KernelTable& table, int k, int stride) {
  for (int i = 0; i < table.n_dw; ++i) {
    if (table.dw[i].k == k && table.dw[i].stride == stride) return table.dw[i].run;
  }
  return nullptr;
}

int max_mr(const KernelTable& table, int nb, int xs) {
  int most = 0;
  for (int i = 0; i < table.n_gemm; ++i) {
    if (table.gemm[i].nb == nb && !table.gemm[i].half && table.gemm[i].xs == xs)
      most = std::max(most, table.gemm[i].mr);
  }
  return most;
}

const AmxKernels* amx_kernels() {
#ifdef FMN_HAVE_AMX
  return has_amx_bf16() ? &amx::table : nullptr;
#else
  return nullptr;
#endif
}

double peak_gflops(const KernelTable& table, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double best = 0;
  do {
    const auto t0 = Clock::now();
    const double flops = table.peak(20000);
    const double t = std::chrono::duration<double>(Clock::now() - t0).count();
    best = std::max(best, flops / t / 1e9);
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  return best;
}

}  // namespace fmn
