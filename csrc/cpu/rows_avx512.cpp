// rows.h for AVX-512; the arithmetic is in rows_body.h.
#include <math.h>
#include <string.h>

#include "rows.h"

namespace octavo {
namespace {

#include "rows_body.h"

}  // namespace

const RowKernels row_kernels_avx512 = {rms_norm_rows, silu_and_mul_rows, attention_inputs_rows, layer_norm_rows,
                                       activate_rows};

}  // namespace octavo
