// AVX2 + FMA + F16C, eight floats at a time. Head sizes that are no multiple of eight go to the scalar unit.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "attention.h"

// Accumulators stay in registers only when every loop over them is unrolled.
#if defined(__GNUC__)
#define OCTAVO_UNROLL _Pragma("GCC unroll 8")
#define OCTAVO_INLINE inline __attribute__((always_inline))
#else
#define OCTAVO_UNROLL
#define OCTAVO_INLINE inline
#endif

namespace octavo {
namespace {

#include "attention_body.h"

template <DType K>
inline __m256 load8(const char* src) {
  if constexpr (K == DType::float32) return _mm256_loadu_ps(reinterpret_cast<const float*>(src));
  const auto half = [src] { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(src)); };
  if constexpr (K == DType::bfloat16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half()), 16));
  if constexpr (K == DType::float16) return _mm256_cvtph_ps(half());
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(src))));
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

// (x0+x4 + x2+x6) + (x1+x5 + x3+x7)
inline float sum8(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
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

inline float exp1(float x) { return _mm256_cvtss_f32(exp8(_mm256_set1_ps(x))); }

// rows[i][d] -> rows[d][i]
OCTAVO_INLINE void transpose8(__m256* rows) {
  __m256 t[8], u[8];
  OCTAVO_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  OCTAVO_UNROLL
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  OCTAVO_UNROLL
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

// Features d .. d + 7 of eight keys, one vector per feature.
template <DType K>
OCTAVO_INLINE void load_keys(__m256* features, const char* k, int64_t stride, int d) {
  OCTAVO_UNROLL
  for (int i = 0; i < 8; ++i) features[i] = load8<K>(k + i * stride + d * size_of(K));
  transpose8(features);
}

struct Avx2 {
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

  template <DType K>
  static void load_as(float* dst, const char* src, int n) {
    for (int i = 0; i < n; i += 8) _mm256_storeu_ps(dst + i, load8<K>(src + i * size_of(K)));
  }

  static void load_row(float* dst, const char* src, DType dtype, int n) {
    if (dtype == DType::float32) return load_as<DType::float32>(dst, src, n);
    dtype == DType::bfloat16 ? load_as<DType::bfloat16>(dst, src, n) : load_as<DType::float16>(dst, src, n);
  }

  static void store_row(char* dst, const float* src, float factor, DType dtype, int n) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int i = 0; i < n; i += 8, dst += 8 * size_of(dtype)) {
      const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(src + i), f);
      if (dtype == DType::float32) {
        _mm256_storeu_ps(reinterpret_cast<float*>(dst), value);
      } else {
        const __m128i half = dtype == DType::bfloat16 ? pack8_bf16(value) : _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), half);
      }
    }
  }

  template <DType K>
  static void pack_keys(float* panel, const char* k, int64_t stride, int n) {
    for (int first = 0; first < kBlockSize; first += 8) {
      for (int d = 0; d < n; d += 8) {
        __m256 features[8];
        load_keys<K>(features, k + first * stride, stride, d);
        OCTAVO_UNROLL
        for (int i = 0; i < 8; ++i) _mm256_store_ps(panel + (d + i) * 16 + first, features[i]);
      }
    }
  }

  template <DType K>
  static void pack_values(float* panels, const char* v, int64_t stride, int tokens, int n) {
    for (int j = 0; j < tokens; ++j) {
      for (int d = 0; d < n; d += 8) {
        _mm256_store_ps(panels + (d / 16 * kStretch + j) * 16 + d % 16, load8<K>(v + j * stride + d * size_of(K)));
      }
      if (n % 16 != 0) _mm256_store_ps(panels + (n / 16 * kStretch + j) * 16 + 8, _mm256_setzero_ps());
    }
  }

  template <int R>
  static void tile(float* out, const float* x, int64_t x_stride, const float* panel, int count, int64_t out_stride,
                   bool from_zero) {
    __m256 sums[R][2];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      sums[r][0] = from_zero ? _mm256_setzero_ps() : _mm256_loadu_ps(out + r * out_stride);
      sums[r][1] = from_zero ? _mm256_setzero_ps() : _mm256_loadu_ps(out + r * out_stride + 8);
    }
    for (int i = 0; i < count; ++i) {
      const __m256 low = _mm256_load_ps(panel + i * 16), high = _mm256_load_ps(panel + i * 16 + 8);
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256 input = _mm256_broadcast_ss(x + r * x_stride + i);
        sums[r][0] = _mm256_fmadd_ps(input, low, sums[r][0]);
        sums[r][1] = _mm256_fmadd_ps(input, high, sums[r][1]);
      }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      _mm256_storeu_ps(out + r * out_stride, sums[r][0]);
      _mm256_storeu_ps(out + r * out_stride + 8, sums[r][1]);
    }
  }

  template <DType K, int R>
  static void scores(float* out, const float* q, int64_t q_stride, const char* k, int64_t stride, int n) {
    __m256 sums[R][2];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (int d = 0; d < n; d += 8) {
      OCTAVO_UNROLL
      for (int half = 0; half < 2; ++half) {
        __m256 features[8];
        load_keys<K>(features, k + 8 * half * stride, stride, d);
        OCTAVO_UNROLL
        for (int i = 0; i < 8; ++i) {
          OCTAVO_UNROLL
          for (int r = 0; r < R; ++r) {
            sums[r][half] = _mm256_fmadd_ps(_mm256_broadcast_ss(q + r * q_stride + d + i), features[i], sums[r][half]);
          }
        }
      }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      _mm256_storeu_ps(out + r * kStretch, sums[r][0]);
      _mm256_storeu_ps(out + r * kStretch + 8, sums[r][1]);
    }
  }

  // J keys of R rows.
  template <DType K, int R, int J>
  static void add_keys(float* acc, int64_t acc_stride, const float* p, const char* v, int64_t stride, int n) {
    __m256 weights[R][J];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int j = 0; j < J; ++j) weights[r][j] = _mm256_broadcast_ss(p + r * kStretch + j);
    }
    for (int d = 0; d < n; d += 8) {
      __m256 sums[R];
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) sums[r] = _mm256_loadu_ps(acc + r * acc_stride + d);
      OCTAVO_UNROLL
      for (int j = 0; j < J; ++j) {
        const __m256 value = load8<K>(v + j * stride + d * size_of(K));
        OCTAVO_UNROLL
        for (int r = 0; r < R; ++r) sums[r] = _mm256_fmadd_ps(weights[r][j], value, sums[r]);
      }
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) _mm256_storeu_ps(acc + r * acc_stride + d, sums[r]);
    }
  }

  template <DType K, int R>
  static void add(float* acc, int64_t acc_stride, const float* p, const char* v, int64_t stride, int lo, int hi, int n) {
    constexpr int J = R == 1 ? 8 : R == 2 ? 4 : 2;
    int j = lo;
    for (; j + J <= hi; j += J) add_keys<K, R, J>(acc, acc_stride, p + j, v + j * stride, stride, n);
    for (; j < hi; ++j) add_keys<K, R, 1>(acc, acc_stride, p + j, v + j * stride, stride, n);
  }

  static float softmax(float* row, int lo, int hi, const float* k_scales, const float* v_scales, const Attention& a,
                       float* maximum, float* sum) {
    const __m256 none = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int first = lo / 8 * 8;
    __m256 top = none;
    for (int j = first; j < hi; j += 8) {
      __m256 s = _mm256_loadu_ps(row + j);
      if (k_scales != nullptr) s = _mm256_mul_ps(s, _mm256_loadu_ps(k_scales + j));
      s = _mm256_mul_ps(s, _mm256_set1_ps(a.scale));
      if (a.soft_cap > 0.0f) s = cap(s, a.soft_cap);
      if (j < lo || j + 8 > hi) {
        const __m256i at = _mm256_add_epi32(lanes, _mm256_set1_epi32(j));
        const __m256i unseen = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), at),
                                               _mm256_cmpgt_epi32(at, _mm256_set1_epi32(hi - 1)));
        s = _mm256_blendv_ps(s, none, _mm256_castsi256_ps(unseen));
      }
      top = _mm256_max_ps(top, s);
      _mm256_storeu_ps(row + j, s);
    }
    const float stretch_top = max8(top);
    const float new_top = stretch_top > *maximum ? stretch_top : *maximum;
    const __m256 tops = _mm256_set1_ps(new_top);
    __m256 total = _mm256_setzero_ps();
    for (int j = first; j < hi; j += 8) {
      __m256 p = exp8(_mm256_sub_ps(_mm256_loadu_ps(row + j), tops));
      total = _mm256_add_ps(total, p);
      if (v_scales != nullptr) p = _mm256_mul_ps(p, _mm256_loadu_ps(v_scales + j));
      _mm256_storeu_ps(row + j, p);
    }
    const float factor = exp1(*maximum - new_top);  // exp(-inf) = 0 on a row's first stretch
    *sum = *sum * factor + sum8(total);
    *maximum = new_top;
    return factor;
  }

  static __m256 cap(__m256 s, float soft_cap) {
    float each[8];
    _mm256_storeu_ps(each, s);
    for (float& value : each) value = soft_cap * tanhf(value / soft_cap);
    return _mm256_loadu_ps(each);
  }

  static void scale(float* row, float factor, int n) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int i = 0; i < n; i += 8) _mm256_storeu_ps(row + i, _mm256_mul_ps(_mm256_loadu_ps(row + i), f));
  }

  static void fold(float* total, float* total_maximum, float* total_sum, const float* acc, float maximum, float sum,
                   int n) {
    if (*total_sum == 0.0f) {
      std::memcpy(total, acc, sizeof(float) * static_cast<size_t>(n));
      *total_maximum = maximum;
      *total_sum = sum;
      return;
    }
    const float top = maximum > *total_maximum ? maximum : *total_maximum;
    const float old_factor = exp1(*total_maximum - top), factor = exp1(maximum - top);
    for (int i = 0; i < n; i += 8) {
      const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(total + i), _mm256_set1_ps(old_factor));
      _mm256_storeu_ps(total + i, _mm256_fmadd_ps(_mm256_loadu_ps(acc + i), _mm256_set1_ps(factor), old));
    }
    *total_sum = *total_sum * old_factor + sum * factor;
    *total_maximum = top;
  }
};

void piece(const Attention& a, const AttentionPiece& piece, float* scratch) {
  if (a.head_dim % 8 != 0) return attention_kernels_scalar.piece(a, piece, scratch);
  run_attention_piece<Avx2>(a, piece, scratch);
}

void fold(const Attention& a, const AttentionFold& fold, float* scratch) {
  if (a.head_dim % 8 != 0) return attention_kernels_scalar.fold(a, fold, scratch);
  fold_attention_row<Avx2>(a, fold, scratch);
}

}  // namespace

const AttentionKernels attention_kernels_avx2 = {piece, fold};

}  // namespace octavo
