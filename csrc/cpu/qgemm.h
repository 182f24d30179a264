// Matrix product with int8 or int4 weights and activations that are quantized on the fly: out = x * weight^T + bias.
//
// Shape letters: N rows of x, D inputs, O outputs, P panels of kPanel outputs, G groups of inputs that share a scale of the
// weight, A groups of inputs that share a scale of x, Q quads of inputs.
//
// kActivationGroup inputs of one row of x become int8 with a scale of their own: round(x / s), s = max |x| / 127. Within a
// group of a weight all sums are integers, so they are exact in any order. Beyond, each output is chains of fused
// multiply-adds in float32, over a = 0 .. A - 1 and the groups g of a in order (the first of a chain of g: a product):
//   int8: sum_a s_x[a] * (integer sum), times the output's scale, plus the bias
//   int4: sum_a s_x[a] * (sum_{g of a} s_w[g] * (integer sum)), plus the bias
// So a row's result depends on its own inputs alone: not on other rows, tiles, threads, or the instruction set.
#pragma once

#include <cstdint>

#include "attention.h"  // DType
#include "gemm.h"       // kPanel
#include "isa.h"

namespace octavo {

enum class QuantType : int { int4 = 4, int8 = 8 };

constexpr int kQuad = 4;               // inputs that lie together
constexpr int kActivationGroup = 128;  // inputs that share a scale of x; a multiple of every weight's group

// Weights as [P, Q, ...], the rest of the last panel and quad filled with zeros.
// int8: [kPanel, kQuad] bytes, value + 128, which is no 0 where there is a value. int4: 32 bytes, byte 4 i + j holds value + zero point of output i, input j in
// its low half and of output i + 8 in its high half.
struct QuantWeight {
  QuantType type;
  int num_outputs;
  int num_inputs;
  int group;                    // inputs whose integers are summed: of int4 they share a scale, 32, 64 or 128; int8: 128
  const uint8_t* values;
  const float* channel_scales;  // int8: [P, kPanel]; int4 with scales in float32: [P, G, kPanel]
  const uint16_t* scales;       // int4: bfloat16 or float16 [P, G, kPanel]
  const uint8_t* zeros;         // int4: [P, G, kPanel], or null: 8 everywhere
  DType scale_type = DType::bfloat16;  // int4: of its scales; not int8
};

static inline int num_quads(int num_inputs) { return (num_inputs + kQuad - 1) / kQuad; }
static inline int num_groups(const QuantWeight& w) { return (w.num_inputs + w.group - 1) / w.group; }
static inline int num_activation_groups(int num_inputs) {
  return (num_inputs + kActivationGroup - 1) / kActivationGroup;
}
// What stands for 0 in all of the weight; 1 where each group has a zero point of its own.
static inline int common_zero(const QuantWeight& w) {
  return w.type == QuantType::int8 ? 128 : w.zeros == nullptr ? 8 : 1;
}
static inline int64_t quad_bytes(QuantType type) { return type == QuantType::int8 ? kPanel * kQuad : kPanel * kQuad / 2; }

// Where quantized rows of x go: one tile of at most max_rows rows, or max_few_rows.
struct QuantRows {
  void* values;   // [Q, num_rows, kQuad] int8 or int16
  float* scales;  // [A, num_rows]
  int32_t* sums;  // [G, num_rows]: of the integers, times -common_zero
  int num_rows;
};

// One tile of rows times some panels in a row, or one row times kPanelsOfRow panels that lie apart.
struct QuantTile {
  QuantRows x;
  const QuantWeight* weight;
  int panel;            // the first
  int panel_step;       // of one row: from one to the next; 0: there is only one
  const float* bias;    // [O], or null
  float* out;           // [num_rows, O]: of these rows, but of all panels
  int num_panels;       // of a tile of rows: up to panels_together
  const uint8_t* ahead; // what is to be fetched meanwhile, of as many panels; a hint
  int64_t ahead_bytes;  // of each
};

constexpr int kPanelsOfRow = 4;

// What one instruction set brings.
struct QuantKernels {
  int max_rows;      // of a tile
  int max_few_rows;  // of a tile of int8, where a product has so few rows that reading weights binds it: up to two such tiles
  int bytes_int8;    // of one quantized value of x beside int8 weights; beside int4 weights it is 1
  void (*quantize)(const float* x, const QuantWeight& weight, int bytes, const QuantRows& to);
  void (*multiply)(const QuantTile& tile);
  void (*multiply_row)(const QuantTile& tile);  // for a product's only row, x as int8; null: `multiply`
  int panels_together = 1;
};

// The kernels compiled for `isa`, or null if there are none in this build.
const QuantKernels* quant_kernels(Isa isa);

// Bytes of each part of the packed form.
int64_t quant_value_bytes(QuantType type, int num_outputs, int num_inputs);
int64_t quant_num_scales(QuantType type, int num_outputs, int num_inputs, int group);

// Where pack_quant writes.
struct QuantTarget {
  uint8_t* values;
  float* channel_scales;
  uint16_t* scales;
  uint8_t* zeros;
};

// Quantizes [O, D] of `from` to nearest and packs it. int8: scale max |w| / 127 per output. int4 without zero points:
// the value of largest magnitude becomes -8 (as in ggml's Q4_0); with: the group's range, 0 included, over 0 .. 15; the
// range clipped by whichever of 1, 0.95, ... 0.7 leaves the smallest squared error.
void pack_quant(const QuantWeight& shape, const void* source, DType from, const QuantTarget& to, int num_threads);

// Levels of a checkpoint, row by row: levels 0 .. 15 [O, D], scales [O, G] in the weight's scale_type, zeros [O, G] or null.
struct QuantLevels {
  const uint8_t* levels;
  const void* scales;
  const uint8_t* zeros;
};

// Packs int4 levels as they are; scales below 2^-122 become 0.
void pack_levels(const QuantWeight& shape, const QuantLevels& from, const QuantTarget& to, int num_threads);

// out [N, D] = weight[ids], dequantized. Every id is an output.
void gather_rows(const QuantWeight& weight, const int64_t* ids, int64_t count, float* out);

// out [N, O] = x [N, D] * weight^T + bias (null: none).
void quant_gemm(const QuantWeight& weight, const float* x, int num_rows, const float* bias, float* out,
                const QuantKernels& kernels, int num_threads);

// One per translation unit. Use only on a machine that has the instruction set.
extern const QuantKernels kQuantScalar;
extern const QuantKernels kQuantAvx2;
extern const QuantKernels kQuantAvx512;  // needs VNNI
void quantize_avx2(const float* x, const QuantWeight& weight, int bytes, const QuantRows& to);

}  // namespace octavo
