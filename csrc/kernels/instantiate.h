// Builds the table of one ISA from the templates. Included once by each <isa>.cpp after its traits; the .cpp
// defines FMN_GEMM_TILES and FMN_DW_ROWS. The table is constant data: making it executes nothing.
#pragma once

#include "kernels/dwconv.h"
#include "kernels/eltwise.h"
#include "kernels/gather.h"
#include "kernels/gemm.h"
#include "kernels/gemv.h"
#include "kernels/gemv24.h"
#include "kernels/pool.h"
#include "kernels/strassen.h"
#include "kernels/winograd.h"

#define FMN_T(MR, NB, XS) \
  { MR, NB, false, XS, gemm_tile<MR, NB, XS, false>, true, false }
#define FMN_HALF_T(MR, NB, XS) \
  { MR, NB, true, XS, gemm_tile<MR, NB, XS, true>, true, false }
#define FMN_PAIRS_T(MR, XS) \
  { MR, 2, true, XS, gemm_pairs<MR, XS>, false, false }
#define FMN_HALF_ROWS_1_2(XS) FMN_HALF_T(1, 1, XS), FMN_HALF_T(2, 1, XS)
#define FMN_HALF_ROWS_1_6(XS) \
  FMN_HALF_ROWS_1_2(XS), FMN_HALF_T(3, 1, XS), FMN_HALF_T(4, 1, XS), FMN_HALF_T(5, 1, XS), FMN_HALF_T(6, 1, XS)
#define FMN_PAIRS_ROWS_1_6(XS) \
  FMN_PAIRS_T(1, XS), FMN_PAIRS_T(2, XS), FMN_PAIRS_T(3, XS), FMN_PAIRS_T(4, XS), FMN_PAIRS_T(5, XS), FMN_PAIRS_T(6, XS)
#define FMN_PAIRS_ROWS_1_14(XS)                                                                            \
  FMN_PAIRS_ROWS_1_6(XS), FMN_PAIRS_T(7, XS), FMN_PAIRS_T(8, XS), FMN_PAIRS_T(9, XS), FMN_PAIRS_T(10, XS), \
      FMN_PAIRS_T(11, XS), FMN_PAIRS_T(12, XS), FMN_PAIRS_T(13, XS), FMN_PAIRS_T(14, XS)
#define FMN_ROWS_1_2(NB, XS) FMN_T(1, NB, XS), FMN_T(2, NB, XS)
#define FMN_ROWS_1_6(NB, XS) \
  FMN_ROWS_1_2(NB, XS), FMN_T(3, NB, XS), FMN_T(4, NB, XS), FMN_T(5, NB, XS), FMN_T(6, NB, XS)
#define FMN_ROWS_1_13(NB, XS)                                                                                       \
  FMN_ROWS_1_6(NB, XS), FMN_T(7, NB, XS), FMN_T(8, NB, XS), FMN_T(9, NB, XS), FMN_T(10, NB, XS), FMN_T(11, NB, XS), \
      FMN_T(12, NB, XS), FMN_T(13, NB, XS)
#define FMN_ROWS_1_14(NB, XS) FMN_ROWS_1_13(NB, XS), FMN_T(14, NB, XS)

#define FMN_ROWS_15_28(NB, XS)                                                                                      \
  FMN_T(15, NB, XS), FMN_T(16, NB, XS), FMN_T(17, NB, XS), FMN_T(18, NB, XS), FMN_T(19, NB, XS), FMN_T(20, NB, XS), \
      FMN_T(21, NB, XS), FMN_T(22, NB, XS), FMN_T(23, NB, XS), FMN_T(24, NB, XS), FMN_T(25, NB, XS),                \
      FMN_T(26, NB, XS), FMN_T(27, NB, XS), FMN_T(28, NB, XS)

#define FMN_I(MR)                                                                     \
  {MR, 1, true, gemm_inner<MR, 1, true>}, {MR, 1, false, gemm_inner<MR, 1, false>}, { \
    MR, 2, false, gemm_inner<MR, 2, false>                                            \
  }
#define FMN_INNER_ROWS_1_10                                                                                \
  {                                                                                                        \
    {FMN_I(1), FMN_I(2), FMN_I(3), FMN_I(4), FMN_I(5), FMN_I(6), FMN_I(7), FMN_I(8), FMN_I(9), FMN_I(10)}, \
        inner_pixels                                                                                       \
  }

#define FMN_DEFINE_TABLE(isa)                                                \
  namespace fmn {                                                            \
  namespace isa {                                                            \
  namespace {                                                                \
  const GemmEntry gemm_entries[] = {FMN_GEMM_TILES};                         \
  const DwEntry dw_entries[] = {{3, 1, dw<3, 1, FMN_DW_ROWS>},               \
                                {3, 2, dw<3, 2, FMN_DW_ROWS>},               \
                                {5, 1, dw<5, 1, FMN_DW_ROWS>},               \
                                {5, 2, dw<5, 2, FMN_DW_ROWS>},               \
                                {0, 0, dw_any}};                             \
  }                                                                          \
  extern const KernelTable table;                                            \
  const KernelTable table = {#isa,                                           \
                             PANEL_BLOCKS,                                   \
                             HALF_PANEL_BLOCKS,                              \
                             gemm_entries,                                   \
                             sizeof(gemm_entries) / sizeof(gemm_entries[0]), \
                             dw_entries,                                     \
                             sizeof(dw_entries) / sizeof(dw_entries[0]),     \
                             {winograd_input, winograd_input_s2},            \
                             {winograd_output, winograd_output_s2},          \
                             gemv,                                           \
                             gemv24,                                         \
                             global_avg_pool,                                \
                             pool_max,                                       \
                             pool_mean,                                      \
                             add,                                            \
                             mul,                                            \
                             gather,                                         \
                             FMN_INNER,                                      \
                             strassen_sums,                                  \
                             strassen_last,                                  \
                             normalize<uint8_t>,                             \
                             normalize<float>,                               \
                             interleave3,                                    \
                             peak};                                          \
  }                                                                          \
  }
