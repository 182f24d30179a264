// Matrix product with a weight that is repacked once: out = x * weight^T + bias. No Python, no torch.
//
// Shape letters: N rows of x, D inputs, O outputs, P panels of kPanel outputs.
//
// Every output element is one chain of fused multiply-adds over d = 0 .. D - 1, begun at the bias, in float32. So a row's
// result depends on its own inputs alone: not on other rows, tiles, threads, or the instruction set.
//
// Units for products of bfloat16 (Isa::avx512_bf16) take another chain, over pairs of inputs that are rounded to bfloat16
// first; sums are float32. A row's result still depends on its own inputs alone, but not every machine has such units.
#pragma once

#include <cstdint>

#include "attention.h"  // DType
#include "isa.h"

namespace octavo {

constexpr int kPanel = 16;      // outputs that lie together
constexpr int kMaxTileRows = 6;  // rows whose accumulators, 6 x 16 floats, fill twelve of sixteen AVX2 registers

// Weights as panels of lines of 64 bytes, the last panel filled up with zeros. In float32 a line is one input of a panel's
// outputs in order; in bfloat16 it is two inputs, output after output, the even input first: so a shift and a mask widen
// them, and units that multiply pairs (AVX512_BF16, and tiles of AMX) take them as they are. An odd last input has a zero
// beside it.
struct PackedWeight {
  DType dtype;
  int num_outputs;
  int num_inputs;
  const void* data;
};

// Static, so that no copy compiled for one instruction set stands in for another's.
static inline int num_panels(int num_outputs) { return (num_outputs + kPanel - 1) / kPanel; }
static inline int element_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

constexpr int kLine = kPanel * 4;  // bytes
static inline int inputs_per_line(DType dtype) { return dtype == DType::float32 ? 1 : 2; }
static inline int64_t num_lines(int num_inputs, DType dtype) {
  return (int64_t(num_inputs) + inputs_per_line(dtype) - 1) / inputs_per_line(dtype);
}

// Bytes from the start of a panel to one input of one of its outputs.
static inline int64_t place_of(int64_t input, int output, DType dtype) {
  if (dtype == DType::float32) return input * kLine + output * 4;
  return input / 2 * kLine + output * 4 + input % 2 * 2;
}

// Up to kMaxTileRows rows times some panels over a range of inputs.
struct GemmTile {
  DType dtype;
  const float* x;        // of the first row and input; where inputs are rounded, words of two bfloat16
  int64_t row_stride;    // floats, or words, from one row of x to the next
  const char* panel;     // of the first panel and input, which is an even one
  int64_t panel_stride;  // bytes from one panel to the next
  int num_rows;
  int num_panels;
  int num_inputs;  // or pairs
  const float* begin;   // of the first row and panel: the chains so far, the bias, or zeros
  int64_t begin_row;    // floats from one row's to the next; 0: all rows begin alike
  int64_t begin_panel;  // and from one panel's
  float* out;           // [num_rows, num_panels * kPanel] in rows of out_stride; may be where chains begin
  int64_t out_stride;
  const char* ahead;   // of the first panel: what is to be fetched meanwhile, a line with each line that is read; a hint
  int64_t ahead_step;  // bytes by which it moves with each line
};

// What one instruction set brings.
struct GemmKernels {
  void (*multiply)(const GemmTile& tile);
  int panels_together;  // past which many tiles of rows go: as many as the accumulators of six rows want and an L1 holds
  void (*multiply_pairs)(const GemmTile& tile);  // bfloat16 weights with rounded inputs; null: inputs stay as they are
  void (*round_inputs)(const float* x, int64_t count, uint16_t* to);  // to bfloat16, for multiply_pairs
};

// The kernels compiled for `isa`, or null if there are none in this build.
const GemmKernels* gemm_kernels(Isa isa);

// Bytes of the packed form.
int64_t packed_bytes(int num_outputs, int num_inputs, DType dtype);

// Whether every value is a bfloat16 in float32's clothes, so that packing as bfloat16 loses nothing.
bool all_bfloat16(const float* values, int64_t count);

// Packs rows [O, D] of `from` into `to` as `as`. float32 -> bfloat16 must lose nothing.
void pack_weight(const void* source, DType from, int num_outputs, int num_inputs, void* to, DType as, int num_threads);

// out [N, O] = x [N, D] * weight^T + bias (null: none).
void gemm(const PackedWeight& weight, const float* x, int num_rows, const float* bias, float* out,
          const GemmKernels& kernels, int num_threads);

// out [N, D] = weight[ids], widened. Every id is an output.
void gather_rows(const PackedWeight& weight, const int64_t* ids, int64_t count, float* out);

// One per translation unit. Call only on a machine that has the instruction set.
void gemm_scalar(const GemmTile& tile);
void gemm_avx2(const GemmTile& tile);
void gemm_avx512(const GemmTile& tile);
void gemm_avx512_bf16(const GemmTile& tile);
void round_avx512_bf16(const float* x, int64_t count, uint16_t* to);

}  // namespace octavo
