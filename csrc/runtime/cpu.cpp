#include "runtime/cpu.h"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace fmn {

#if defined(__x86_64__) || defined(_M_X64)
namespace {

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

// Linux saves the tiles (8 KB) of processes only that have asked for them.
bool allow_tiles() {
#if defined(__linux__)
  constexpr long REQUEST_PERMISSION = 0x1023,
                 TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, of arch/x86/include/uapi/asm/prctl.h
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

// Asked once: in a virtual machine CPUID goes to the hypervisor, and those of has_avx512 take 40 us. Asked again for
// every layer, they were a fifth of the time in which a model is loaded.
}  // namespace

bool has_avx2() {
  static const bool yes = [] {
    const bool ymm = (xcr0() & 0x6) == 0x6;
    return ymm && (cpuid(1, 0).ecx & (1u << 12)) && (cpuid(7, 0).ebx & (1u << 5));  // FMA, AVX2
  }();
  return yes;
}

bool has_avx512() {
  static const bool yes = [] {
    const bool zmm = (xcr0() & 0xe6) == 0xe6;
    const unsigned need = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
    return zmm && has_avx2() && (cpuid(7, 0).ebx & need) == need;
  }();
  return yes;
}

bool has_amx_bf16() {
  static const bool yes = [] {
    const unsigned need = (1u << 22) | (1u << 24);  // BF16, TILE
    return has_avx512() && (xcr0() & 0x60000) == 0x60000 && (cpuid(7, 0).edx & need) == need && allow_tiles();
  }();
  return yes;
}

bool has_avx_vnni() {
  static const bool yes = has_avx2() && (cpuid(7, 1).eax & (1u << 4));
  return yes;
}

bool has_avx512_vnni() {
  static const bool yes = has_avx512() && (cpuid(7, 0).ecx & (1u << 11));
  return yes;
}

bool has_avx512_vbmi() {
  static const bool yes = has_avx512_vnni() && (cpuid(7, 0).ecx & (1u << 1));
  return yes;
}

bool adds_apart() {
  static const bool amd = [] {
    const CpuId name = cpuid(0, 0);
    return name.ebx == 0x68747541 && name.edx == 0x69746e65 && name.ecx == 0x444d4163;  // AuthenticAMD
  }();
  return amd;
}

bool adds_beside_multiplies() {
  static const bool yes = [] {
    const unsigned version = cpuid(1, 0).eax, family = ((version >> 8) & 0xf) + ((version >> 20) & 0xff);
    return adds_apart() && family == 0x19 && has_avx512();
  }();
  return yes;
}
#else
bool adds_apart() { return true; }
bool adds_beside_multiplies() { return false; }
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_amx_bf16() { return false; }
bool has_avx_vnni() { return false; }
bool has_avx512_vnni() { return false; }
bool has_avx512_vbmi() { return false; }
#endif

#if defined(__aarch64__) && defined(__linux__)
// The bits of HWCAP and HWCAP2; older headers have no names for them.
bool has_dotprod() { return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; }
bool has_i8mm() { return has_dotprod() && (getauxval(AT_HWCAP2) & (1ul << 13)) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
namespace {
bool feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
}  // namespace
bool has_dotprod() { return feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && feature("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

}  // namespace fmn
