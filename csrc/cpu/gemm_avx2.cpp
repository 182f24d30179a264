// AVX2 + FMA. A tile of R rows times B panels keeps its 2 R B accumulators in registers; at most twelve, which leaves
// four for weights and inputs.
#include <immintrin.h>

#include <cstdint>

#include "gemm.h"
#include "unroll.h"

namespace octavo {
namespace {

struct Sixteen {
  __m256 low, high;  // outputs 0 .. 7 and 8 .. 15
};

// One of a line's inputs for eight of its outputs: the only one of float32, the even or the odd one of bfloat16.
template <bool kIsBf16, bool kIsOdd>
inline __m256 weights(const char* line) {
  if (!kIsBf16) return _mm256_loadu_ps(reinterpret_cast<const float*>(line));
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
  return _mm256_castsi256_ps(kIsOdd ? _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u)))
                                    : _mm256_slli_epi32(pairs, 16));
}

template <int R, int B, bool kIsBf16, bool kIsOdd>
inline void add_input(const GemmTile& t, const float* x, const char* line, Sixteen (&sums)[R][B]) {
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) {
    const __m256 low = weights<kIsBf16, kIsOdd>(line + b * t.panel_stride);
    const __m256 high = weights<kIsBf16, kIsOdd>(line + b * t.panel_stride + kLine / 2);
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256 input = _mm256_broadcast_ss(x + r * t.row_stride);
      sums[r][b].low = _mm256_fmadd_ps(input, low, sums[r][b].low);
      sums[r][b].high = _mm256_fmadd_ps(input, high, sums[r][b].high);
      OCTAVO_STAY(sums[r][b].low);
      OCTAVO_STAY(sums[r][b].high);
    }
  }
}

template <int R, int B, bool kIsBf16>
inline void tile(const GemmTile& t, int first_panel) {
  const char* line = t.panel + first_panel * t.panel_stride;
  const float* begin = t.begin + first_panel * t.begin_panel;
  float* out = t.out + int64_t(first_panel) * kPanel;
  Sixteen sums[R][B];
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const float* from = begin + r * t.begin_row + b * t.begin_panel;
      sums[r][b] = {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) OCTAVO_FETCH_TO_WRITE(out + r * t.out_stride + b * kPanel);
  }
  constexpr int kInputs = kIsBf16 ? 2 : 1;
  const float* x = t.x;
  const char* ahead = t.ahead + first_panel * t.panel_stride;
  int d = 0;
  for (; d + kInputs <= t.num_inputs; d += kInputs, line += kLine, ahead += t.ahead_step) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) _mm_prefetch(ahead + b * t.panel_stride, _MM_HINT_T1);
    add_input<R, B, kIsBf16, false>(t, x, line, sums);
    if (kIsBf16) add_input<R, B, kIsBf16, true>(t, x + 1, line, sums);
    x += kInputs;
  }
  if (d < t.num_inputs) add_input<R, B, kIsBf16, false>(t, x, line, sums);
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      _mm256_storeu_ps(out + r * t.out_stride + b * kPanel, sums[r][b].low);
      _mm256_storeu_ps(out + r * t.out_stride + b * kPanel + 8, sums[r][b].high);
    }
  }
}

template <int R, int B, bool kIsBf16>
void tiles(const GemmTile& t) {
  int panel = 0;
  for (; panel + B <= t.num_panels; panel += B) tile<R, B, kIsBf16>(t, panel);
  for (; panel < t.num_panels; ++panel) tile<R, 1, kIsBf16>(t, panel);
}

template <bool kIsBf16>
void rows(const GemmTile& t) {
  switch (t.num_rows) {
    case 1: return tiles<1, 4, kIsBf16>(t);
    case 2: return tiles<2, 2, kIsBf16>(t);
    case 3: return tiles<3, kIsBf16 ? 1 : 2, kIsBf16>(t);
    case 4: return tiles<4, 1, kIsBf16>(t);
    case 5: return tiles<5, 1, kIsBf16>(t);
    default: return tiles<6, 1, kIsBf16>(t);
  }
}

}  // namespace

void gemm_avx2(const GemmTile& t) { t.dtype == DType::bfloat16 ? rows<true>(t) : rows<false>(t); }

}  // namespace octavo
