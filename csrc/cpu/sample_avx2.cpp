// sample.h for AVX2: eight logits at a time, the operations of sample_body.h.
#include <immintrin.h>
#include <math.h>

#include "sample.h"

namespace octavo {
namespace {

#include "sample_body.h"

void keep(const float* x, const uint32_t* bits, int n, float* kept) {
  const __m256 nothing = _mm256_set1_ps(-INFINITY);
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const uint32_t word = bits[i / 32];
    for (int eighth = 0; eighth < 4; ++eighth) {
      const __m256i byte = _mm256_set1_epi32(static_cast<int>(word >> (8 * eighth) & 255));
      const __m256i is_kept = _mm256_cmpeq_epi32(_mm256_and_si256(byte, bit), bit);
      const float* from = x + i + 8 * eighth;
      _mm256_storeu_ps(kept + i + 8 * eighth,
                       _mm256_blendv_ps(nothing, _mm256_loadu_ps(from), _mm256_castsi256_ps(is_kept)));
    }
  }
  for (; i < n; ++i) kept[i] = bits[i / 32] >> (i % 32) & 1 ? x[i] : -INFINITY;
}

// In each lane `a` where it is larger, else `b`: NaN in `a` is passed over.
inline __m256 larger(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }

inline float largest_lane(__m256 v) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

float maxima(const float* x, int n, float* maxima) {
  __m256 nan = _mm256_setzero_ps();
  float largest = -INFINITY;
  int first = 0, block = 0;
  for (; first + kSampleBlock <= n; first += kSampleBlock, ++block) {
    __m256 top = _mm256_set1_ps(-INFINITY);
    for (int i = first; i < first + kSampleBlock; i += 16) {
      const __m256 left = _mm256_loadu_ps(x + i), right = _mm256_loadu_ps(x + i + 8);
      nan = _mm256_or_ps(nan, _mm256_cmp_ps(left, right, _CMP_UNORD_Q));
      top = larger(left, larger(right, top));
    }
    maxima[block] = largest_lane(top);
    largest = maxima[block] > largest ? maxima[block] : largest;
  }
  bool has_nan = _mm256_movemask_ps(nan) != 0;
  if (first < n) {
    float top = -INFINITY;
    for (int i = first; i < n; ++i) {
      top = x[i] > top ? x[i] : top;
      has_nan |= x[i] != x[i];
    }
    maxima[block] = top;
    largest = top > largest ? top : largest;
  }
  return has_nan ? NAN : largest;
}

struct Lanes {
  __m256 max, temperature, log_min_p, floor;

  Lanes(const Weighing& w, float least)
      : max(_mm256_set1_ps(w.max)), temperature(_mm256_set1_ps(w.temperature)),
        log_min_p(_mm256_set1_ps(w.log_min_p > kNothing ? w.log_min_p : kNothing)), floor(_mm256_set1_ps(least)) {}

  __m256 scaled(__m256 x) const { return _mm256_div_ps(_mm256_sub_ps(x, max), temperature); }
};

// Weights of eight logits before they are cut to integers.
inline __m256 uncut_weights(__m256 x, const Lanes& w) {
  const __m256 scaled = w.scaled(x);
  const __m256 counts = _mm256_and_ps(_mm256_cmp_ps(x, w.floor, _CMP_GE_OQ),
                                      _mm256_cmp_ps(scaled, w.log_min_p, _CMP_GE_OQ));
  const __m256 z = larger(scaled, _mm256_set1_ps(kNothing));
  const __m256 shift = _mm256_set1_ps(kShift);
  const __m256 n = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(z, _mm256_set1_ps(kLog2e)), shift), shift);
  const __m256 high = _mm256_sub_ps(z, _mm256_mul_ps(n, _mm256_set1_ps(kLn2High)));
  const __m256 r = _mm256_add_ps(high, _mm256_mul_ps(n, _mm256_set1_ps(kLn2Low)));
  __m256 p = _mm256_set1_ps(kPolynomial[0]);
  for (int i = 1; i < 6; ++i) p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(kPolynomial[i]));
  p = _mm256_add_ps(_mm256_mul_ps(p, _mm256_mul_ps(r, r)), r);
  p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(40)), 23);
  const __m256 e = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
  return _mm256_and_ps(e, counts);
}

void weights(const float* x, int n, const Weighing& weighing, float floor, int64_t* weights) {
  const Lanes lanes(weighing, floor);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    float uncut[8];
    _mm256_storeu_ps(uncut, uncut_weights(_mm256_loadu_ps(x + i), lanes));
    for (int l = 0; l < 8; ++l) weights[i + l] = static_cast<int64_t>(uncut[l]);
  }
  for (; i < n; ++i) weights[i] = weight_of(x[i], floor, weighing);
}

inline __m256d cut(__m128 values) {
  return _mm256_round_pd(_mm256_cvtps_pd(values), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}

void block_sums(const float* x, int n, const float* maxima, const Weighing& weighing, float floor, int64_t* sums) {
  const Lanes lanes(weighing, floor);
  for (int first = 0, block = 0; first < n; first += kSampleBlock, ++block) {
    sums[block] = 0;
    if (!has_weight(maxima[block], weighing, floor)) continue;
    if (first + kSampleBlock > n) {
      for (int i = first; i < n; ++i) sums[block] += weight_of(x[i], floor, weighing);
      continue;
    }
    // Integers below 2^47: doubles hold their sums exactly.
    __m256d left = _mm256_setzero_pd(), right = _mm256_setzero_pd();
    for (int i = first; i < first + kSampleBlock; i += 8) {
      const __m256 uncut = uncut_weights(_mm256_loadu_ps(x + i), lanes);
      left = _mm256_add_pd(left, cut(_mm256_castps256_ps128(uncut)));
      right = _mm256_add_pd(right, cut(_mm256_extractf128_ps(uncut, 1)));
    }
    double four[4];
    _mm256_storeu_pd(four, _mm256_add_pd(left, right));
    sums[block] = static_cast<int64_t>((four[0] + four[1]) + (four[2] + four[3]));
  }
}

void classes(const float* x, int n, const Weighing& weighing, int32_t* classes) {
  const Lanes lanes(weighing, 0.0f);
  const __m256 scale = _mm256_set1_ps(-kClassesPerUnit), last = _mm256_set1_ps(kSampleClasses - 1);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 distance = _mm256_mul_ps(lanes.scaled(_mm256_loadu_ps(x + i)), scale);
    const __m256i found = _mm256_cvttps_epi32(_mm256_min_ps(distance, last));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(classes + i), found);
  }
  for (; i < n; ++i) classes[i] = class_of(x[i], weighing);
}

}  // namespace

const SampleKernels sample_kernels_avx2 = {keep, maxima, weights, block_sums, classes};

}  // namespace octavo
