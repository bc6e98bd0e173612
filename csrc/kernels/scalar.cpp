// The kernels for any CPU, built with the baseline flags.
#include "kernels/isa_scalar.h"

#include "kernels/instantiate.h"

#define FMN_GEMM_TILES FMN_ROWS_1_2(1, 16), FMN_ROWS_1_2(1, 0), FMN_HALF_ROWS_1_2(16), FMN_HALF_ROWS_1_2(0)
#define FMN_DW_ROWS 1
#define FMN_INNER \
  {}

FMN_DEFINE_TABLE(scalar)
