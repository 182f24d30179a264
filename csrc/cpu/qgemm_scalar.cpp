// The oracle: plain C++ that any machine runs, one output at a time.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "qgemm.h"

namespace octavo {
namespace {

using std::memcpy;
#include "convert_body.h"
#include "qscale_body.h"

// Largest magnitude; NaN if there is one, because it is the largest bit pattern.
float largest_of(const float* x, int count) {
  uint32_t largest = 0;
  for (int i = 0; i < count; ++i) {
    uint32_t word;
    std::memcpy(&word, x + i, 4);
    largest = std::max(largest, word & 0x7fffffffu);
  }
  float value;
  std::memcpy(&value, &largest, 4);
  return value;
}

void put(void* values, int64_t index, int bytes, int value) {
  if (bytes == 1) {
    static_cast<int8_t*>(values)[index] = int8_t(value);
  } else {
    static_cast<int16_t*>(values)[index] = int16_t(value);
  }
}

// Groups without a number of normal size become 0; with an infinity or NaN the scale is NaN, and so is the result.
void quantize(const float* x, const QuantWeight& w, int bytes, const QuantRows& to) {
  std::fill_n(to.sums, num_groups(w) * to.num_rows, 0);
  for (int r = 0; r < to.num_rows; ++r) {
    for (int from = 0; from < w.num_inputs; from += kActivationGroup) {
      const float* in = x + int64_t(r) * w.num_inputs + from;
      const int count = std::min(kActivationGroup, w.num_inputs - from);
      const float largest = largest_of(in, count);
      const bool is_finite = largest <= std::numeric_limits<float>::max();
      const bool is_zero = largest < std::numeric_limits<float>::min() * 128;
      const float inverse = is_finite && !is_zero ? 127.0f / largest : 0.0f;
      for (int i = 0; i < (count + kQuad - 1) / kQuad * kQuad; ++i) {
        const int value = i < count && inverse != 0.0f ? int(std::nearbyintf(in[i] * inverse)) : 0;
        const int d = from + i;
        put(to.values, (int64_t(d / kQuad) * to.num_rows + r) * kQuad + d % kQuad, bytes, value);
        to.sums[d / w.group * to.num_rows + r] -= value * common_zero(w);
      }
      float& scale = to.scales[from / kActivationGroup * to.num_rows + r];
      scale = !is_finite ? std::numeric_limits<float>::quiet_NaN() : is_zero ? 0.0f : largest / 127.0f;
    }
  }
}

int weight_at(const QuantWeight& w, int64_t quad, int i, int j) {
  if (w.type == QuantType::int8) return w.values[(quad * kPanel + i) * kQuad + j];
  const int both = w.values[quad * 32 + i % (kPanel / 2) * kQuad + j];
  return i < kPanel / 2 ? both & 15 : both >> 4;
}

// Row r times what output i of the panel has in group g.
int group_sum(const QuantTile& t, int g, int r, int i) {
  const QuantWeight& w = *t.weight;
  const int rows = t.x.num_rows, quads = num_quads(w.num_inputs), group_quads = w.group / kQuad;
  const int8_t* x = static_cast<const int8_t*>(t.x.values);
  const int zero = w.zeros == nullptr ? 1 : w.zeros[(int64_t(t.panel) * num_groups(w) + g) * kPanel + i];
  int sum = zero * t.x.sums[g * rows + r];
  for (int q = g * group_quads; q < std::min((g + 1) * group_quads, quads); ++q) {
    for (int j = 0; j < kQuad; ++j) {
      sum += weight_at(w, int64_t(t.panel) * quads + q, i, j) * x[(int64_t(q) * rows + r) * kQuad + j];
    }
  }
  return sum;
}

// Across the groups that share a scale of x.
float part_of(const QuantTile& t, int a, int r, int i) {
  const QuantWeight& w = *t.weight;
  if (w.type == QuantType::int8) return float(group_sum(t, a, r, i));
  const int groups = num_groups(w), together = kActivationGroup / w.group;
  float part = 0.0f;
  for (int g = a * together; g < std::min((a + 1) * together, groups); ++g) {
    const float sum = float(group_sum(t, g, r, i)), scale = scale_at(w, (int64_t(t.panel) * groups + g) * kPanel + i);
    part = g == a * together ? sum * scale : std::fmaf(sum, scale, part);
  }
  return part;
}

void multiply(const QuantTile& t) {
  const QuantWeight& w = *t.weight;
  const int valid = std::min(kPanel, w.num_outputs - t.panel * kPanel);
  for (int r = 0; r < t.x.num_rows; ++r) {
    for (int i = 0; i < valid; ++i) {
      float chain = 0.0f;
      for (int a = 0; a < num_activation_groups(w.num_inputs); ++a) {
        chain = std::fmaf(part_of(t, a, r, i), t.x.scales[a * t.x.num_rows + r], chain);
      }
      const int o = t.panel * kPanel + i;
      const float scaled = w.type == QuantType::int8 ? chain * w.channel_scales[o] : chain;
      t.out[int64_t(r) * w.num_outputs + o] = scaled + (t.bias == nullptr ? 0.0f : t.bias[o]);
    }
  }
}

}  // namespace

const QuantKernels kQuantScalar{4, 4, 1, quantize, multiply, nullptr};

}  // namespace octavo
