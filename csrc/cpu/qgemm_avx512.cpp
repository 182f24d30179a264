// AVX-512 VNNI: vpdpbusd multiplies a quad of weights (unsigned, with their zero point) with a quad of x (signed) and adds
// the four products to 32 bits; sixteen outputs at once. Integer sums are exact, so bits are those of the other units.
#include <immintrin.h>

#include <cstdint>

#include "qgemm.h"
#include "unroll.h"

namespace octavo {
namespace {

constexpr int kMaxRows = 6;      // times two panels: 12 integer sums, and beside int4 as many chains across groups
constexpr int kMaxFewRows = 12;  // 24 sums
constexpr int kAhead = 1024;     // bytes of a panel that one row has fetched early

constexpr int kTurn = 8;      // quads: a group of 32 inputs without a loop, in which GCC would move sums around

// The quad's weights of all sixteen outputs, four bytes each; of int4 those of outputs 8 .. 15 times 16, to be undone by
// their scales.
template <bool kIsInt8>
inline __m512i weights_of(const uint8_t* panel, int64_t quad) {
  if (kIsInt8) return _mm512_loadu_si512(panel + quad * 64);
  const __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + quad * 32)));
  return _mm512_and_si512(twice, _mm512_inserti64x4(_mm512_set1_epi8(15), _mm256_set1_epi8(-16), 1));
}

// sum += quads of weights times quads of inputs, in the register where sum is: with the intrinsic GCC 12 moves sums from
// register to register in every turn of a loop, and keeps some in memory.
inline void add_quads(__m512i& sum, __m512i weights, __m512i input) {
#if defined(__GNUC__) && !defined(OCTAVO_EMULATED_AVX512)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(input));
#else
  sum = _mm512_dpbusd_epi32(sum, weights, input);
#endif
}

inline __m512 widen_bf16(const uint16_t* at) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m512 widen_scales_as_they_are(const QuantWeight& w, int64_t at) {
  if (w.scale_type == DType::bfloat16) return widen_bf16(w.scales + at);
  if (w.scale_type == DType::float32) return _mm512_loadu_ps(w.channel_scales + at);
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.scales + at)));
}

inline __m512 halves_of(float low, float high) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(low), 0xff00, _mm512_set1_ps(high));
}

// Exact: a sixteenth of even the least bfloat16 or float16 is a float, and `pack_levels` takes no smaller float32.
inline __m512 widen_scales(const QuantWeight& w, int64_t at) {
  return _mm512_mul_ps(widen_scales_as_they_are(w, at), halves_of(1.0f, 0.0625f));
}

inline __m512 widen_zeros(const uint8_t* at) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(wide), halves_of(1.0f, 16.0f));
}

// Where a group's sums begin: what one zero point for all outputs takes off.
template <bool kIsInt8, bool kHasZeros>
inline __m512i first_sum(int32_t x_sum) {
  if (kHasZeros) return _mm512_setzero_si512();
  const __m512i sum = _mm512_set1_epi32(x_sum);
  return kIsInt8 ? sum : _mm512_mask_mov_epi32(sum, 0xff00, _mm512_slli_epi32(sum, 4));
}

inline __m512i input_of(const QuantTile& t, int64_t index) {
  return _mm512_set1_epi32(static_cast<const int*>(t.x.values)[index]);
}

// What of a panel there is.
inline __mmask16 valid_of(const QuantWeight& w, int panel) {
  const int valid = w.num_outputs - panel * kPanel;
  return static_cast<__mmask16>(valid >= kPanel ? 0xffff : (1 << valid) - 1);
}

// B panels' scales, biases and where they end.
template <int B>
struct Finish {
  __m512 scale[B], bias[B];
  __mmask16 valid[B];
  bool is_scaled;

