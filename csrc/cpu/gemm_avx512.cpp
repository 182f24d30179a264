// AVX-512F. A tile of R rows times B panels keeps its R B accumulators, one panel wide each, in registers: at most 24 of
// 32. Bits are those of the other units, because each output is the same chain.
#include <immintrin.h>

#include <cstdint>

#include "gemm.h"
#include "unroll.h"

namespace octavo {
namespace {

// One of a line's inputs for its sixteen outputs: the only one of float32, the even or the odd one of bfloat16.
template <bool kIsBf16, bool kIsOdd>
inline __m512 weights(const char* line) {
  if (!kIsBf16) return _mm512_loadu_ps(reinterpret_cast<const float*>(line));
  const __m512i pairs = _mm512_loadu_si512(line);
  return _mm512_castsi512_ps(kIsOdd ? _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))
                                    : _mm512_slli_epi32(pairs, 16));
}

template <int R, int B, bool kIsBf16, bool kIsOdd>
inline void add_input(const GemmTile& t, const float* x, const char* line, __m512 (&sums)[R][B]) {
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) {
    const __m512 w = weights<kIsBf16, kIsOdd>(line + b * t.panel_stride);
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      sums[r][b] = _mm512_fmadd_ps(_mm512_set1_ps(x[r * t.row_stride]), w, sums[r][b]);
      OCTAVO_STAY(sums[r][b]);
    }
  }
}

template <int R, int B, bool kIsBf16>
inline void tile(const GemmTile& t, int first_panel) {
  const char* line = t.panel + first_panel * t.panel_stride;
  const float* begin = t.begin + first_panel * t.begin_panel;
  float* out = t.out + int64_t(first_panel) * kPanel;
  __m512 sums[R][B];
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) sums[r][b] = _mm512_loadu_ps(begin + r * t.begin_row + b * t.begin_panel);
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
    for (int b = 0; b < B; ++b) _mm512_storeu_ps(out + r * t.out_stride + b * kPanel, sums[r][b]);
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
    case 2: return tiles<2, 4, kIsBf16>(t);
    case 3: return tiles<3, 4, kIsBf16>(t);
    case 4: return tiles<4, 4, kIsBf16>(t);
    case 5: return tiles<5, 4, kIsBf16>(t);
    default: return tiles<6, 4, kIsBf16>(t);
  }
}

}  // namespace

void gemm_avx512(const GemmTile& t) { t.dtype == DType::bfloat16 ? rows<true>(t) : rows<false>(t); }

}  // namespace octavo
