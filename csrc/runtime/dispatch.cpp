#include "runtime/dispatch.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace fmn {

#ifdef FMN_HAVE_AVX512
namespace avx512 {
extern const KernelTable table;
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

#if defined(__x86_64__) || defined(_M_X64)
struct CpuId {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuId cpuid(unsigned leaf, unsigned subleaf) {
  CpuId r;
#if defined(_MSC_VER)
  int regs[4];
  __cpuid(regs, 0);
  if (static_cast<unsigned>(regs[0]) < leaf) return r;
  __cpuidex(regs, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<unsigned>(regs[0]), static_cast<unsigned>(regs[1]), static_cast<unsigned>(regs[2]),
       static_cast<unsigned>(regs[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros if there is no such leaf
#endif
  return r;
}

// XCR0: which registers the operating system saves. A CPU may have AVX-512 and the system not.
unsigned long long xcr0() {
  if (!(cpuid(1, 0).ecx & (1u << 27))) return 0;  // OSXSAVE
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  unsigned lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<unsigned long long>(hi) << 32) | lo;
#endif
}

[[maybe_unused]] bool has_avx2() {
  const bool ymm = (xcr0() & 0x6) == 0x6;
  return ymm && (cpuid(1, 0).ecx & (1u << 12)) && (cpuid(7, 0).ebx & (1u << 5));  // FMA, AVX2
}

[[maybe_unused]] bool has_avx512() {
  const bool zmm = (xcr0() & 0xe6) == 0xe6;
  const unsigned need = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  return zmm && has_avx2() && (cpuid(7, 0).ebx & need) == need;
}
#endif

[[maybe_unused]] bool always() { return true; }

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
  for (const Candidate& c : CANDIDATES) {
    if (c.supported() && (wanted.empty() || wanted == c.table->isa)) return *c.table;
  }
  std::string names;
  for (const std::string& name : supported_isas()) names += (names.empty() ? "" : ", ") + name;
  throw std::invalid_argument(source + "=" + wanted + " is not supported here; this machine has: " + names);
}

GemmFn find_gemm(const KernelTable& table, int mr, int nb, bool half, int xs) {
  for (int i = 0; i < table.n_gemm; ++i) {
    const GemmEntry& e = table.gemm[i];
    if (e.mr == mr && e.nb == nb && e.half == half && e.xs == xs) return e.run;
  }
  return nullptr;
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
