// The Python face of the kernels that work row by row.
#include <nanobind/stl/string.h>

#include "bind.h"
#include "rows.h"

namespace octavo::bind {
namespace {

const RowKernels& find_rows(const std::string& isa) { return *find_kernel(isa, row_kernels); }

void rms_norm(uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t out, int64_t rows, int features, double eps,
              int num_threads, const std::string& isa) {
  const RmsNorm op{pointer<const float>(x), pointer<float>(residual), pointer<const float>(weight),
                           pointer<float>(out), rows, features, static_cast<float>(eps)};
  const RowKernels& kernels = find_rows(isa);
  run("rms_norm", [op, &kernels, num_threads] { octavo::rms_norm(op, kernels, num_threads); });
}

void silu_and_mul(uintptr_t x, uintptr_t out, int64_t rows, int features, int num_threads, const std::string& isa) {
  const SiluAndMul op{pointer<const float>(x), pointer<float>(out), rows, features};
  const RowKernels& kernels = find_rows(isa);
  run("silu_and_mul", [op, &kernels, num_threads] { octavo::silu_and_mul(op, kernels, num_threads); });
}

void attention_inputs(uintptr_t qkv, uintptr_t q_weight, uintptr_t k_weight, uintptr_t cos, uintptr_t sin,
                      uintptr_t slots, uintptr_t q_out, int cache_dtype, uintptr_t k_cache, uintptr_t v_cache,
                      uintptr_t k_scales, uintptr_t v_scales, int64_t num_tokens, int num_heads, int num_kv_heads,
                      int head_dim, int num_rotated, double eps, int num_threads, const std::string& isa) {
  require(cache_dtype >= 0 && cache_dtype <= int(DType::int8), "cache_dtype: not one of attention.h");
  require(cache_dtype != int(DType::int8) || (k_scales != 0 && v_scales != 0), "k_scales, v_scales: int8 needs them");
  require(head_dim <= kMaxHeadDim && num_rotated <= head_dim, "head_dim: at most 1024, and all rotated within");
  const AttentionInputs op{pointer<const float>(qkv), pointer<const float>(q_weight),
                                   pointer<const float>(k_weight), pointer<const float>(cos),
                                   pointer<const float>(sin), pointer<const int64_t>(slots), pointer<float>(q_out),
                                   DType(cache_dtype), pointer<void>(k_cache), pointer<void>(v_cache),
                                   pointer<float>(k_scales), pointer<float>(v_scales), num_tokens, num_heads,
                                   num_kv_heads, head_dim, num_rotated, static_cast<float>(eps)};
  const RowKernels& kernels = find_rows(isa);
  run("attention_inputs", [op, &kernels, num_threads] { octavo::attention_inputs(op, kernels, num_threads); });
}

void layer_norm(uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t bias, uintptr_t out, int64_t rows,
                int features, double eps, int num_threads, const std::string& isa) {
  const LayerNorm op{pointer<const float>(x), pointer<float>(residual), pointer<const float>(weight),
                     pointer<const float>(bias), pointer<float>(out), rows, features, static_cast<float>(eps)};
  const RowKernels& kernels = find_rows(isa);
  run("layer_norm", [op, &kernels, num_threads] { octavo::layer_norm(op, kernels, num_threads); });
}

void activate(uintptr_t x, uintptr_t out, int64_t rows, int features, int curve, bool is_gated, int num_threads,
              const std::string& isa) {
  require(curve >= 0 && curve <= int(Curve::relu), "curve: not one of rows.h");
  const Activate op{pointer<const float>(x), pointer<float>(out), rows, features, Curve(curve), is_gated};
  const RowKernels& kernels = find_rows(isa);
  run("activate", [op, &kernels, num_threads] { octavo::activate(op, kernels, num_threads); });
}

}  // namespace

void add_rows(nb::module_& m) {
  m.def("rms_norm", &rms_norm, "RMS norm of rows, with a residual sum where there is one.");
  m.def("silu_and_mul", &silu_and_mul, "silu(first half) * second half of rows.");
  m.def("layer_norm", &layer_norm, "Layer norm of rows, with a residual sum where there is one.");
  m.def("activate", &activate, "A curve of rows, or of their first half times the second.");
  m.def("attention_inputs", &attention_inputs, "Norm, rotate and store projected rows.");
}

}  // namespace octavo::bind
