// AVX-512F. A tile of R rows times B panels keeps its R B accumulators, one panel wide each, in registers: at most 24 of
// 32. Bits are those of the other units, because each output is the same chain.
#include <immintrin.h>

#include <cstdint>

#include "gemm.h"
#include "unroll.h"

namespace octavo {
namespace {

// Lane i of an accumulator over bfloat16 weights is the output at place i (gemm.h, place_of): 0 8 1 9 ...
inline __m512i placed_order() { return _mm512_set_epi32(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0); }
inline __m512i output_order() { return _mm512_set_epi32(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0); }

template <bool kIsBf16>
inline __m512 load16(const char* src) {
  if (!kIsBf16) return _mm512_loadu_ps(reinterpret_cast<const float*>(src));
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

template <int R, int B, bool kIsBf16>
inline void tile(const GemmTile& t, int first_panel) {
  constexpr int kBytes = kPanel * (kIsBf16 ? 2 : 4);
  const char* panels = t.panel + first_panel * t.panel_stride;
  float* out = t.out + int64_t(first_panel) * kPanel;
  __m512 sums[R][B];
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      sums[r][b] = _mm512_loadu_ps(out + r * t.out_stride + b * kPanel);
      if (kIsBf16) sums[r][b] = _mm512_permutexvar_ps(placed_order(), sums[r][b]);
    }
  }
  const float* x = t.x;
  for (int d = 0; d < t.num_inputs; ++d, x += t.input_stride) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const __m512 w = load16<kIsBf16>(panels + b * t.panel_stride + int64_t(d) * kBytes);
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) sums[r][b] = _mm512_fmadd_ps(_mm512_set1_ps(x[r * t.row_stride]), w, sums[r][b]);
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      if (kIsBf16) sums[r][b] = _mm512_permutexvar_ps(output_order(), sums[r][b]);
      _mm512_storeu_ps(out + r * t.out_stride + b * kPanel, sums[r][b]);
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
