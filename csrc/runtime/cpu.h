// What the CPU and the operating system support.
#pragma once

namespace fmn {

inline bool always() { return true; }

// x86-64; false elsewhere.
bool has_avx2();    // and FMA
bool has_avx512();  // F, DQ, BW, VL
// Whether the core does a multiply-add, an addition and the loads of three values of A in a cycle, all of 16 lanes:
// Zen 4 (of family 19h the only one with AVX-512). Others add where they multiply, or load too little (Zen 5).
bool adds_beside_multiplies();
// Whether additions have units of their own at all (AMD's Zen), so that Strassen's product gains. Not on CPUs of Intel,
// where they take the place of multiply-adds; unknown on AArch64, where it is taken for true.
bool adds_apart();
// Whether large tiles of so many blocks are faster in halves (kernels/overlapped.h), in which every multiply-add takes
// its value of A from memory. For two blocks that is one load more than otherwise, which is free where a core does one
// multiply-add in a cycle and two loads, but not where it does two of each (14x32: 0.84 of the peak instead of 0.95 on
// Granite Rapids).
inline bool prefers_halves(int blocks) { return blocks == 1 || adds_beside_multiplies(); }
// Whether its own prefetchers are faster without ours where a stream comes from the third-level cache or memory: Zen 4.
inline bool streams_faster_alone() { return adds_beside_multiplies(); }
bool has_amx_bf16();  // and AVX-512; asks the operating system for the tiles, of which a process gets none otherwise
bool has_avx_vnni();
bool has_avx512_vnni();
bool has_avx512_vbmi();  // and VNNI

// AArch64; false elsewhere, and where the system does not tell.
bool has_dotprod();
bool has_i8mm();

}  // namespace fmn