  explicit Finish(const QuantTile& t) : is_scaled(t.weight->type == QuantType::int8) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const int first = (t.panel + b) * kPanel;
      valid[b] = valid_of(*t.weight, t.panel + b);
      scale[b] = is_scaled ? _mm512_loadu_ps(t.weight->channel_scales + first) : _mm512_set1_ps(1.0f);
      bias[b] = t.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(valid[b], t.bias + first);
    }
  }

  // Asks for the lines to be written, which few rows are soon through with.
  void fetch(const QuantTile& t) const {
    const char* out = reinterpret_cast<const char*>(t.out + t.panel * kPanel);
    for (int r = 0; r < t.x.num_rows; ++r, out += t.weight->num_outputs * sizeof(float)) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) _mm_prefetch(out + b * kPanel * sizeof(float), _MM_HINT_T0);
    }
  }

  void store(const QuantTile& t, int r, int b, __m512 chain) const {
    float* out = t.out + int64_t(r) * t.weight->num_outputs + (t.panel + b) * kPanel;
    if (is_scaled) chain = _mm512_mul_ps(chain, scale[b]);
    const __m512 whole = _mm512_add_ps(chain, bias[b]);
    valid[b] == 0xffff ? _mm512_storeu_ps(out, whole) : _mm512_mask_storeu_ps(out, valid[b], whole);  // far slower
  }
};

// The chain of an output lies in memory between the groups a that share a scale of x.
inline void extend(float* chain, int a, __m512 part, __m512 x_scale) {
  _mm512_store_ps(chain, _mm512_fmadd_ps(part, x_scale, a == 0 ? _mm512_setzero_ps() : _mm512_load_ps(chain)));
}

// Adds R rows times B panels to integer sums, some quads after the other, and fetches what comes later.
template <int R, int B, bool kIsInt8>
struct Products {
  static constexpr int kBytes = kIsInt8 ? 64 : 32;
  int64_t panel_bytes;
  const uint8_t* panel;
  const int32_t* x;
  const uint8_t* ahead;
  int64_t asked = 0;     // bytes
  int64_t due = 0;       // in 256ths of a byte, as is what a turn adds
  int64_t due_step;

  explicit Products(const QuantTile& t)
      : panel_bytes(int64_t(num_quads(t.weight->num_inputs)) * kBytes),
        panel(t.weight->values + t.panel * panel_bytes),
        x(static_cast<const int32_t*>(t.x.values)),
        ahead(t.ahead),
        due_step(t.ahead_bytes * 256 * kTurn / (num_quads(t.weight->num_inputs) + 1)) {}

  static void add_quad(const uint8_t* panel, int64_t panel_bytes, const int32_t* x, __m512i (&sums)[R][B]) {
    __m512i weights[B];
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) weights[b] = weights_of<kIsInt8>(panel + b * panel_bytes, 0);
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512i input = _mm512_set1_epi32(x[r]);
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) add_quads(sums[r][b], weights[b], input);
    }
  }

  OCTAVO_APART static void add_rest(Products products, int count, __m512i (&sums)[R][B]) {
    for (int q = 0; q < count; ++q) add_quad(products.panel + q * kBytes, products.panel_bytes, products.x + q * R, sums);
  }

  void add(int count, __m512i (&sums)[R][B]) {
    for (; count >= kTurn; count -= kTurn) {
      for (due += due_step; asked < due >> 8; asked += 64) {
        OCTAVO_UNROLL
        for (int b = 0; b < B; ++b) _mm_prefetch(reinterpret_cast<const char*>(ahead + asked + b * panel_bytes), _MM_HINT_T1);
      }
      OCTAVO_UNROLL
      for (int q = 0; q < kTurn; ++q) add_quad(panel + q * kBytes, panel_bytes, x + q * R, sums);
      panel += kTurn * kBytes;
      x += kTurn * R;
    }
    if (count == 0) return;
    __m512i rest[R][B];  // in memory, so that `sums` need not be
    copy(sums, rest);
    add_rest(*this, count, rest);
    copy(rest, sums);
  }

  static void copy(const __m512i (&from)[R][B], __m512i (&to)[R][B]) {
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) to[r][b] = from[r][b];
    }
  }
};

