// Quantizes weights and packs them. Compiled for the baseline machine.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "pool.h"
#include "qgemm.h"

namespace octavo {
namespace {

using std::memcpy;
#include "convert_body.h"
#include "qscale_body.h"

constexpr int kMaxGroup = 128;
constexpr float kLeastScale = std::numeric_limits<float>::min() * 16;  // so that kernels can take a sixteenth of a scale

// To the nearest integer, ties to even, for |x| < 2^22: the sum leaves no bits for a fraction.
inline float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

inline float bf16_value(uint16_t bits) { return float_of_bits(uint32_t(bits) << 16); }

void widen(const char* source, DType from, int64_t index, int count, float* to) {
  if (from == DType::float32) {
    std::memcpy(to, source + index * 4, sizeof(float) * size_t(count));
    return;
  }
  const char* at = source + index * 2;
  for (int i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, at + 2 * i, 2);
    to[i] = bf16_value(bits);
  }
}

struct Packing {
  const QuantWeight* shape;
  const char* source;
  DType from;
  QuantTarget to;
};

// How a group becomes numbers 0 .. 15: value = (number - zero) * step.
struct Levels {
  float step;  // a bfloat16
  float zero;
};

constexpr int kLanes = 8;

inline float level_of(float w, float inverse, float zero) {
  return std::min(15.0f, std::max(0.0f, nearest(w * inverse) + zero));
}

inline float inverse_of(float step) { return step == 0.0f ? 0.0f : 1.0f / step; }

// Sum of squared differences over `count` values, a multiple of kLanes: eight chains, so that a compiler may vectorise.
float squared_error(const float* w, int count, const Levels& levels) {
  const float inverse = inverse_of(levels.step);
  float sums[kLanes] = {};
  for (int i = 0; i < count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float off = (level_of(w[i + lane], inverse, levels.zero) - levels.zero) * levels.step - w[i + lane];
      sums[lane] += off * off;
    }
  }
  float sum = 0.0f;
  for (float each : sums) sum += each;
  return sum;
}

// The range of the group, clipped by the factor of 1, 0.95, ... 0.7 that leaves the smallest error.
constexpr int kClippings = 7;
inline float clipping(int i) { return 1.0f - 0.05f * float(i); }

// `w` is filled up with zeros, which have no error, to a multiple of kLanes.
Levels find_levels(const float* w, int count, bool has_zero) {
  float low = 0.0f, high = 0.0f;
  for (int i = 0; i < count; ++i) {
    low = std::min(low, w[i]);
    high = std::max(high, w[i]);
  }
  const float extreme = -low >= high ? low : high;
  Levels best{0.0f, 8.0f};
  float least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < kClippings; ++i) {
    const float share = clipping(i);
    Levels levels{bf16_value(float_to_bf16(has_zero ? (high - low) * share / 15.0f : extreme * share / -8.0f)), 8.0f};
    if (has_zero && levels.step != 0.0f) {
      levels.zero = std::min(15.0f, std::max(0.0f, nearest(-low * share / levels.step)));
    }
    const float error = squared_error(w, count, levels);
    if (i == 0 || error < least) {  // the error of huge weights overflows
      least = error;
      best = levels;
    }
  }
  return best;
}

// Where output i of a panel has its first level, and by how much it is shifted there.
struct Nibbles {
  uint8_t* values;
  int shift;
};

Nibbles nibbles_of(const QuantWeight& w, uint8_t* values, int panel, int i) {
  values += panel * num_quads(w.num_inputs) * quad_bytes(QuantType::int4);
  return {values + i % (kPanel / 2) * kQuad, i < kPanel / 2 ? 0 : 4};
}

void pack_int4(const Packing& p, int panel, int i) {
  const QuantWeight& w = *p.shape;
  const int64_t row = int64_t(panel) * kPanel + i, groups = num_groups(w);
  const auto [values, shift] = nibbles_of(w, p.to.values, panel, i);
  float wide[kMaxGroup];
  for (int g = 0; g < groups; ++g) {
    const int from = g * w.group, count = std::min(w.group, w.num_inputs - from);
    const int filled = (count + kLanes - 1) / kLanes * kLanes;
    widen(p.source, p.from, row * w.num_inputs + from, count, wide);
    std::fill(wide + count, wide + filled, 0.0f);
    const Levels levels = find_levels(wide, filled, p.to.zeros != nullptr);
    const int64_t at = (panel * groups + g) * kPanel + i;
    p.to.scales[at] = float_to_bf16(levels.step);
    if (p.to.zeros != nullptr) p.to.zeros[at] = uint8_t(levels.zero);
    const float inverse = inverse_of(levels.step);
    uint8_t* to = values + int64_t(from / kQuad) * 32;
    for (int k = 0; k < count; ++k) {
      to[k / kQuad * 32 + k % kQuad] |= uint8_t(int(level_of(wide[k], inverse, levels.zero)) << shift);
    }
  }
}

void pack_int8(const Packing& p, int panel, int i) {
  const QuantWeight& w = *p.shape;
  const int64_t row = int64_t(panel) * kPanel + i;
  uint8_t* values = p.to.values + panel * num_quads(w.num_inputs) * quad_bytes(QuantType::int8) + i * kQuad;
  float wide[kMaxGroup];
  float largest = 0.0f;
  for (int from = 0; from < w.num_inputs; from += kMaxGroup) {
    const int count = std::min(kMaxGroup, w.num_inputs - from);
    widen(p.source, p.from, row * w.num_inputs + from, count, wide);
    for (int k = 0; k < count; ++k) largest = std::max(largest, std::fabs(wide[k]));
  }
  const float inverse = largest < std::numeric_limits<float>::min() * 128 ? 0.0f : 127.0f / largest;
  p.to.channel_scales[row] = inverse == 0.0f ? 0.0f : largest / 127.0f;
  for (int from = 0; from < w.num_inputs; from += kMaxGroup) {
    const int count = std::min(kMaxGroup, w.num_inputs - from);
    widen(p.source, p.from, row * w.num_inputs + from, count, wide);
    for (int k = 0; k < count; ++k) {
      const int d = from + k;
      values[d / kQuad * kPanel * kQuad + d % kQuad] = uint8_t(int(nearest(wide[k] * inverse)) + 128);
    }
  }
}

