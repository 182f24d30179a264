// From logits to a token per row: mask, check, argmax, or a draw after temperature, min_p, top_k and top_p. No Python, no
// torch.
//
// octavo/decoding/draw.py says what is computed, step by step in plain torch; tokens are equal to the last one. That they
// can be: probabilities are 64-bit fixed-point numbers whose sums are exact in any order, and each is made of one logit by
// a fixed sequence of float32 operations. So a token depends neither on the batch nor on threads or instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace octavo {

// What a row asks for; the layout of octavo.kernels.sampling.ROW.
struct SampleRow {
  double top_p;
  int64_t top_k;  // as many as the vocabulary, or more: no limit
  int64_t seed;
  int64_t index;
  float temperature;  // 0: greedy
  float log_min_p;    // -inf: none
};

struct Sample {
  const float* logits;       // [N, V]
  const SampleRow* params;   // [R]
  const int64_t* rows;       // [N]: of params
  const int64_t* positions;  // [N]: of the new tokens
  int64_t* token_ids;        // [N]: -1 where the largest logit is not finite
  int64_t num_rows;
  int vocab_size;
  // Which tokens may be chosen: bit t % 32 of word t / 32. Null where no entry has a mask.
  const uint32_t* masks = nullptr;  // [M, ceil(V / 32)]
  const int64_t* mask_of = nullptr;  // [N]: of masks; -1, all tokens
};

// Logits that are looked at together: a block in which nothing can count is passed over.
constexpr int kSampleBlock = 64;
// Classes of logits by their distance from the largest, in steps of less than 0.007 after temperature.
constexpr int kSampleClasses = 4096;
constexpr float kClassesPerUnit = (kSampleClasses - 1) / 28.0f;

// What makes a logit a weight.
struct Weighing {
  float max;
  float temperature;
  float log_min_p;
};

// Kernels of one instruction set.
struct SampleKernels {
  // Logits as they are where their bit is set, -inf where it is not.
  void (*keep)(const float* x, const uint32_t* bits, int n, float* kept);
  // The largest of n logits, NaN if one is NaN; that of each block into `maxima`, which ignore NaN.
  float (*maxima)(const float* x, int n, float* maxima);
  // Weights of n logits; those below `floor` have none.
  void (*weights)(const float* x, int n, const Weighing& weighing, float floor, int64_t* weights);
  // Sum of the weights of each block. `maxima` says which have none.
  void (*block_sums)(const float* x, int n, const float* maxima, const Weighing& weighing, float floor, int64_t* sums);
  // The class of each logit.
  void (*classes)(const float* x, int n, const Weighing& weighing, int32_t* classes);
};

// Null if there are none in this build.
const SampleKernels* sample_kernels(Isa isa);

// On at most `num_threads` threads.
void sample(const Sample& op, const SampleKernels& kernels, int num_threads);

extern const SampleKernels sample_kernels_scalar;
extern const SampleKernels sample_kernels_avx2;

}  // namespace octavo
