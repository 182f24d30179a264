// What is done to each row by itself: norms, rotation, activation. float32. No Python, no torch.
//
// Sums run in sixteen lanes, folded in one order, so that a row has the same bits alone, in any batch, on any number of
// threads and under every instruction set.
#pragma once

#include <cstdint>

#include "attention.h"  // DType
#include "isa.h"

namespace octavo {

constexpr int kMaxHeadDim = 1024;

// out = x / sqrt(mean(x^2) + eps) * weight; with a residual, x is added to it first and the sum is normed.
struct RmsNorm {
  const float* x;       // [N, D]
  float* residual;      // [N, D] or null; becomes x + residual
  const float* weight;  // [D]
  float* out;           // [N, D]
  int64_t num_rows;
  int num_features;
  float eps;
};

// out = silu(first half) * second half.
struct SiluAndMul {
  const float* x;  // [N, 2 D]
  float* out;      // [N, D]
  int64_t num_rows;
  int num_features;  // D
};

// out = (x - mean) / sqrt(variance + eps) * weight + bias; with a residual, x is added to it first and the sum is normed.
struct LayerNorm {
  const float* x;       // [N, D]
  float* residual;      // [N, D] or null; becomes x + residual
  const float* weight;  // [D]
  const float* bias;    // [D] or null
  float* out;           // [N, D]
  int64_t num_rows;
  int num_features;
  float eps;
};

enum class Curve : int { gelu = 0, gelu_tanh = 1, relu = 2 };

// out = curve(x), or, gated, curve(first half) * second half.
struct Activate {
  const float* x;  // [N, D], gated [N, 2 D]
  float* out;      // [N, D]
  int64_t num_rows;
  int num_features;  // D
  Curve curve;
  bool is_gated;
};

// Splits projected rows into queries, keys and values; norms queries and keys per head where there are weights; rotates
// them by position (neox pairs: feature i with i + K, features from 2 K on unchanged); stores keys and values
// in the cache's dtype.
struct AttentionInputs {
  const float* qkv;       // [T, (H + 2 G) D]
  const float* q_weight;  // [D] or null
  const float* k_weight;  // [D] or null
  const float* cos;       // [T, K]
  const float* sin;       // [T, K]
  const int64_t* slots;   // [T]: block * kBlockSize + offset
  float* q_out;           // [T, H, D]
  DType cache_dtype;
  void* k_cache;          // [slots, G, D]
  void* v_cache;          // [slots, G, D]
  float* k_scales;        // [slots, G] with int8: the largest magnitude / 127
  float* v_scales;        // [slots, G] with int8
  int64_t num_tokens;
  int num_heads;
  int num_kv_heads;
  int head_dim;
  int num_rotated;  // 2 K
  float eps;
};

// Kernels of one instruction set; each works on rows first .. last.
struct RowKernels {
  void (*rms_norm)(const RmsNorm&, int64_t first, int64_t last);
  void (*silu_and_mul)(const SiluAndMul&, int64_t first, int64_t last);
  void (*attention_inputs)(const AttentionInputs&, int64_t first, int64_t last);
  void (*layer_norm)(const LayerNorm&, int64_t first, int64_t last);
  void (*activate)(const Activate&, int64_t first, int64_t last);
};

// Null if there are none in this build.
const RowKernels* row_kernels(Isa isa);

// On at most `num_threads` threads; little work stays on the caller's.
void rms_norm(const RmsNorm& op, const RowKernels& kernels, int num_threads);
void silu_and_mul(const SiluAndMul& op, const RowKernels& kernels, int num_threads);
void attention_inputs(const AttentionInputs& op, const RowKernels& kernels, int num_threads);
void layer_norm(const LayerNorm& op, const RowKernels& kernels, int num_threads);
void activate(const Activate& op, const RowKernels& kernels, int num_threads);

extern const RowKernels row_kernels_scalar;
extern const RowKernels row_kernels_avx2;
extern const RowKernels row_kernels_avx512;

}  // namespace octavo
