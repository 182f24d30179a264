// AVX2 + FMA. int8: both sides widened to 16 bits, vpmaddwd; twice the products per instruction of float32. (vpmaddubsw
// would saturate: 2 x 255 x 127 > 32767.) int4: vpmaddubsw of numbers below 16 with int8, up to eight of which fit 16-bit
// sums (8 x 2 x 15 x 127 = 30480); four times the products of float32.
#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "qgemm.h"
#include "unroll.h"

namespace octavo {
namespace {

constexpr int kMaxRows = 6;
constexpr int kAhead = 2048;  // bytes of a panel to ask for early: of one stream the hardware reads too little ahead
alignas(32) constexpr float kZeros[kActivationGroup] = {};  // for rows with an infinity or NaN
constexpr int kSumQuads = 8;  // quads whose 16-bit sums cannot overflow

// Not std::min: a copy of it compiled for AVX2 could stand in for the baseline's.
inline int least(int a, int b) { return a < b ? a : b; }

// sum += term in the register where sum is: from the intrinsic GCC 12 makes a copy per addition, runs out of registers
// and keeps half of the sums in memory, at a third of the speed.
inline void add32(__m256i& sum, __m256i term) {
#if defined(__GNUC__)
  __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(term));
#else
  sum = _mm256_add_epi32(sum, term);
#endif
}

inline void add16(__m256i& sum, __m256i term) {
#if defined(__GNUC__)
  __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(term));
#else
  sum = _mm256_add_epi16(sum, term);
#endif
}

inline __m256i quad_pair(const void* at) { return _mm256_set1_epi64x(*static_cast<const long long*>(at)); }
inline __m256i quad_bytes4(const void* at) { return _mm256_set1_epi32(*static_cast<const int*>(at)); }

inline float largest_of(const float* x, int count) {
  const __m256i positive = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    most = _mm256_max_epi32(most, _mm256_and_si256(word, positive));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  int32_t largest = 0;
  for (int32_t lane : lanes) largest = lane > largest ? lane : largest;
  for (; i < count; ++i) {
    int32_t word;
    std::memcpy(&word, x + i, 4);
    word &= 0x7fffffff;
    largest = word > largest ? word : largest;
  }
  float value;
  std::memcpy(&value, &largest, 4);
  return value;
}

// Two quads as 16-bit integers; beyond `count` zeros.
inline __m128i round8(const float* x, int count, __m256 inverse) {
  alignas(32) float padded[8] = {};
  if (count < 8) {
    std::memcpy(padded, x, sizeof(float) * static_cast<size_t>(count));
    x = padded;
  }
  const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
  return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
}

inline int sum_of(__m128i sums) {
  sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1)));
}

// Inputs from .. from + count of row r, of one group of the weight; returns the sum of the integers.
template <int kBytes>
inline int round_group(const float* in, int count, int from, __m256 inverse, int r, int quads, const QuantRows& to) {
  __m128i sums = _mm_setzero_si128();
  for (int i = 0; i < count; i += 8) {
    __m128i eight = round8(in + i, least(8, count - i), inverse);
    sums = _mm_add_epi32(sums, _mm_madd_epi16(eight, _mm_set1_epi16(1)));
    const int quad = (from + i) / kQuad;
    char* at = static_cast<char*>(to.values) + (int64_t(quad) * to.num_rows + r) * kQuad * kBytes;
    const int64_t next = int64_t(to.num_rows) * kQuad * kBytes;
    if (kBytes == 1) eight = _mm_packs_epi16(eight, eight);
    const int64_t low = _mm_cvtsi128_si64(eight);
    std::memcpy(at, &low, kQuad * kBytes);
    if (quad + 1 < quads) {
      const int64_t high = kBytes == 1 ? low >> 32 : _mm_extract_epi64(eight, 1);
      std::memcpy(at + next, &high, kQuad * kBytes);
    }
  }
  return sum_of(sums);
}

