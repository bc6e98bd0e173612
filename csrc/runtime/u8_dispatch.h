// Which quantised kernels run here.
#pragma once

#include <string>
#include <vector>

#include "runtime/u8_table.h"

namespace fmn {

// Names of the quantised ISAs that the CPU supports, best first.
std::vector<std::string> supported_u8_isas();

// The table of a quantised ISA; or for the name of a floating point ISA (dispatch.h) the best one that needs no more
// than that. An empty name means FASTMOBILENET_ISA, or else the best. Throws std::invalid_argument.
const U8Table& u8_table(const std::string& isa = "");

// Null if the table has none.
GemmU8Fn find_gemm_u8(const U8Table& table, int mr, int nb, int xs);
DwU8Fn find_dw_u8(const U8Table& table, int k, int stride);

// Multiply-add rate of one core in Gop/s: best burst within about `seconds`.
double u8_peak_gops(const U8Table& table, double seconds);

}  // namespace fmn
