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

template <bool kIsBf16>
inline Sixteen load16(const char* src) {
  if (!kIsBf16) return {_mm256_loadu_ps(reinterpret_cast<const float*>(src)), _mm256_loadu_ps(reinterpret_cast<const float*>(src) + 8)};
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src));
  const __m256i upper = _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), _mm256_castsi256_ps(upper)};
}

template <int R, int B, bool kIsBf16>
inline void tile(const GemmTile& t, int first_panel) {
  constexpr int kBytes = kPanel * (kIsBf16 ? 2 : 4);
  const char* panels = t.panel + first_panel * t.panel_stride;
  float* out = t.out + int64_t(first_panel) * kPanel;
  Sixteen sums[R][B];
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) sums[r][b] = load16<false>(reinterpret_cast<const char*>(out + r * t.out_stride + b * kPanel));
  }
  const float* x = t.x;
  for (int d = 0; d < t.num_inputs; ++d, x += t.input_stride) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const Sixteen w = load16<kIsBf16>(panels + b * t.panel_stride + int64_t(d) * kBytes);
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256 input = _mm256_broadcast_ss(x + r * t.row_stride);
        sums[r][b].low = _mm256_fmadd_ps(input, w.low, sums[r][b].low);
        sums[r][b].high = _mm256_fmadd_ps(input, w.high, sums[r][b].high);
      }
    }
  }
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
    case 3: return tiles<3, 2, kIsBf16>(t);
    case 4: return tiles<4, 1, kIsBf16>(t);
    case 5: return tiles<5, 1, kIsBf16>(t);
    default: return tiles<6, 1, kIsBf16>(t);
  }
}

}  // namespace

void gemm_avx2(const GemmTile& t) { t.dtype == DType::bfloat16 ? rows<true>(t) : rows<false>(t); }

}  // namespace octavo