template <int kBytes>
void quantize_as(const float* x, const QuantWeight& w, const QuantRows& to) {
  const int quads = num_quads(w.num_inputs), zero = common_zero(w);
  for (int r = 0; r < to.num_rows; ++r) {
    for (int from = 0; from < w.num_inputs; from += kActivationGroup) {
      const float* in = x + int64_t(r) * w.num_inputs + from;
      const int count = least(kActivationGroup, w.num_inputs - from);
      const float largest = largest_of(in, count);
      const bool is_finite = largest <= FLT_MAX;
      const bool is_zero = largest < FLT_MIN * 128;
      if (!is_finite) in = kZeros;
      const __m256 inverse = _mm256_set1_ps(is_finite && !is_zero ? 127.0f / largest : 0.0f);
      for (int i = 0; i < count; i += w.group) {
        const int sum = round_group<kBytes>(in + i, least(w.group, count - i), from + i, inverse, r, quads, to);
        to.sums[(from + i) / w.group * to.num_rows + r] = -zero * sum;
      }
      to.scales[from / kActivationGroup * to.num_rows + r] = !is_finite ? NAN : is_zero ? 0.0f : largest / 127.0f;
    }
  }
}

// Eight outputs from `first` on, their scale and bias applied, as far as there are such outputs.
inline void store8(const QuantTile& t, int row, int first, __m256 chain) {
  const QuantWeight& w = *t.weight;
  const int valid = w.num_outputs - first;
  if (valid <= 0) return;
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i is_valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(valid), lanes);
  if (w.type == QuantType::int8) chain = _mm256_mul_ps(chain, _mm256_loadu_ps(w.channel_scales + first));
  chain = _mm256_add_ps(chain, t.bias == nullptr ? _mm256_setzero_ps() : _mm256_maskload_ps(t.bias + first, is_valid));
  float* out = t.out + int64_t(row) * w.num_outputs + first;
  valid >= 8 ? _mm256_storeu_ps(out, chain) : _mm256_maskstore_ps(out, is_valid, chain);
}

// Chains of R rows, and of int4 those of the groups that share a scale of x.
template <int R>
struct Chains {
  alignas(32) float whole[R][kPanel];
  alignas(32) float part[R][kPanel];

  Chains() { std::memset(whole, 0, sizeof whole); }

  void store(const QuantTile& t) const {
    for (int r = 0; r < R; ++r) {
      store8(t, r, t.panel * kPanel, _mm256_load_ps(whole[r]));
      store8(t, r, t.panel * kPanel + 8, _mm256_load_ps(whole[r] + 8));
    }
  }
};

inline void extend(float* chain, __m256 term, __m256 factor) {
  _mm256_store_ps(chain, _mm256_fmadd_ps(term, factor, _mm256_load_ps(chain)));
}

// H parts of eight outputs from `part` on, over the quads of one group.
template <int R, int H>
inline void extend_int8(const QuantTile& t, const uint8_t* panel, int g, int first, int last, int part, Chains<R>& chains) {
  const int16_t* x = static_cast<const int16_t*>(t.x.values);
  __m256i sums[R][2 * H];
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int k = 0; k < 2 * H; ++k) sums[r][k] = _mm256_setzero_si256();
  }
  for (int q = first; q < last; ++q) {
    const __m128i* at = reinterpret_cast<const __m128i*>(panel + int64_t(q) * 64 + part * 32);
    if (part == 0) _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead, _MM_HINT_T0);
    __m256i weights[2 * H];
    OCTAVO_UNROLL
    for (int k = 0; k < 2 * H; ++k) weights[k] = _mm256_cvtepu8_epi16(_mm_loadu_si128(at + k));
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256i input = quad_pair(x + (int64_t(q) * R + r) * kQuad);
      OCTAVO_UNROLL
      for (int k = 0; k < 2 * H; ++k) add32(sums[r][k], _mm256_madd_epi16(input, weights[k]));
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m256 factor = _mm256_set1_ps(t.x.scales[g * R + r]);
    OCTAVO_UNROLL
    for (int h = 0; h < H; ++h) {
      const __m256i pairs = _mm256_hadd_epi32(sums[r][2 * h], sums[r][2 * h + 1]);  // outputs 0 1 4 5 | 2 3 6 7
      const __m256i eight = _mm256_permute4x64_epi64(pairs, 0xd8);
      const __m256i exact = _mm256_add_epi32(eight, _mm256_set1_epi32(t.x.sums[g * R + r]));
      extend(chains.whole[r] + (part + h) * 8, _mm256_cvtepi32_ps(exact), factor);
    }
  }
}

