// The kernels for AVX2 with FMA. 16, 32 and 6 are the pixel strides of
// MobileNets: blocked maps at stride 1 and 2, and RGB at stride 2.
#include "kernels/isa_avx2.h"

#include "kernels/instantiate.h"

#define FMN_GEMM_TILES                                                                                     \
  FMN_ROWS_1_6(1, 16), FMN_ROWS_1_6(1, 32), FMN_HALF_ROWS_1_6(32), FMN_ROWS_1_6(1, 6), FMN_ROWS_1_6(1, 0), \
      FMN_HALF_ROWS_1_6(16), FMN_HALF_ROWS_1_6(6), FMN_HALF_ROWS_1_6(0)
#define FMN_DW_ROWS 1
#define FMN_INNER \
  {}

FMN_DEFINE_TABLE(avx2)
