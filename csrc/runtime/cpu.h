// What the CPU and the operating system support.
#pragma once

namespace fmn {

inline bool always() { return true; }

// x86-64; false elsewhere.
bool has_avx2();    // and FMA
bool has_avx512();  // F, DQ, BW, VL
bool has_avx_vnni();
bool has_avx512_vnni();
bool has_avx512_vbmi();  // and VNNI

// AArch64; false elsewhere, and where the system does not tell.
bool has_dotprod();
bool has_i8mm();

}  // namespace fmn
