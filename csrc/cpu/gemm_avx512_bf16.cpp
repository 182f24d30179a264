// AVX512_BF16: two products of bfloat16 and two sums in float32 for each of sixteen outputs in one instruction. A tile of R
// rows times B panels keeps its R B accumulators in registers: at most 24 of 32.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "gemm.h"
#include "unroll.h"

namespace octavo {
namespace {

using std::memcpy;
#include "convert_body.h"

inline __m512bh pair_in_all(const float* x) {
  int32_t word;
  std::memcpy(&word, x, 4);
  return (__m512bh)_mm512_set1_epi32(word);
}

template <int R, int B>
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
  const float* x = t.x;
  const char* ahead = t.ahead + first_panel * t.panel_stride;
  for (int pair = 0; pair < t.num_inputs; ++pair, ++x, line += kLine, ahead += t.ahead_step) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      _mm_prefetch(ahead + b * t.panel_stride, _MM_HINT_T1);
      const __m512bh w = (__m512bh)_mm512_loadu_si512(line + b * t.panel_stride);
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) sums[r][b] = _mm512_dpbf16_ps(sums[r][b], pair_in_all(x + r * t.row_stride), w);
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) _mm512_storeu_ps(out + r * t.out_stride + b * kPanel, sums[r][b]);
  }
}

template <int R, int B>
void tiles(const GemmTile& t) {
  int panel = 0;
  for (; panel + B <= t.num_panels; panel += B) tile<R, B>(t, panel);
  for (; panel < t.num_panels; ++panel) tile<R, 1>(t, panel);
}

}  // namespace

void gemm_avx512_bf16(const GemmTile& t) {
  switch (t.num_rows) {
    case 1: return tiles<1, 4>(t);
    case 2: return tiles<2, 4>(t);
    case 3: return tiles<3, 4>(t);
    case 4: return tiles<4, 4>(t);
    case 5: return tiles<5, 4>(t);
    default: return tiles<6, 4>(t);
  }
}

void round_avx512_bf16(const float* x, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = float_to_bf16(x[i]);
}

}  // namespace octavo
