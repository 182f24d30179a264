// Paged attention on the CPU: raw pointers in, raw pointers out. No Python, no torch.
//
// Shape letters: T tokens in the step, H query heads, G key/value heads, D head size, S slices, B table width.
#pragma once

#include <cstdint>

#include "isa.h"

namespace octavo {

constexpr int kBlockSize = 16;  // tokens per KV block

enum class DType : int { float32 = 0, bfloat16 = 1 };

struct Attention {
  DType dtype;      // of q, k_cache, v_cache and out
  const void* q;    // [T, H, D]
  const void* k_cache;  // [num_blocks, kBlockSize, G, D]
  const void* v_cache;  // [num_blocks, kBlockSize, G, D]
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
  float soft_cap;  // scores become cap * tanh(score / cap); 0: not
};

// One piece of work: query rows first_row .. first_row + num_rows of one slice, for one KV head.
struct AttentionPiece {
  int slice;
  int first_row;
  int num_rows;
  int kv_head;
};

// Floats of scratch that one thread needs for a piece of at most `max_rows` rows.
int64_t attention_scratch_floats(const Attention& a, int max_rows);

// Computes one piece. A row's result depends on its own query, keys and values alone: its keys are visited in order,
// block by block, whatever other rows, pieces or threads there are.
using AttentionKernel = void (*)(const Attention& a, const AttentionPiece& piece, float* scratch);

// The kernel compiled for `isa`, or null if there is none in this build.
AttentionKernel attention_kernel(Isa isa);

// Runs the whole step on at most `num_threads` threads.
void paged_attention(const Attention& a, AttentionKernel kernel, int num_threads);

// One per translation unit. Call only on a machine that has the instruction set.
void attention_scalar(const Attention& a, const AttentionPiece& piece, float* scratch);
void attention_avx2(const Attention& a, const AttentionPiece& piece, float* scratch);

}  // namespace octavo
