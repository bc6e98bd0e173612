// Builds the table of one ISA from the templates. Included once by each <isa>.cpp after its traits; the .cpp
// defines FMN_GEMM_TILES and FMN_DW_ROWS. The table is constant data: making it executes nothing.
#pragma once

#include "kernels/dwconv.h"
#include "kernels/eltwise.h"
#include "kernels/gemm.h"

#define FMN_T(MR, NB, XS) \
  { MR, NB, XS, gemm_tile<MR, NB, XS> }
#define FMN_ROWS_1_2(NB, XS) FMN_T(1, NB, XS), FMN_T(2, NB, XS)
#define FMN_ROWS_1_6(NB, XS) \
  FMN_ROWS_1_2(NB, XS), FMN_T(3, NB, XS), FMN_T(4, NB, XS), FMN_T(5, NB, XS), FMN_T(6, NB, XS)
#define FMN_ROWS_1_14(NB, XS)                                                                                       \
  FMN_ROWS_1_6(NB, XS), FMN_T(7, NB, XS), FMN_T(8, NB, XS), FMN_T(9, NB, XS), FMN_T(10, NB, XS), FMN_T(11, NB, XS), \
      FMN_T(12, NB, XS), FMN_T(13, NB, XS), FMN_T(14, NB, XS)

#define FMN_DEFINE_TABLE(isa)                                                                                        \
  namespace fmn {                                                                                                    \
  namespace isa {                                                                                                    \
  namespace {                                                                                                        \
  const GemmEntry gemm_entries[] = {FMN_GEMM_TILES};                                                                 \
  const DwEntry dw_entries[] = {                                                                                     \
      {3, 1, dw<3, 1, FMN_DW_ROWS>}, {3, 2, dw<3, 2, 1>}, {5, 1, dw<5, 1, 1>}, {5, 2, dw<5, 2, 1>}, {0, 0, dw_any}}; \
  }                                                                                                                  \
  extern const KernelTable table;                                                                                    \
  const KernelTable table = {#isa,         PANEL_BLOCKS,                                                             \
                             gemm_entries, sizeof(gemm_entries) / sizeof(gemm_entries[0]),                           \
                             dw_entries,   sizeof(dw_entries) / sizeof(dw_entries[0]),                               \
                             gemv,         global_avg_pool,                                                          \
                             add,          normalize_u8,                                                             \
                             interleave3,  peak};                                                                    \
  }                                                                                                                  \
  }
