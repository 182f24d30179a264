// Paged attention on the CPU: raw pointers in, raw pointers out. No Python, no torch.
//
// Shape letters: T tokens in the step, H query heads, G key/value heads, D head size, S slices, B table width.
//
// One order of arithmetic, whatever the batch, the chunks, the threads and the instruction set, so that a row has the
// same bits in all of them. Multiply-adds are fused:
//   score   = (chain over d = 0 .. D - 1 of q[d] * k[d], from 0) (* the key's scale, int8) * a.scale, then the soft cap
//   stretch = kStretch keys from a multiple of kStretch: online softmax and then acc = acc * factor, followed by the
//             chain over its visible keys in order of acc + p * v (int8: (p * the value's scale) * v); the sum of p runs
//             in eight lanes, key j in lane j % 8, and is folded as a tree
//   span    = kSpan keys from a multiple of kSpan: begins a softmax of its own; spans are folded in order
//
// Units for products of bfloat16 (Isa::avx512_bf16) take another order over caches of bfloat16, for head sizes that are a
// multiple of 32. Queries and p are rounded to bfloat16, the sum of p is of p as it was; chains run over pairs of features,
// 2 i and 2 i + 1, and over pairs of keys, 2 i and 2 i + 1 of the context, where the p and v of a key that a row does not see
// are zero. A row's bits still depend on its own query, keys and values alone, but not every machine has such units.
#pragma once

#include <cstdint>

#include "isa.h"

namespace octavo {

constexpr int kBlockSize = 16;  // tokens per KV block
constexpr int kStretch = 64;
constexpr int kSpan = 1024;

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2, int8 = 3 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : dtype == DType::int8 ? 1 : 2; }

struct Attention {
  DType dtype;        // of q and out; not int8
  DType cache_dtype;
  const void* q;        // [T, H, D]
  const void* k_cache;  // [num_blocks, kBlockSize, G, D]
  const void* v_cache;  // [num_blocks, kBlockSize, G, D]
  const float* k_scales;  // [num_blocks, kBlockSize, G] with int8: a value is its integer times its scale
  const float* v_scales;  // [num_blocks, kBlockSize, G] with int8
  void* out;            // [T, H, D]
  const int32_t* query_starts;  // [S + 1]: slice s owns rows query_starts[s] .. query_starts[s + 1]
  const int32_t* context_lens;  // [S]: tokens in the cache, those of the slice included
  const int32_t* block_tables;  // [S, B]
  int num_slices;
  int table_width;
  int num_heads;
  int num_kv_heads;
  int head_dim;
  float scale;
  int window;      // a token sees the last `window` tokens, itself included; 0: all
  int ahead;       // a token sees so many tokens after it: 0 is causal
  float soft_cap;  // scores become cap * tanh(score / cap); 0: not
  float* partials;  // [rows and spans, H, partial_stride]: sums of D columns, then the maximum and the sum of weights
};

// Floats from one row of scratch to the next: rows are filled up to whole tiles of sixteen columns.
constexpr int64_t row_stride(int head_dim) { return (int64_t(head_dim) + 15) / 16 * 16; }

constexpr int64_t partial_stride(int head_dim) { return row_stride(head_dim) + 16; }

// One piece of work: query rows first_row .. first_row + num_rows of one slice, for KV heads kv_head ..
// kv_head + num_kv_heads, over the keys from first_key to end_key (both multiples of kSpan, or the end of the context).
struct AttentionPiece {
  int slice;
  int first_row;
  int num_rows;
  int kv_head;
  int num_kv_heads;
  int first_key;
  int end_key;
  int64_t partial;  // -1: the piece sees all keys and writes out; else it writes to a.partials from here on
};

// A row of T whose spans were computed by several pieces.
struct AttentionFold {
  int row;
  int64_t partial;  // of its first span
  int num_spans;
};

// Rows (token x query head) per KV head up to which keys and values are read in place, where each is used so rarely
// that packing them would cost more.
constexpr int kRowsInPlace = 4;

// Of one instruction set.
struct AttentionKernels {
  void (*piece)(const Attention& a, const AttentionPiece& piece, float* scratch);
  void (*fold)(const Attention& a, const AttentionFold& fold, float* scratch);
};

// Null if there are none in this build.
const AttentionKernels* attention_kernels(Isa isa);

// Runs the whole step on at most `num_threads` threads.
void paged_attention(const Attention& a, const AttentionKernels& kernels, int num_threads);

extern const AttentionKernels attention_kernels_scalar;
extern const AttentionKernels attention_kernels_avx2;
extern const AttentionKernels attention_kernels_avx512;
extern const AttentionKernels attention_kernels_avx512_bf16;

}  // namespace octavo
