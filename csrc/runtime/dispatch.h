// Which kernel tables this build has, which of them this CPU runs, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "runtime/kernel_table.h"

namespace fmn {

// Names of all ISAs in this build that the CPU and the operating system support, best first.
std::vector<std::string> supported_isas();

// Names of all ISAs in this build, supported here or not, best first.
std::vector<std::string> built_isas();

// The table of a supported ISA. An empty name means FASTMOBILENET_ISA, or else the best.
// Throws std::invalid_argument that lists the supported names.
const KernelTable& kernel_table(const std::string& isa = "");

// The kernel of a tile, or null if the table has none.
// halves: the one in halves, if there is one.
const GemmEntry* find_gemm(const KernelTable& table, int mr, int nb, bool half, int xs, bool halves);
DwFn find_dw(const KernelTable& table, int k, int stride);

// The most pixels of a tile with nb blocks and pixel stride xs; 0 if there is none.
int max_mr(const KernelTable& table, int nb, int xs);

// The kernels of AMX, or null where this build or this CPU has none.
const AmxKernels* amx_kernels();

// FMA rate of one core in GFLOP/s: best burst within about `seconds`.
double peak_gflops(const KernelTable& table, double seconds);

}  // namespace fmn