float value_of(const QuantWeight& w, int o, int d) {
  const int64_t panel = o / kPanel, i = o % kPanel, quad = panel * num_quads(w.num_inputs) + d / kQuad;
  if (w.type == QuantType::int8) {
    const int value = w.values[(quad * kPanel + i) * kQuad + d % kQuad];
    return float(value - 128) * w.channel_scales[o];
  }
  const int both = w.values[quad * 32 + i % (kPanel / 2) * kQuad + d % kQuad];
  const int64_t at = (panel * num_groups(w) + d / w.group) * kPanel + i;
  const int zero = w.zeros == nullptr ? 8 : w.zeros[at];
  return float((i < kPanel / 2 ? both & 15 : both >> 4) - zero) * scale_at(w, at);
}

struct Taking {
  const QuantWeight* shape;
  QuantLevels from;
  QuantTarget to;
};

// One output, as `pack_int4` leaves it.
void take_output(const Taking& t, int panel, int i) {
  const QuantWeight& w = *t.shape;
  const int64_t row = int64_t(panel) * kPanel + i, groups = num_groups(w);
  const auto [values, shift] = nibbles_of(w, t.to.values, panel, i);
  const uint8_t* levels = t.from.levels + row * w.num_inputs;
  for (int d = 0; d < w.num_inputs; ++d) values[int64_t(d / kQuad) * 32 + d % kQuad] |= uint8_t((levels[d] & 15) << shift);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t from = row * groups + g, at = (panel * groups + g) * kPanel + i;
    if (w.scale_type == DType::float32) {
      const float scale = static_cast<const float*>(t.from.scales)[from];
      t.to.channel_scales[at] = std::fabs(scale) < kLeastScale ? 0.0f : scale;
    } else {
      t.to.scales[at] = static_cast<const uint16_t*>(t.from.scales)[from];
    }
    if (t.to.zeros != nullptr) t.to.zeros[at] = t.from.zeros[from];
  }
}

void take_panel(void* context, int panel, int /*worker*/) {
  const Taking& t = *static_cast<const Taking*>(context);
  const QuantWeight& w = *t.shape;
  const int64_t bytes = num_quads(w.num_inputs) * quad_bytes(w.type), scales = int64_t(num_groups(w)) * kPanel;
  std::fill_n(t.to.values + panel * bytes, bytes, uint8_t(0));
  if (t.to.channel_scales != nullptr) std::fill_n(t.to.channel_scales + panel * scales, scales, 0.0f);
  if (t.to.scales != nullptr) std::fill_n(t.to.scales + panel * scales, scales, uint16_t(0));
  if (t.to.zeros != nullptr) std::fill_n(t.to.zeros + panel * scales, scales, uint8_t(0));
  for (int i = 0; i < kPanel && panel * kPanel + i < w.num_outputs; ++i) take_output(t, panel, i);
}

void pack_panel(void* context, int panel, int /*worker*/) {
  const Packing& p = *static_cast<const Packing*>(context);
  const QuantWeight& w = *p.shape;
  const int64_t bytes = num_quads(w.num_inputs) * quad_bytes(w.type), scales = int64_t(num_groups(w)) * kPanel;
  std::fill_n(p.to.values + panel * bytes, bytes, uint8_t(0));
  if (w.type == QuantType::int8) {
    std::fill_n(p.to.channel_scales + panel * kPanel, kPanel, 0.0f);
  } else {
    std::fill_n(p.to.scales + panel * scales, scales, uint16_t(0));
    if (p.to.zeros != nullptr) std::fill_n(p.to.zeros + panel * scales, scales, uint8_t(0));
  }
  for (int i = 0; i < kPanel && panel * kPanel + i < w.num_outputs; ++i) {
    w.type == QuantType::int8 ? pack_int8(p, panel, i) : pack_int4(p, panel, i);
  }
}

}  // namespace

int64_t quant_value_bytes(QuantType type, int num_outputs, int num_inputs) {
  return num_panels(num_outputs) * num_quads(num_inputs) * quad_bytes(type);
}

int64_t quant_num_scales(QuantType type, int num_outputs, int num_inputs, int group) {
  const int64_t groups = type == QuantType::int8 ? 1 : (int64_t(num_inputs) + group - 1) / group;
  return num_panels(num_outputs) * groups * kPanel;
}

void pack_quant(const QuantWeight& shape, const void* source, DType from, const QuantTarget& to, int num_threads) {
  Packing packing{&shape, static_cast<const char*>(source), from, to};
  parallel_for(num_panels(shape.num_outputs), num_threads, pack_panel, &packing);
}

void pack_levels(const QuantWeight& shape, const QuantLevels& from, const QuantTarget& to, int num_threads) {
  Taking taking{&shape, from, to};
  parallel_for(num_panels(shape.num_outputs), num_threads, take_panel, &taking);
}

void gather_rows(const QuantWeight& weight, const int64_t* ids, int64_t count, float* out) {
  for (int64_t n = 0; n < count; ++n) {
    for (int d = 0; d < weight.num_inputs; ++d) *out++ = value_of(weight, int(ids[n]), d);
  }
}

}  // namespace octavo
