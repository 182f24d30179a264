// AVX2 + FMA, eight floats at a time. Head sizes that are no multiple of eight go to the scalar unit.
//
// Every sum has one order: each (row, key) dot product is one chain of fused multiply-adds over D in steps of eight,
// reduced by the same tree, whether one row or two are computed together.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention.h"

namespace octavo {
namespace {

#include "attention_body.h"

inline __m256 load8_bf16(const char* src) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
inline __m128i pack8_bf16(__m256 value) {
  const __m256i word = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(word, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(word, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
  return _mm256_castsi256_si128(packed);
}

inline __m128 fold_lanes(__m256 x) { return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)); }

inline float sum8(__m256 x) {
  __m128 s = fold_lanes(x);
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Four sums at once. Each is (x0+x4 + x1+x5) + (x2+x6 + x3+x7).
inline __m128 sum8x4(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ab = _mm256_hadd_ps(a, b);
  const __m256 cd = _mm256_hadd_ps(c, d);
  return fold_lanes(_mm256_hadd_ps(ab, cd));
}

inline float max8(__m256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// exp for x <= 0, within 2 units in the last place: exp(x) = 2^n exp(r), |r| <= ln(2) / 2, with the polynomial of
// Cephes expf (S. Moshier, https://www.netlib.org/cephes/, single/expf.c). Below -87.3, and for -inf, it is 0.
inline __m256 exp8(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.33654f);
  const __m256 alive = _mm256_cmp_ps(x, low, _CMP_NLT_UQ);  // true for NaN, which then passes through
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_fmadd_ps(y, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(power)), alive);
}

struct Avx2 {
  static void load_row(float* dst, const char* src, DType dtype, int n) {
    if (dtype == DType::float32) {
      std::memcpy(dst, src, sizeof(float) * static_cast<size_t>(n));
      return;
    }
    for (int i = 0; i < n; i += 8) _mm256_storeu_ps(dst + i, load8_bf16(src + 2 * static_cast<int64_t>(i)));
  }

  static void store_row(char* dst, const float* src, float factor, DType dtype, int n) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int i = 0; i < n; i += 8) {
      const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(src + i), f);
      if (dtype == DType::float32) {
        _mm256_storeu_ps(reinterpret_cast<float*>(dst) + i, value);
      } else {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 2 * static_cast<int64_t>(i)), pack8_bf16(value));
      }
    }
  }

  template <int R>
  static void scores(float* out, const float* q, const float* k, int64_t stride, int tokens, int n) {
    int j = 0;
    for (; j + 4 <= tokens; j += 4) {
      const float* k0 = k + j * stride;
      __m256 s[R][4];
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) s[r][i] = _mm256_setzero_ps();
      }
      for (int d = 0; d < n; d += 8) {
        __m256 x[R];
        for (int r = 0; r < R; ++r) x[r] = _mm256_loadu_ps(q + static_cast<int64_t>(r) * n + d);
        for (int i = 0; i < 4; ++i) {
          const __m256 key = _mm256_loadu_ps(k0 + i * stride + d);
          for (int r = 0; r < R; ++r) s[r][i] = _mm256_fmadd_ps(x[r], key, s[r][i]);
        }
      }
      for (int r = 0; r < R; ++r) {
        _mm_storeu_ps(out + r * kBlockSize + j, sum8x4(s[r][0], s[r][1], s[r][2], s[r][3]));
      }
    }
    for (; j < tokens; ++j) {
      for (int r = 0; r < R; ++r) {
        __m256 s = _mm256_setzero_ps();
        for (int d = 0; d < n; d += 8) {
          s = _mm256_fmadd_ps(_mm256_loadu_ps(q + static_cast<int64_t>(r) * n + d),
                              _mm256_loadu_ps(k + j * stride + d), s);
        }
        const __m256 zero = _mm256_setzero_ps();
        out[r * kBlockSize + j] = _mm_cvtss_f32(sum8x4(s, zero, zero, zero));  // the same tree as above
      }
    }
  }

  static float softmax(float* scores, int lo, int hi, float* maximum, float* sum) {
    const float none = -std::numeric_limits<float>::infinity();
    for (int j = 0; j < lo; ++j) scores[j] = none;
    for (int j = hi; j < kBlockSize; ++j) scores[j] = none;
    __m256 s0 = _mm256_load_ps(scores);
    __m256 s1 = _mm256_load_ps(scores + 8);
    const float block_top = max8(_mm256_max_ps(s0, s1));
    const float top = block_top > *maximum ? block_top : *maximum;
    const __m256 tops = _mm256_set1_ps(top);
    s0 = exp8(_mm256_sub_ps(s0, tops));
    s1 = exp8(_mm256_sub_ps(s1, tops));
    _mm256_store_ps(scores, s0);
    _mm256_store_ps(scores + 8, s1);
    const float factor = _mm256_cvtss_f32(exp8(_mm256_set1_ps(*maximum - top)));
    *sum = *sum * factor + sum8(_mm256_add_ps(s0, s1));
    *maximum = top;
    return factor;
  }

  // C vectors of eight of R rows, over all keys.
  template <int R, int C>
  static void accumulate_columns(float* acc, const float* p, const float* v, int64_t stride, int lo, int hi,
                                 const float* factors, int n, int d) {
    __m256 sums[R][C];
    for (int r = 0; r < R; ++r) {
      const __m256 factor = _mm256_set1_ps(factors[r]);
      for (int c = 0; c < C; ++c) {
        sums[r][c] = _mm256_mul_ps(_mm256_loadu_ps(acc + static_cast<int64_t>(r) * n + d + 8 * c), factor);
      }
    }
    for (int j = lo; j < hi; ++j) {
      __m256 weight[R];
      for (int r = 0; r < R; ++r) weight[r] = _mm256_set1_ps(p[r * kBlockSize + j]);
      for (int c = 0; c < C; ++c) {
        const __m256 value = _mm256_loadu_ps(v + j * stride + d + 8 * c);
        for (int r = 0; r < R; ++r) sums[r][c] = _mm256_fmadd_ps(weight[r], value, sums[r][c]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) _mm256_storeu_ps(acc + static_cast<int64_t>(r) * n + d + 8 * c, sums[r][c]);
    }
  }

  template <int R>
  static void accumulate(float* acc, const float* p, const float* v, int64_t stride, int lo, int hi,
                         const float* factors, int n) {
    int d = 0;
    for (; d + 32 <= n; d += 32) accumulate_columns<R, 4>(acc, p, v, stride, lo, hi, factors, n, d);
    for (; d + 8 <= n; d += 8) accumulate_columns<R, 1>(acc, p, v, stride, lo, hi, factors, n, d);
  }
};

}  // namespace

void attention_avx2(const Attention& a, const AttentionPiece& piece, float* scratch) {
  if (a.head_dim % 8 != 0) return attention_scalar(a, piece, scratch);
  run_attention_piece<Avx2>(a, piece, scratch);
}

}  // namespace octavo
