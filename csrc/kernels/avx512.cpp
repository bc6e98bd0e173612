// The kernels for AVX-512. 16, 32 and 6 are the pixel strides of MobileNets: blocked maps at stride 1 and 2, and RGB at
// stride 2.
#include "kernels/isa_avx512.h"

#include "kernels/gemm_pairs.h"
#include "kernels/inner.h"
#include "kernels/instantiate.h"
#include "kernels/overlapped.h"

#define FMN_LARGE(MR, NB, XS) \
  { MR, NB, false, XS, gemm_large<MR, NB, XS>, true, true }
#define FMN_LARGE_7_14(XS)                                                                                   \
  FMN_LARGE(7, 2, XS), FMN_LARGE(8, 2, XS), FMN_LARGE(9, 2, XS), FMN_LARGE(10, 2, XS), FMN_LARGE(11, 2, XS), \
      FMN_LARGE(12, 2, XS), FMN_LARGE(13, 2, XS), FMN_LARGE(14, 2, XS)
#define FMN_LARGE_14_28(XS)                                                                                         \
  FMN_LARGE(14, 1, XS), FMN_LARGE(15, 1, XS), FMN_LARGE(16, 1, XS), FMN_LARGE(17, 1, XS), FMN_LARGE(18, 1, XS),     \
      FMN_LARGE(19, 1, XS), FMN_LARGE(20, 1, XS), FMN_LARGE(21, 1, XS), FMN_LARGE(22, 1, XS), FMN_LARGE(23, 1, XS), \
      FMN_LARGE(24, 1, XS), FMN_LARGE(25, 1, XS), FMN_LARGE(26, 1, XS), FMN_LARGE(27, 1, XS), FMN_LARGE(28, 1, XS)
#define FMN_GEMM_TILES                                                                                                \
  FMN_ROWS_1_14(1, 16), FMN_ROWS_15_28(1, 16), FMN_ROWS_1_14(2, 16), FMN_ROWS_1_14(1, 32), FMN_ROWS_15_28(1, 32),     \
      FMN_ROWS_1_14(2, 32), FMN_PAIRS_ROWS_1_14(32), FMN_ROWS_1_14(1, 6), FMN_ROWS_15_28(1, 6), FMN_ROWS_1_14(2, 6),  \
      FMN_ROWS_1_6(1, 0), FMN_ROWS_1_6(2, 0), FMN_PAIRS_ROWS_1_14(16), FMN_PAIRS_ROWS_1_14(6), FMN_PAIRS_ROWS_1_6(0), \
      FMN_LARGE_14_28(16), FMN_LARGE_7_14(16), FMN_LARGE_14_28(6), FMN_LARGE_7_14(6)
#define FMN_DW_ROWS 2
#define FMN_INNER FMN_INNER_ROWS_1_10

FMN_DEFINE_TABLE(avx512)
