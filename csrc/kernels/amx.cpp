// The kernels for AMX (tiles of bfloat16), beside those for AVX-512, whose table is that of AMX otherwise.
#include "kernels/isa_avx512.h"

#include "kernels/amx.h"

namespace fmn::amx {

extern const AmxKernels table;
const AmxKernels table = {split_amx, {gemm_amx<1>, gemm_amx<2>}};

}  // namespace fmn::amx
