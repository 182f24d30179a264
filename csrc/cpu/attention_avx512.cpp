// AVX-512F and BW, sixteen floats at a time, where head sizes are a multiple of sixteen; the others, and folding spans, go to
// the AVX2 unit. Bits are the same.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "attention.h"
#include "unroll.h"

namespace octavo {
namespace {

#include "attention_body.h"
#include "attention_avx2_body.h"
#include "attention_avx512_body.h"

template <DType K>
OCTAVO_INLINE __m512 load_sixteen(const char* from) {
  if constexpr (K == DType::float32) return _mm512_loadu_ps(reinterpret_cast<const float*>(from));
  if constexpr (K == DType::int8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_quarter(from)));
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  if constexpr (K == DType::float16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Feature E of those in a word of each of sixteen keys.
template <DType K, int E>
OCTAVO_INLINE __m512 sixteen_of(__m512i words) {
  if constexpr (K == DType::float32) return _mm512_castsi512_ps(words);
  if constexpr (K == DType::bfloat16) {
    const __m512i high = _mm512_set1_epi32(int(0xffff0000u));
    return _mm512_castsi512_ps(E == 0 ? _mm512_slli_epi32(words, 16) : _mm512_and_si512(words, high));
  }
  if constexpr (K == DType::float16) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(E == 0 ? words : _mm512_srli_epi32(words, 16)));
  }
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(E == 3 ? words : _mm512_slli_epi32(words, 24 - 8 * E), 24));
}

template <DType K>
constexpr int kFeatures = 16 / int(size_of(K));  // in sixteen bytes

// Calls take(i, feature i of sixteen keys) for i below kFeatures.
template <DType K, class Take>
OCTAVO_INLINE void over_features(const char* k, int64_t stride, const Take& take) {
  __m512i words[4];
  load_words(words, k, stride);
  constexpr int kEach = kFeatures<K> / 4;
  OCTAVO_UNROLL
  for (int w = 0; w < 4; ++w) {
    take(w * kEach, sixteen_of<K, 0>(words[w]));
    if constexpr (kEach > 1) take(w * kEach + 1, sixteen_of<K, 1>(words[w]));
    if constexpr (kEach > 2) take(w * kEach + 2, sixteen_of<K, 2>(words[w]));
    if constexpr (kEach > 2) take(w * kEach + 3, sixteen_of<K, 3>(words[w]));
  }
}

// Adds features to the scores of R rows.
template <int R>
struct Scoring {
  __m512 (&sums)[R];
  const Rows<R>& q;

  OCTAVO_INLINE void operator()(int i, __m512 feature) const {
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(q.row[r][i]), feature, sums[r]);
      OCTAVO_STAY(sums[r]);
    }
  }
};

struct Storing {
  float* panel;

  OCTAVO_INLINE void operator()(int i, __m512 feature) const { _mm512_storeu_ps(panel + i * 16, feature); }
};

struct Avx512 : Avx2 {
  static constexpr int kPanels = 4;
  static constexpr int heads_together(int rows) { return rows == 1 ? 4 : 2; }

  template <DType K>
  static void pack_keys(float* panel, const char* k, int64_t stride, int n) {
    for (int d = 0; d < n; d += kFeatures<K>) over_features<K>(k + d * size_of(K), stride, Storing{panel + d * 16});
  }

  template <DType K>
  static void pack_values(float* panels, const char* v, int64_t stride, int tokens, int n) {
    for (int j = 0; j < tokens; ++j) {
      for (int d = 0; d < n; d += 16) {
        _mm512_storeu_ps(panels + (d / 16 * kStretch + j) * 16, load_sixteen<K>(v + j * stride + d * size_of(K)));
      }
    }
  }

