// Builds the table of quantised kernels of one ISA from the templates. Included once by each u8_<isa>.cpp after its
// traits.
#pragma once

#include "kernels/dwconv_u8.h"
#include "kernels/eltwise_u8.h"
#include "kernels/gemm_u8.h"

#define FMN_U8(MR, NB, XS) \
  { MR, NB, XS, gemm_u8_kernel<MR, NB, XS>() }
#define FMN_U8_ROWS_1_2(NB, XS) FMN_U8(1, NB, XS), FMN_U8(2, NB, XS)
#define FMN_U8_ROWS_1_4(NB, XS) FMN_U8_ROWS_1_2(NB, XS), FMN_U8(3, NB, XS), FMN_U8(4, NB, XS)
#define FMN_U8_ROWS_1_5(NB, XS) FMN_U8_ROWS_1_4(NB, XS), FMN_U8(5, NB, XS)
#define FMN_U8_ROWS_1_6(NB, XS) FMN_U8_ROWS_1_4(NB, XS), FMN_U8(5, NB, XS), FMN_U8(6, NB, XS)
#define FMN_U8_ROWS_1_7(NB, XS) FMN_U8_ROWS_1_6(NB, XS), FMN_U8(7, NB, XS)
#define FMN_U8_ROWS_1_14(NB, XS)                                                                         \
  FMN_U8_ROWS_1_7(NB, XS), FMN_U8(8, NB, XS), FMN_U8(9, NB, XS), FMN_U8(10, NB, XS), FMN_U8(11, NB, XS), \
      FMN_U8(12, NB, XS), FMN_U8(13, NB, XS), FMN_U8(14, NB, XS)

#ifndef FMN_U8_PEAK
#define FMN_U8_PEAK u8_peak
#endif
#ifndef FMN_U8_DW
#define FMN_U8_DW dw_u8
#endif

#define FMN_DEFINE_U8_TABLE(isa)                                           \
  namespace fmn {                                                          \
  namespace u8_##isa {                                                     \
    namespace {                                                            \
    const GemmU8Entry gemm_entries[] = {FMN_U8_TILES};                     \
    const DwU8Entry dw_entries[] = {{3, 1, FMN_U8_DW<3, 1>},               \
                                    {3, 2, FMN_U8_DW<3, 2>},               \
                                    {5, 1, FMN_U8_DW<5, 1>},               \
                                    {5, 2, FMN_U8_DW<5, 2>},               \
                                    {0, 0, dw_u8_any}};                    \
    }                                                                      \
    extern const U8Table table;                                            \
    const U8Table table = {#isa,                                           \
                           PANEL_BLOCKS,                                   \
                           OFFSET,                                         \
                           NEEDS_127,                                      \
                           PAIRWISE,                                       \
                           gemm_entries,                                   \
                           sizeof(gemm_entries) / sizeof(gemm_entries[0]), \
                           dw_entries,                                     \
                           sizeof(dw_entries) / sizeof(dw_entries[0]),     \
                           add_u8,                                         \
                           mul_u8,                                         \
                           add_floats_u8,                                  \
                           lookup_u8,                                      \
                           sum_u8,                                         \
                           rgb_u8,                                         \
                           FMN_U8_PEAK};                                   \
  }                                                                        \
  }