template <int R>
void multiply_int8(const QuantTile& t) {
  const QuantWeight& w = *t.weight;
  const int quads = num_quads(w.num_inputs), groups = num_groups(w);
  const uint8_t* panel = w.values + int64_t(t.panel) * quads * 64;
  constexpr int kParts = R <= 2 ? 2 : 1;  // at once, while their sums fit
  Chains<R> chains;
  for (int g = 0; g < groups; ++g) {
    const int first = g * (w.group / kQuad), last = least(first + w.group / kQuad, quads);
    for (int part = 0; part < 2; part += kParts) extend_int8<R, kParts>(t, panel, g, first, last, part, chains);
  }
  chains.store(t);
}

inline __m256 widen_bf16(const uint16_t* at) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline __m256 widen_scales(const QuantWeight& w, int64_t at) {
  if (w.scale_type == DType::bfloat16) return widen_bf16(w.scales + at);
  if (w.scale_type == DType::float32) return _mm256_loadu_ps(w.channel_scales + at);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.scales + at)));
}

inline __m256 widen_u8(const uint8_t* at) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}

// Which groups of a weight begin and end those that share a scale of x.
struct Together {
  int groups;
  int count;

  explicit Together(const QuantWeight& w) : groups(num_groups(w)), count(kActivationGroup / w.group) {}
  bool is_first(int g) const { return g % count == 0; }
  bool is_last(int g) const { return g % count == count - 1 || g + 1 == groups; }
};

// What an int4 weight's group has for eight outputs.
struct GroupOf8 {
  __m256 scale;
  __m256 zero;

  GroupOf8(const QuantWeight& w, int64_t at)
      : scale(widen_scales(w, at)), zero(w.zeros == nullptr ? _mm256_set1_ps(1.0f) : widen_u8(w.zeros + at)) {}

  // The exact sum, from the sum of levels times x and the negative of x's.
  __m256 sum(__m256i total, int x_sum) const {
    return _mm256_fmadd_ps(zero, _mm256_set1_ps(static_cast<float>(x_sum)), _mm256_cvtepi32_ps(total));
  }
};

// Adds the integer sums of quads first .. last, at most kSumQuads, to totals [R][2].
template <int R>
inline void sum_int4(const uint8_t* panel, const int8_t* x, int first, int last, __m256i (*totals)[2]) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[R][2];
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (int line = 0; line < kSumQuads * 32; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(panel + int64_t(first) * 32 + kAhead + line), _MM_HINT_T0);
  }
  for (int q = first; q < last; ++q) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + int64_t(q) * 32));
    const __m256i low = _mm256_and_si256(both, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256i input = quad_bytes4(x + (int64_t(q) * R + r) * kQuad);
      add16(sums[r][0], _mm256_maddubs_epi16(low, input));
      add16(sums[r][1], _mm256_maddubs_epi16(high, input));
    }
  }
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    OCTAVO_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m256i wide = _mm256_madd_epi16(sums[r][half], ones);
      totals[r][half] = _mm256_add_epi32(totals[r][half], wide);
    }
  }
}

