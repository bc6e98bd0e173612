// Quantised kernels for neon. 4, 8 and 2 words are the pixel strides of MobileNets: blocked maps at stride 1 and 2, and
// pictures at stride 2.
#include "kernels/u8_isa_neon.h"

#include "kernels/instantiate_u8.h"

#define FMN_U8_TILES FMN_U8_ROWS_1_6(1, 4), FMN_U8_ROWS_1_6(1, 8), FMN_U8_ROWS_1_6(1, 2), FMN_U8_ROWS_1_6(1, 0)

FMN_DEFINE_U8_TABLE(neon)
