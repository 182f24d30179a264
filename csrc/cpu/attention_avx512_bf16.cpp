// AVX512_BF16: attention over a cache of bfloat16 by products of bfloat16, two keys or two features in one instruction. Queries
// and softmax weights are rounded to bfloat16, sums are float32; attention.h states the order. Head sizes that are no multiple
// of 32 and caches of other types go to the AVX-512 unit.
//
// Sums of 32 columns lie as unpacking two rows of values leaves them: first columns 0 .. 3 of each eight, then 4 .. 7.
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

// The word of two bfloat16 at `x` in each lane.
OCTAVO_INLINE __m512bh pair_in_all(const float* x) {
  int32_t word;
  std::memcpy(&word, x, 4);
  return (__m512bh)_mm512_set1_epi32(word);
}

OCTAVO_INLINE __m512 add_pairs(__m512 sum, const float* x, __m512i pairs) {
  return _mm512_dpbf16_ps(sum, pair_in_all(x), (__m512bh)pairs);
}

OCTAVO_INLINE void store_rounded(float* words, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), (__m256i)_mm512_cvtneps_pbh(values));
}

// Which of a pair of keys are seen.
enum class Seen { even, odd, both };

template <Seen kSeen>
OCTAVO_INLINE __m512i seen_of(__m512i pairs) {
  if constexpr (kSeen == Seen::both) return pairs;
  return _mm512_and_si512(pairs, _mm512_set1_epi32(kSeen == Seen::even ? 0xffff : int(0xffff0000u)));
}

// One line of B panels.
template <int R, int B, Seen kSeen>
OCTAVO_INLINE void add_line(__m512 (&sums)[R][B], const float* x, int64_t x_stride, const float* line, int64_t panel_stride) {
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) {
    const __m512i pairs = seen_of<kSeen>(_mm512_loadu_si512(line + b * panel_stride));
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) sums[r][b] = add_pairs(sums[r][b], x + r * x_stride, pairs);
  }
}

// 32 columns of two tokens, `stride` bytes apart.
template <int R, Seen kSeen>
OCTAVO_INLINE void add_tokens(__m512 (&sums)[R][2], const float* p, const char* v, int64_t stride) {
  const __m512i none = _mm512_setzero_si512();
  const __m512i even = kSeen == Seen::odd ? none : _mm512_loadu_si512(v);
  const __m512i odd = kSeen == Seen::even ? none : _mm512_loadu_si512(v + stride);
  const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    sums[r][0] = add_pairs(sums[r][0], p + r * kStretch, low);
    sums[r][1] = add_pairs(sums[r][1], p + r * kStretch, high);
  }
}

struct Avx512Bf16 : Avx2 {
  static constexpr int kPair = 2;
  static constexpr int kPanels = 4;
  // The memory is waited for and not the sums: one head, and 32 columns, at a time take the longest over what they have while
  // more is read (docs/log.md).
  static constexpr int heads_together(int) { return 1; }

  static void load_row(float* words, const char* src, DType dtype, int n) {
    for (int i = 0; i < n; i += 16) {
      float wide[16];
      Avx2::load_row(wide, at(src, i, dtype), dtype, 16);
      store_rounded(words + i / 2, _mm512_loadu_ps(wide));
    }
  }

  static void store_row(char* dst, const float* src, float factor, DType dtype, int n) {
    for (int i = 0; i < n; i += 32, src += 32, dst += 32 * size_of(dtype)) {
      float columns[32];
      for (int half = 0; half < 2; ++half) {
        const __m256 low = _mm256_loadu_ps(src + 8 * half), high = _mm256_loadu_ps(src + 16 + 8 * half);
        _mm256_storeu_ps(columns + 16 * half, _mm256_permute2f128_ps(low, high, 0x20));
        _mm256_storeu_ps(columns + 16 * half + 8, _mm256_permute2f128_ps(low, high, 0x31));
      }
      Avx2::store_row(dst, columns, factor, dtype, 32);
    }
  }

  template <DType K>
  static void pack_keys(float* panel, const char* k, int64_t stride, int n) {
    for (int word = 0; word < n / 2; word += 4) {
      __m512i words[4];
      load_words(words, k + word * 4, stride);
      OCTAVO_UNROLL
      for (int i = 0; i < 4; ++i) _mm512_storeu_si512(panel + (word + i) * 16, words[i]);
    }
  }