template <int R>
void multiply_int4(const QuantTile& t) {
  const QuantWeight& w = *t.weight;
  const int quads = num_quads(w.num_inputs), groups = num_groups(w), group_quads = w.group / kQuad;
  const uint8_t* panel = w.values + int64_t(t.panel) * quads * 32;
  const int8_t* x = static_cast<const int8_t*>(t.x.values);
  const Together together(w);
  Chains<R> chains;
  __m256i totals[R][2];
  for (int g = 0; g < groups; ++g) {
    const int first = g * group_quads, last = least(first + group_quads, quads);
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) totals[r][0] = totals[r][1] = _mm256_setzero_si256();
    for (int q = first; q < last; q += kSumQuads) sum_int4<R>(panel, x, q, least(q + kSumQuads, last), totals);
    const int64_t at = (int64_t(t.panel) * groups + g) * kPanel;
    for (int half = 0; half < 2; ++half) {
      const GroupOf8 group(w, at + half * 8);
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) {
        float* part = chains.part[r] + half * 8;
        const __m256 sum = group.sum(totals[r][half], t.x.sums[g * R + r]);
        const __m256 before = together.is_first(g) ? _mm256_setzero_ps() : _mm256_load_ps(part);
        const __m256 now = together.is_first(g) ? _mm256_mul_ps(sum, group.scale) : _mm256_fmadd_ps(sum, group.scale, before);
        _mm256_store_ps(part, now);
      }
    }
    if (!together.is_last(g)) continue;
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256 factor = _mm256_set1_ps(t.x.scales[g / together.count * R + r]);
      extend(chains.whole[r], _mm256_load_ps(chains.part[r]), factor);
      extend(chains.whole[r] + 8, _mm256_load_ps(chains.part[r] + 8), factor);
    }
  }
  chains.store(t);
}

template <int R>
void multiply_rows(const QuantTile& t) {
  t.weight->type == QuantType::int8 ? multiply_int8<R>(t) : multiply_int4<R>(t);
}

void multiply(const QuantTile& t) {
  switch (t.x.num_rows) {
    case 1: return multiply_rows<1>(t);
    case 2: return multiply_rows<2>(t);
    case 3: return multiply_rows<3>(t);
    case 4: return multiply_rows<4>(t);
    case 5: return multiply_rows<5>(t);
    default: return multiply_rows<6>(t);
  }
}

// One row: B panels side by side, because of one run of memory the hardware reads too little ahead; asking for lines
// early is worse than several runs. Sums begin and end in registers.
template <int B>
struct Row {
  const QuantTile& t;
  const QuantWeight& w = *t.weight;
  const int quads = num_quads(w.num_inputs);
  const int64_t stride = t.panel_step * quads * quad_bytes(w.type);
  const uint8_t* values = w.values + t.panel * quads * quad_bytes(w.type);
  __m256 chains[B][2];

  explicit Row(const QuantTile& tile) : t(tile) {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) chains[b][0] = chains[b][1] = _mm256_setzero_ps();
  }

  __m256i input(int quad) const { return quad_bytes4(static_cast<const int8_t*>(t.x.values) + int64_t(quad) * kQuad); }

  __m256i load(int b, int64_t byte) const {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + b * stride + byte));
  }

  void store() const {
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const int first = (t.panel + b * t.panel_step) * kPanel;
      store8(t, 0, first, chains[b][0]);
      store8(t, 0, first + 8, chains[b][1]);
    }
  }
};

template <int B>
inline void clear(__m256i (&sums)[B][2]) {
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) sums[b][0] = sums[b][1] = _mm256_setzero_si256();
}

