// sample.h for any machine; the arithmetic is in sample_body.h.
#include <math.h>

#include "sample.h"

namespace octavo {
namespace {

#include "sample_body.h"

void keep(const float* x, const uint32_t* bits, int n, float* kept) {
  for (int i = 0; i < n; ++i) kept[i] = bits[i / 32] >> (i % 32) & 1 ? x[i] : -INFINITY;
}

float maxima(const float* x, int n, float* maxima) {
  bool has_nan = false;
  float largest = -INFINITY;
  for (int first = 0, block = 0; first < n; first += kSampleBlock, ++block) {
    const int last = n - first < kSampleBlock ? n : first + kSampleBlock;
    float top = -INFINITY;
    for (int i = first; i < last; ++i) {
      top = x[i] > top ? x[i] : top;
      has_nan |= x[i] != x[i];
    }
    maxima[block] = top;
    largest = top > largest ? top : largest;
  }
  return has_nan ? NAN : largest;
}

void weights(const float* x, int n, const Weighing& weighing, float floor, int64_t* weights) {
  for (int i = 0; i < n; ++i) weights[i] = weight_of(x[i], floor, weighing);
}

void block_sums(const float* x, int n, const float* maxima, const Weighing& weighing, float floor, int64_t* sums) {
  for (int first = 0, block = 0; first < n; first += kSampleBlock, ++block) {
    const int last = n - first < kSampleBlock ? n : first + kSampleBlock;
    int64_t sum = 0;
    if (has_weight(maxima[block], weighing, floor)) {
      for (int i = first; i < last; ++i) sum += weight_of(x[i], floor, weighing);
    }
    sums[block] = sum;
  }
}

void classes(const float* x, int n, const Weighing& weighing, int32_t* classes) {
  for (int i = 0; i < n; ++i) classes[i] = class_of(x[i], weighing);
}

}  // namespace

const SampleKernels sample_kernels_scalar = {keep, maxima, weights, block_sums, classes};

}  // namespace octavo
