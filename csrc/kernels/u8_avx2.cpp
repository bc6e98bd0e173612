// Quantised kernels for avx2.
#include "kernels/u8_isa_avx2.h"

#include "kernels/dwconv_u8_pairs.h"
#include "kernels/gemm_u8_signs.h"

#define FMN_U8_PEAK signs_peak
#define FMN_U8_DW dw_u8_pairs
#include "kernels/instantiate_u8.h"

// One kernel for all widths of a panel.
#define FMN_U8_SIGNS(MR) \
  { MR, 1, 0, gemm_u8_signs<MR> }
#define FMN_U8_TILES FMN_U8_SIGNS(1), FMN_U8_SIGNS(2), FMN_U8_SIGNS(3), FMN_U8_SIGNS(4), FMN_U8_SIGNS(5)

FMN_DEFINE_U8_TABLE(avx2)
