#include "runtime/u8_dispatch.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "runtime/cpu.h"

namespace fmn {

#define FMN_U8_TABLE(isa)       \
  namespace u8_##isa {          \
    extern const U8Table table; \
  }
FMN_U8_TABLE(scalar)
#ifdef FMN_HAVE_U8_AVX2
FMN_U8_TABLE(avx2)
#endif
#ifdef FMN_HAVE_U8_AVX_VNNI
FMN_U8_TABLE(avx_vnni)
#endif
#ifdef FMN_HAVE_U8_AVX512_VNNI
FMN_U8_TABLE(avx512_vnni)
#endif
#ifdef FMN_HAVE_U8_AVX512_VBMI
FMN_U8_TABLE(avx512_vbmi)
#endif
#ifdef FMN_HAVE_U8_NEON
FMN_U8_TABLE(neon)
#endif
#ifdef FMN_HAVE_U8_NEON_DOTPROD
FMN_U8_TABLE(neon_dotprod)
#endif
#ifdef FMN_HAVE_U8_NEON_I8MM
FMN_U8_TABLE(neon_i8mm)
#endif

namespace {

struct Candidate {
  const U8Table* table;
  bool (*supported)();
  const char* within;  // floating point ISAs that have all it needs
};

// Best first.
const Candidate CANDIDATES[] = {
#ifdef FMN_HAVE_U8_AVX512_VBMI
    {&u8_avx512_vbmi::table, has_avx512_vbmi, ""},
#endif
#ifdef FMN_HAVE_U8_AVX512_VNNI
    {&u8_avx512_vnni::table, has_avx512_vnni, ""},
#endif
#ifdef FMN_HAVE_U8_AVX_VNNI
    {&u8_avx_vnni::table, has_avx_vnni, ""},
#endif
#ifdef FMN_HAVE_U8_AVX2
    {&u8_avx2::table, has_avx2, "avx512 avx2"},
#endif
#ifdef FMN_HAVE_U8_NEON_I8MM
    {&u8_neon_i8mm::table, has_i8mm, ""},
#endif
#ifdef FMN_HAVE_U8_NEON_DOTPROD
    {&u8_neon_dotprod::table, has_dotprod, ""},
#endif
#ifdef FMN_HAVE_U8_NEON
    {&u8_neon::table, always, "neon"},
#endif
    {&u8_scalar::table, always, "scalar"},
};

bool has_word(const char* list, const std::string& word) {
  const std::string padded = std::string(" ") + list + " ";
  return padded.find(" " + word + " ") != std::string::npos;
}

}  // namespace

std::vector<std::string> supported_u8_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : CANDIDATES) {
    if (c.supported()) names.emplace_back(c.table->isa);
  }
  return names;
}

const U8Table& u8_table(const std::string& isa) {
  std::string wanted = isa;
  if (wanted.empty()) {
    const char* env = std::getenv("FASTMOBILENET_ISA");
    if (env != nullptr) wanted = env;
  }
  for (const Candidate& c : CANDIDATES) {
    if (c.supported() && (wanted.empty() || wanted == c.table->isa || has_word(c.within, wanted))) return *c.table;
  }
  std::string names;
  for (const std::string& name : supported_u8_isas()) names += (names.empty() ? "" : ", ") + name;
  throw std::invalid_argument("there are no quantised kernels for isa=" + wanted + " here; this machine has: " + names);
}

GemmU8Fn find_gemm_u8(const U8Table& table, int mr, int nb, int xs) {
  for (int i = 0; i < table.n_gemm; ++i) {
    const GemmU8Entry& e = table.gemm[i];
    if (e.mr == mr && e.nb == nb && e.xs == xs) return e.run;
  }
  return nullptr;
}

DwU8Fn find_dw_u8(const U8Table& table, int k, int stride) {
  for (int i = 0; i < table.n_dw; ++i) {
    if (table.dw[i].k == k && table.dw[i].stride == stride) return table.dw[i].run;
  }
  return nullptr;
}

double u8_peak_gops(const U8Table& table, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double best = 0;
  do {
    const auto t0 = Clock::now();
    const double ops = table.peak(20000);
    best = std::max(best, ops / std::chrono::duration<double>(Clock::now() - t0).count() / 1e9);
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  return best;
}

}  // namespace fmn