  // Not inlined: within the walk GCC 12 keeps the sums in memory, at a third of the speed.
  template <int R, int B>
  OCTAVO_APART static void tile(const Tile& t) {
    __m512 sums[R][B];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        sums[r][b] = t.from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(t.out + r * t.out_stride + b * 16);
      }
    }
    const float *x = t.x + t.lo, *line = t.panel + t.lo * 16;
    const int64_t x_stride = t.x_stride, panel_stride = t.panel_stride;
    for (int i = t.lo; i < t.hi; ++i, ++x, line += 16) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        const __m512 inputs = _mm512_loadu_ps(line + b * panel_stride);
        OCTAVO_UNROLL
        for (int r = 0; r < R; ++r) {
          sums[r][b] = _mm512_fmadd_ps(_mm512_set1_ps(x[r * x_stride]), inputs, sums[r][b]);
          OCTAVO_STAY(sums[r][b]);
        }
      }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) _mm512_storeu_ps(t.out + r * t.out_stride + b * 16, sums[r][b]);
    }
  }

  static float softmax(float* row, int lo, int hi, const float* k_scales, const float* v_scales, const Attention& a,
                       float* maximum, float* sum) {
    return softmax16(row, lo, hi, k_scales, v_scales, a, maximum, sum,
                     [row](int j, __m512 p) { _mm512_storeu_ps(row + j, p); });
  }

  template <DType K, int R, int B>
  static void scores(float* out, const float* q, int64_t q_stride, const char* k, int64_t stride, int n,
                     Ahead<Avx512>& ahead) {
    __m512 sums[B][R];
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) sums[b][r] = _mm512_setzero_ps();
    }
    for (int d = 0; d < n; d += kFeatures<K>) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        const Rows<R> rows(q + b * R * q_stride + d, q_stride);
        over_features<K>(k + (b * n + d) * size_of(K), stride, Scoring<R>{sums[b], rows});
        OCTAVO_UNROLL
        for (int line = 0; line < 4; ++line) ahead.fetch();
      }
    }
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) _mm512_storeu_ps(out + (b * R + r) * kStretch, sums[b][r]);
    }
  }

  // Columns d .. d + 16 C of R rows: their sums stay in registers past all keys.
  template <DType K, int R, int C>
  static void add_columns(float* acc, int64_t acc_stride, const float* p, const char* v, int64_t stride, int keys,
                          Ahead<Avx512>& ahead) {
    constexpr int kBytes = 16 * C * int(size_of(K));
    __m512 sums[R][C];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int c = 0; c < C; ++c) sums[r][c] = _mm512_loadu_ps(acc + r * acc_stride + 16 * c);
    }
    for (int j = 0; j < keys; ++j, v += stride) {
      OCTAVO_UNROLL
      for (int line = 0; line < kBytes / 64; ++line) ahead.fetch();
      if (kBytes < 64 && j * kBytes % 64 == 0) ahead.fetch();
      OCTAVO_UNROLL
      for (int c = 0; c < C; ++c) {
        const __m512 values = load_sixteen<K>(v + 16 * c * size_of(K));
        OCTAVO_UNROLL
        for (int r = 0; r < R; ++r) sums[r][c] = _mm512_fmadd_ps(_mm512_set1_ps(p[r * kStretch + j]), values, sums[r][c]);
      }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int c = 0; c < C; ++c) _mm512_storeu_ps(acc + r * acc_stride + 16 * c, sums[r][c]);
    }
  }

  template <DType K, int R>
  static void add(float* acc, int64_t acc_stride, const float* p, const char* v, int64_t stride, int lo, int hi, int n,
                  Ahead<Avx512>& ahead) {
    constexpr int C = R == 1 ? 8 : R == 2 ? 4 : 2;
    p += lo;
    v += lo * stride;
    int d = 0;
    for (; d + 16 * C <= n; d += 16 * C) {
      add_columns<K, R, C>(acc + d, acc_stride, p, v + d * size_of(K), stride, hi - lo, ahead);
    }
    for (; d < n; d += 16) {
      add_columns<K, R, 1>(acc + d, acc_stride, p, v + d * size_of(K), stride, hi - lo, ahead);
    }
  }
};

void piece(const Attention& a, const AttentionPiece& piece, float* scratch) {
  if (a.head_dim % 16 != 0) return attention_kernels_avx2.piece(a, piece, scratch);
  run_attention_piece<Avx512>(a, piece, scratch);
}

void fold(const Attention& a, const AttentionFold& fold, float* scratch) { attention_kernels_avx2.fold(a, fold, scratch); }

}  // namespace

const AttentionKernels attention_kernels_avx512 = {piece, fold};

}  // namespace octavo
