// AVX-512 VNNI: vpdpbusd multiplies a quad of weights (unsigned, with their zero point) with a quad of x (signed) and adds
// the four products to 32 bits; sixteen outputs at once. Integer sums are exact, so bits are those of the other units.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "qgemm.h"
#include "unroll.h"

namespace octavo {
namespace {

constexpr int kMaxRows = 12;  // times two panels: 24 of 32 registers

// The quad's weights of all sixteen outputs, four bytes each.
template <bool kIsInt8>
inline __m512i weights_of(const uint8_t* panel, int64_t quad) {
  if (kIsInt8) return _mm512_loadu_si512(panel + quad * 64);
  const __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + quad * 32)));
  const __m512i shifted = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
  return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
}

inline __m512 widen_bf16(const uint16_t* at) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m512 widen_scales(const QuantWeight& w, int64_t at) {
  if (w.scale_type == DType::bfloat16) return widen_bf16(w.scales + at);
  if (w.scale_type == DType::float32) return _mm512_loadu_ps(w.channel_scales + at);
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.scales + at)));
}

inline __m512 widen_u8(const uint8_t* at) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}

// -zero * sum of x, where one zero point goes for all outputs; exact, as the sums are.
inline __m512i first_sum(float x_sum, int zero) { return _mm512_set1_epi32(-zero * static_cast<int>(x_sum)); }

// Chains of a group: its scales times its sums. Each output's chain lies in `out` between groups.
template <int R, int B, bool kIsInt8>
inline void extend(const QuantTile& t, int g, const __m512i (&sums)[R][B]) {
  const QuantWeight& w = *t.weight;
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) {
    const int64_t at = (int64_t(t.panel + b) * num_groups(w) + g) * kPanel;
    const __m512 scale = kIsInt8 ? _mm512_set1_ps(1.0f) : widen_scales(w, at);
    const bool has_zeros = !kIsInt8 && w.zeros != nullptr;
    const __m512 zero = has_zeros ? widen_u8(w.zeros + at) : _mm512_setzero_ps();
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      float* chain = t.out + (b * R + r) * kPanel;
      const __m512 x_scale = _mm512_set1_ps(t.x.scales[g * R + r]);
      __m512 exact = _mm512_cvtepi32_ps(sums[r][b]);
      if (has_zeros) exact = _mm512_fnmadd_ps(zero, _mm512_set1_ps(t.x.sums[g * R + r]), exact);
      const __m512 before = g == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(chain);
      _mm512_storeu_ps(chain, _mm512_fmadd_ps(exact, kIsInt8 ? x_scale : _mm512_mul_ps(x_scale, scale), before));
    }
  }
}

template <int R, int B, bool kIsInt8>
void multiply_as(const QuantTile& t) {
  const QuantWeight& w = *t.weight;
  const int quads = num_quads(w.num_inputs), groups = num_groups(w), group_quads = w.group / kQuad;
  const int64_t panel_bytes = quads * quad_bytes(w.type);
  const uint8_t* panel = w.values + t.panel * panel_bytes;
  const uint8_t* ahead = t.ahead;
  const int8_t* x = static_cast<const int8_t*>(t.x.values);
  const int zero = kIsInt8 ? 128 : w.zeros == nullptr ? 8 : 0;
  for (int g = 0; g < groups; ++g) {
    const int first = g * group_quads, last = first + group_quads < quads ? first + group_quads : quads;
    __m512i sums[R][B];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) sums[r][b] = first_sum(t.x.sums[g * R + r], zero);
    }
    for (int q = first; q < last; ++q, ahead += t.ahead_step) {
      __m512i weights[B];
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + b * panel_bytes), _MM_HINT_T1);
        weights[b] = weights_of<kIsInt8>(panel + b * panel_bytes, q);
      }
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m512i input = _mm512_set1_epi32(*reinterpret_cast<const int*>(x + (int64_t(q) * R + r) * kQuad));
        OCTAVO_UNROLL
        for (int b = 0; b < B; ++b) {
          sums[r][b] = _mm512_dpbusd_epi32(sums[r][b], weights[b], input);
          OCTAVO_STAY(sums[r][b]);
        }
      }
    }
    extend<R, B, kIsInt8>(t, g, sums);
  }
  if (groups == 0) std::memset(t.out, 0, sizeof(float) * R * B * kPanel);
}

template <int R, int B>
void multiply_panels(const QuantTile& t) {
  t.weight->type == QuantType::int8 ? multiply_as<R, B, true>(t) : multiply_as<R, B, false>(t);
}

template <int R>
void multiply_rows(const QuantTile& t) {
  t.num_panels == 1 ? multiply_panels<R, 1>(t) : multiply_panels<R, 2>(t);
}

void multiply(const QuantTile& t) {
  switch (t.x.num_rows) {
    case 1: return multiply_rows<1>(t);
    case 2: return multiply_rows<2>(t);
    case 3: return multiply_rows<3>(t);
    case 4: return multiply_rows<4>(t);
    case 5: return multiply_rows<5>(t);
    case 6: return multiply_rows<6>(t);
    case 7: return multiply_rows<7>(t);
    case 8: return multiply_rows<8>(t);
    case 9: return multiply_rows<9>(t);
    case 10: return multiply_rows<10>(t);
    case 11: return multiply_rows<11>(t);
    default: return multiply_rows<12>(t);
  }
}

}  // namespace

const QuantKernels kQuantAvx512{kMaxRows, 1, quantize_avx2, multiply, nullptr, 2};

}  // namespace octavo