template <int R, int B>
void multiply_int8(const QuantTile& t) {
  const QuantWeight& w = *t.weight;
  const int quads = num_quads(w.num_inputs), groups = num_groups(w), group_quads = w.group / kQuad;
  Products<R, B, true> products(t);
  const Finish<B> finish(t);
  finish.fetch(t);
  alignas(64) float buffer[R * B * kPanel];
  float* chains = buffer;
  OCTAVO_IN_MEMORY(chains);
  for (int g = 0; g < groups; ++g) {
    const int count = quads - g * group_quads < group_quads ? quads - g * group_quads : group_quads;
    const int32_t* x_sums = t.x.sums + g * R;
    __m512i sums[R][B];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        sums[r][b] = first_sum<true, false>(x_sums[r]);
        OCTAVO_STAY(sums[r][b]);
      }
    }
    products.add(count, sums);
    const float* x_scales = t.x.scales + g * R;
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 x_scale = _mm512_set1_ps(x_scales[r]);
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        extend(chains + (r * B + b) * kPanel, g, _mm512_cvtepi32_ps(sums[r][b]), x_scale);
      }
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const float* chain = chains + (r * B + b) * kPanel;
      finish.store(t, r, b, groups == 0 ? _mm512_setzero_ps() : _mm512_load_ps(chain));
    }
  }
}

// What int4 weights' groups have for sixteen outputs.
template <bool kHasZeros>
inline __m512 exact_sum(__m512i sum, __m512 zero, __m512 x_sum) {
  return kHasZeros ? _mm512_fmadd_ps(zero, x_sum, _mm512_cvtepi32_ps(sum)) : _mm512_cvtepi32_ps(sum);
}

template <int R, int B, bool kHasZeros>
void multiply_int4(const QuantTile& t) {
  const QuantWeight& w = *t.weight;
  const int quads = num_quads(w.num_inputs), groups = num_groups(w), group_quads = w.group / kQuad;
  const int together = kActivationGroup / w.group;
  Products<R, B, false> products(t);
  const Finish<B> finish(t);
  finish.fetch(t);
  alignas(64) float buffer[R * B * kPanel];
  float* chains = buffer;
  OCTAVO_IN_MEMORY(chains);
  for (int from = 0, a = 0; from < groups; from += together, ++a) {
    const int to = from + together < groups ? from + together : groups;
    __m512 parts[R][B];
    for (int g = from; g < to; ++g) {
      const int count = quads - g * group_quads < group_quads ? quads - g * group_quads : group_quads;
      const int32_t* x_sums = t.x.sums + g * R;
      __m512i sums[R][B];
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) {
        OCTAVO_UNROLL
        for (int b = 0; b < B; ++b) {
          sums[r][b] = first_sum<false, kHasZeros>(x_sums[r]);
          OCTAVO_STAY(sums[r][b]);
        }
      }
      products.add(count, sums);
      __m512 scale[B], zero[B];
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        const int64_t at = (int64_t(t.panel + b) * groups + g) * kPanel;
        scale[b] = widen_scales(w, at);
        zero[b] = kHasZeros ? widen_zeros(w.zeros + at) : _mm512_setzero_ps();
      }
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m512 x_sum = kHasZeros ? _mm512_cvtepi32_ps(_mm512_set1_epi32(x_sums[r])) : _mm512_setzero_ps();
        OCTAVO_UNROLL
        for (int b = 0; b < B; ++b) {
          const __m512 exact = exact_sum<kHasZeros>(sums[r][b], zero[b], x_sum);
          parts[r][b] = g == from ? _mm512_mul_ps(exact, scale[b]) : _mm512_fmadd_ps(exact, scale[b], parts[r][b]);
        }
      }
    }
    const float* x_scales = t.x.scales + a * R;
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 x_scale = _mm512_set1_ps(x_scales[r]);
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        extend(chains + (r * B + b) * kPanel, a, parts[r][b], x_scale);
      }
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const float* chain = chains + (r * B + b) * kPanel;
      finish.store(t, r, b, groups == 0 ? _mm512_setzero_ps() : _mm512_load_ps(chain));
    }
  }
}