// The sign of x goes to the weights, so that bytes can be multiplied: a pair's sum is at most 2 x 127 x 127.
template <int B>
void row_int8(const QuantTile& t) {
  Row<B> row(t);
  const int groups = num_groups(row.w), group_quads = row.w.group / kQuad;
  const __m256i ones = _mm256_set1_epi16(1), middle = _mm256_set1_epi8(-128);
  for (int g = 0; g < groups; ++g) {
    const int last = least((g + 1) * group_quads, row.quads);
    __m256i sums[B][2];
    clear(sums);
    for (int q = g * group_quads; q < last; ++q) {
      const __m256i input = row.input(q), size = _mm256_abs_epi8(input);
      OCTAVO_UNROLL
      for (int b = 0; b < B; ++b) {
        OCTAVO_UNROLL
        for (int half = 0; half < 2; ++half) {
          const __m256i weights = _mm256_xor_si256(row.load(b, int64_t(q) * 64 + half * 32), middle);
          const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(weights, input));
          add32(sums[b][half], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
    const __m256 factor = _mm256_set1_ps(t.x.scales[g]);
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      OCTAVO_UNROLL
      for (int half = 0; half < 2; ++half) {
        row.chains[b][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[b][half]), factor, row.chains[b][half]);
      }
    }
  }
  row.store();
}

// Adds the integer sums of quads first .. last, at most kSumQuads.
template <int B>
inline void sum_row_int4(const Row<B>& row, int first, int last, __m256i (&totals)[B][2]) {
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i sums[B][2];
  clear(sums);
  for (int q = first; q < last; ++q) {
    const __m256i input = row.input(q);
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const __m256i both = row.load(b, int64_t(q) * 32);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
      add16(sums[b][0], _mm256_maddubs_epi16(_mm256_and_si256(both, nibble), input));
      add16(sums[b][1], _mm256_maddubs_epi16(high, input));
    }
  }
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) {
    add32(totals[b][0], _mm256_madd_epi16(sums[b][0], ones));
    add32(totals[b][1], _mm256_madd_epi16(sums[b][1], ones));
  }
}

template <int B>
void row_int4(const QuantTile& t) {
  Row<B> row(t);
  const QuantWeight& w = row.w;
  const int groups = num_groups(w), group_quads = w.group / kQuad;
  const Together together(w);
  __m256 parts[B][2];
  OCTAVO_UNROLL
  for (int b = 0; b < B; ++b) parts[b][0] = parts[b][1] = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    const int last = least((g + 1) * group_quads, row.quads);
    __m256i totals[B][2];
    clear(totals);
    for (int q = g * group_quads; q < last; q += kSumQuads) sum_row_int4(row, q, least(q + kSumQuads, last), totals);
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      const int64_t at = (int64_t(t.panel + b * t.panel_step) * groups + g) * kPanel;
      OCTAVO_UNROLL
      for (int half = 0; half < 2; ++half) {
        const GroupOf8 group(w, at + half * 8);
        const __m256 sum = group.sum(totals[b][half], t.x.sums[g]);
        __m256& part = parts[b][half];
        part = together.is_first(g) ? _mm256_mul_ps(sum, group.scale) : _mm256_fmadd_ps(sum, group.scale, part);
      }
    }
    if (!together.is_last(g)) continue;
    const __m256 factor = _mm256_set1_ps(t.x.scales[g / together.count]);
    OCTAVO_UNROLL
    for (int b = 0; b < B; ++b) {
      row.chains[b][0] = _mm256_fmadd_ps(parts[b][0], factor, row.chains[b][0]);
      row.chains[b][1] = _mm256_fmadd_ps(parts[b][1], factor, row.chains[b][1]);
    }
  }
  row.store();
}

void multiply_row(const QuantTile& t) {
  if (t.weight->type == QuantType::int8) return t.panel_step == 0 ? row_int8<1>(t) : row_int8<kPanelsOfRow>(t);
  t.panel_step == 0 ? row_int4<1>(t) : row_int4<kPanelsOfRow>(t);
}

}  // namespace

void quantize_avx2(const float* x, const QuantWeight& weight, int bytes, const QuantRows& to) {
  bytes == 1 ? quantize_as<1>(x, weight, to) : quantize_as<2>(x, weight, to);
}

const QuantKernels kQuantAvx2{kMaxRows, kMaxRows, 2, quantize_avx2, multiply, multiply_row};

}  // namespace octavo
