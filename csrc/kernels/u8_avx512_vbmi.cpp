// Quantised kernels for avx512_vbmi. 4, 8 and 2 words are the pixel strides of MobileNets: blocked maps at stride 1 and
// 2, and pictures at stride 2.
#include "kernels/u8_isa_avx512_vbmi.h"

#include "kernels/instantiate_u8.h"

#define FMN_U8_TILES                                                                            \
  FMN_U8_ROWS_1_14(1, 4), FMN_U8_ROWS_1_7(2, 4), FMN_U8_ROWS_1_14(1, 8), FMN_U8_ROWS_1_7(2, 8), \
      FMN_U8_ROWS_1_14(1, 2), FMN_U8_ROWS_1_7(2, 2), FMN_U8_ROWS_1_6(1, 0), FMN_U8_ROWS_1_6(2, 0)

FMN_DEFINE_U8_TABLE(avx512_vbmi)