template <int R, int B>
void multiply_panels(const QuantTile& t) {
  if (t.weight->type == QuantType::int8) return multiply_int8<R, B>(t);
  constexpr int kRows = R < kMaxRows ? R : kMaxRows;  // no more come here
  t.weight->zeros == nullptr ? multiply_int4<kRows, B, false>(t) : multiply_int4<kRows, B, true>(t);
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

// One row: B panels that lie apart, so that as many runs of memory are read side by side. Chains stay in registers.
template <int B, bool kIsInt8>
struct Row {
  static constexpr int64_t kBytes = kIsInt8 ? 64 : 32;
  const QuantTile& t;
  const QuantWeight& w = *t.weight;
  const int quads = num_quads(w.num_inputs);
  const int groups = num_groups(w);
  const int group_quads = w.group / kQuad;
  const int64_t stride = t.panel_step * quads * quad_bytes(w.type);
  const uint8_t* values = w.values + t.panel * quads * quad_bytes(w.type);

  // Integer sums of a group, zero points taken off where they are the same for all.
  template <bool kHasZeros>
  void sum(int g, __m512i (&sums)[B]) const {
    const int first = g * group_quads, last = first + group_quads < quads ? first + group_quads : quads;
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) sums[b] = first_sum<kIsInt8, kHasZeros>(t.x.sums[g]);
    for (int q = first; q < last; ++q) {
      const __m512i input = input_of(t, q);
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        const uint8_t* panel = values + b * stride;
        _mm_prefetch(reinterpret_cast<const char*>(panel + q * kBytes + kAhead), _MM_HINT_T0);
        add_quads(sums[b], weights_of<kIsInt8>(panel, q), input);
      }
    }
  }

  void store(const __m512 (&chains)[B]) const {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      QuantTile one = t;
      one.panel += b * t.panel_step;
      Finish<1>(one).store(one, 0, 0, chains[b]);
    }
  }
};

template <int B>
void row_int8(const QuantTile& t) {
  const Row<B, true> row{t};
  __m512 chains[B];
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) chains[b] = _mm512_setzero_ps();
  for (int g = 0; g < row.groups; ++g) {
    __m512i sums[B];
    row.template sum<false>(g, sums);
    const __m512 x_scale = _mm512_set1_ps(t.x.scales[g]);
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) chains[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[b]), x_scale, chains[b]);
  }
  row.store(chains);
}

template <int B, bool kHasZeros>
void row_int4(const QuantTile& t) {
  const Row<B, false> row{t};
  const QuantWeight& w = row.w;
  const int together = kActivationGroup / w.group;
  __m512 chains[B], parts[B];
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) chains[b] = parts[b] = _mm512_setzero_ps();
  for (int g = 0; g < row.groups; ++g) {
    __m512i sums[B];
    row.template sum<kHasZeros>(g, sums);
    const __m512 x_sum = _mm512_set1_ps(static_cast<float>(t.x.sums[g]));
    const bool is_first = g % together == 0, is_last = g % together == together - 1 || g + 1 == row.groups;
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const int64_t at = (int64_t(t.panel + b * t.panel_step) * row.groups + g) * kPanel;
      const __m512 scale = widen_scales(w, at), zero = kHasZeros ? widen_zeros(w.zeros + at) : _mm512_setzero_ps();
      const __m512 exact = exact_sum<kHasZeros>(sums[b], zero, x_sum);
      parts[b] = is_first ? _mm512_mul_ps(exact, scale) : _mm512_fmadd_ps(exact, scale, parts[b]);
    }
    if (!is_last) continue;
    const __m512 x_scale = _mm512_set1_ps(t.x.scales[g / together]);
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) chains[b] = _mm512_fmadd_ps(parts[b], x_scale, chains[b]);
  }
  row.store(chains);
}

template <int B>
void multiply_row_of(const QuantTile& t) {
  if (t.weight->type == QuantType::int8) return row_int8<B>(t);
  t.weight->zeros == nullptr ? row_int4<B, false>(t) : row_int4<B, true>(t);
}

void multiply_row(const QuantTile& t) { t.panel_step == 0 ? multiply_row_of<1>(t) : multiply_row_of<kPanelsOfRow>(t); }

}  // namespace

const QuantKernels kQuantAvx512{kMaxRows, kMaxFewRows, 1, quantize_avx2, multiply, multiply_row, 2};

}  // namespace octavo
