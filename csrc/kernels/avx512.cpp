// The kernels for AVX-512. 16, 32 and 6 are the pixel strides of MobileNets: blocked maps at stride 1 and 2, and RGB at
// stride 2.
#include "kernels/isa_avx512.h"

#include "kernels/gemm_pairs.h"
#include "kernels/inner.h"
#include "kernels/instantiate.h"

#define FMN_GEMM_TILES                                                                                               \
  FMN_ROWS_1_14(1, 16), FMN_ROWS_15_28(1, 16), FMN_ROWS_1_14(2, 16), FMN_ROWS_1_14(1, 32), FMN_ROWS_15_28(1, 32),    \
      FMN_ROWS_1_14(2, 32), FMN_PAIRS_ROWS_1_14(32), FMN_ROWS_1_14(1, 6), FMN_ROWS_15_28(1, 6), FMN_ROWS_1_14(2, 6), \
      FMN_ROWS_1_6(1, 0), FMN_ROWS_1_6(2, 0), FMN_PAIRS_ROWS_1_14(16), FMN_PAIRS_ROWS_1_14(6), FMN_PAIRS_ROWS_1_6(0)
#define FMN_DW_ROWS 2
#define FMN_INNER FMN_INNER_ROWS_1_10

FMN_DEFINE_TABLE(avx512)
