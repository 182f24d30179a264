// AVX-512 VNNI: vpdpbusd multiplies a quad of weights (unsigned, with their zero point) with a quad of x (signed) and adds
// the four products to 32 bits; sixteen outputs at once. Integer sums are exact, so bits are those of the other units.
#include <immintrin.h>

#include <cstdint>

#include "qgemm.h"
#include "unroll.h"

namespace octavo {
namespace {

constexpr int kAhead = 2048;   // bytes, as in the AVX2 unit
constexpr int kMaxRows = 12;  // of 32 registers; as many chains as two units of latency five want

// The quad's weights of all sixteen outputs, four bytes each.
template <bool kIsInt8>
inline __m512i weights_of(const uint8_t* panel, int64_t quad) {
  if (kIsInt8) return _mm512_loadu_si512(panel + quad * 64);
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + quad * 32));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_and_si256(both, nibble);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
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

template <int R, bool kIsInt8>
void multiply_as(const QuantTile& t) {
  const QuantWeight& w = *t.weight;
  const int quads = num_quads(w.num_inputs), groups = num_groups(w), group_quads = w.group / kQuad;
  const uint8_t* panel = w.values + t.panel * quads * quad_bytes(w.type);
  const int8_t* x = static_cast<const int8_t*>(t.x.values);
  __m512 chains[R];
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) chains[r] = _mm512_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    const int first = g * group_quads, last = first + group_quads < quads ? first + group_quads : quads;
    __m512i sums[R];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_si512();
    for (int q = first; q < last; ++q) {
      _mm_prefetch(reinterpret_cast<const char*>(panel + q * quad_bytes(w.type) + kAhead), _MM_HINT_T0);
      const __m512i weights = weights_of<kIsInt8>(panel, q);
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m512i input = _mm512_set1_epi32(*reinterpret_cast<const int*>(x + (int64_t(q) * R + r) * kQuad));
        sums[r] = _mm512_dpbusd_epi32(sums[r], weights, input);
      }
    }
    const int64_t at = (int64_t(t.panel) * groups + g) * kPanel;
    const __m512 scale = kIsInt8 ? _mm512_set1_ps(1.0f) : widen_scales(w, at);
    const __m512 zero = kIsInt8 ? _mm512_set1_ps(128.0f)
                        : w.zeros == nullptr ? _mm512_set1_ps(8.0f) : widen_u8(w.zeros + at);
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 x_scale = _mm512_set1_ps(t.x.scales[g * R + r]), x_sum = _mm512_set1_ps(t.x.sums[g * R + r]);
      const __m512 exact = _mm512_fnmadd_ps(zero, x_sum, _mm512_cvtepi32_ps(sums[r]));
      chains[r] = _mm512_fmadd_ps(exact, kIsInt8 ? x_scale : _mm512_mul_ps(x_scale, scale), chains[r]);
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(t.out + r * kPanel, chains[r]);
}

template <int R>
void multiply_rows(const QuantTile& t) {
  t.weight->type == QuantType::int8 ? multiply_as<R, true>(t) : multiply_as<R, false>(t);
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

const QuantKernels kQuantAvx512{kMaxRows, 1, quantize_avx2, multiply, nullptr};

}  // namespace octavo