  template <DType K>
  static void pack_values(float* panels, const char* v, int64_t stride, int tokens, int n) {
    constexpr int64_t kPanelStride = kStretch / 2 * 16;
    for (int j = 0; j < tokens; j += 2) {
      for (int d = 0; d < n; d += 32) {
        const char* from = v + j * stride + d * 2;
        const __m512i even = _mm512_loadu_si512(from);
        const __m512i odd = j + 1 < tokens ? _mm512_loadu_si512(from + stride) : _mm512_setzero_si512();
        float* to = panels + d / 16 * kPanelStride + j / 2 * 16;
        _mm512_storeu_si512(to, _mm512_unpacklo_epi16(even, odd));
        _mm512_storeu_si512(to + kPanelStride, _mm512_unpackhi_epi16(even, odd));
      }
    }
  }

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
    const float *x = t.x + t.lo / 2, *line = t.panel + t.lo / 2 * 16;
    const int64_t x_stride = t.x_stride, panel_stride = t.panel_stride;
    if (t.lo % 2 != 0) {
      add_line<R, B, Seen::odd>(sums, x, x_stride, line, panel_stride);
      ++x, line += 16;
    }
    for (int pair = (t.lo + 1) / 2; pair < t.hi / 2; ++pair, ++x, line += 16) {
      add_line<R, B, Seen::both>(sums, x, x_stride, line, panel_stride);
    }
    if (t.hi % 2 != 0) add_line<R, B, Seen::even>(sums, x, x_stride, line, panel_stride);
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) _mm512_storeu_ps(t.out + r * t.out_stride + b * 16, sums[r][b]);
    }
  }

  static float softmax(float* row, int lo, int hi, const float* k_scales, const float* v_scales, const Attention& a,
                       float* maximum, float* sum) {
    return softmax16(row, lo, hi, k_scales, v_scales, a, maximum, sum,
                     [row](int j, __m512 p) { store_rounded(row + j / 2, p); });
  }

  template <DType K, int R, int B>
  static void scores(float* out, const float* q, int64_t q_stride, const char* k, int64_t stride, int n,
                     Ahead<Avx512Bf16>& ahead) {
    static_assert(B == 1);
    __m512 sums[R];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_ps();
    for (int word = 0; word < n / 2; word += 4) {
      __m512i words[4];
      load_words(words, k + word * 4, stride);
      OCTAVO_UNROLL
      for (int i = 0; i < 4; ++i) {
        OCTAVO_UNROLL
        for (int r = 0; r < R; ++r) sums[r] = add_pairs(sums[r], q + r * q_stride + word + i, words[i]);
      }
      OCTAVO_UNROLL
      for (int line = 0; line < 4; ++line) ahead.fetch();
    }
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(out + r * kStretch, sums[r]);
  }

  // 32 columns of R rows: their sums stay in registers past all keys.
  template <int R>
  static void add_columns(float* acc, int64_t acc_stride, const float* p, const char* v, int64_t stride, int lo, int hi,
                          Ahead<Avx512Bf16>& ahead) {
    __m512 sums[R][2];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      sums[r][0] = _mm512_loadu_ps(acc + r * acc_stride);
      sums[r][1] = _mm512_loadu_ps(acc + r * acc_stride + 16);
    }
    if (lo % 2 != 0) add_tokens<R, Seen::odd>(sums, p + lo / 2, v + (lo - 1) * stride, stride);
    for (int pair = (lo + 1) / 2; pair < hi / 2; ++pair) {
      ahead.fetch();
      ahead.fetch();
      add_tokens<R, Seen::both>(sums, p + pair, v + 2 * pair * stride, stride);
    }
    if (hi % 2 != 0) add_tokens<R, Seen::even>(sums, p + hi / 2, v + (hi - 1) * stride, stride);
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      _mm512_storeu_ps(acc + r * acc_stride, sums[r][0]);
      _mm512_storeu_ps(acc + r * acc_stride + 16, sums[r][1]);
    }
  }

  template <DType K, int R>
  static void add(float* acc, int64_t acc_stride, const float* p, const char* v, int64_t stride, int lo, int hi, int n,
                  Ahead<Avx512Bf16>& ahead) {
    for (int d = 0; d < n; d += 32) add_columns<R>(acc + d, acc_stride, p, v + d * 2, stride, lo, hi, ahead);
  }
};

bool takes(const Attention& a) { return a.cache_dtype == DType::bfloat16 && a.head_dim % 32 == 0; }

void piece(const Attention& a, const AttentionPiece& piece, float* scratch) {
  if (!takes(a)) return attention_kernels_avx512.piece(a, piece, scratch);
  Walk<Avx512Bf16, DType::bfloat16>(a, piece, scratch).run();
}

void fold(const Attention& a, const AttentionFold& fold, float* scratch) {
  if (!takes(a)) return attention_kernels_avx512.fold(a, fold, scratch);
  fold_attention_row<Avx512Bf16>(a, fold, scratch);
}

}  // namespace

const AttentionKernels attention_kernels_avx512_bf16 = {piece, fold};

}  // namespace octavo
