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
void quantize(const float* x, int64_t row_stride, int num_inputs, int group, int bytes, const QuantRows& to) {
  for (int r = 0; r < to.num_rows; ++r) {
    for (int from = 0; from < num_inputs; from += group) {
      const float* in = x + r * row_stride + from;
      const int count = std::min(group, num_inputs - from);
      const float largest = largest_of(in, count);
      const bool is_finite = largest <= std::numeric_limits<float>::max();
      const bool is_zero = largest < std::numeric_limits<float>::min() * 128;
      const float inverse = is_finite && !is_zero ? 127.0f / largest : 0.0f;
      int sum = 0;
      for (int i = 0; i < (count + kQuad - 1) / kQuad * kQuad; ++i) {
        const int value = i < count && inverse != 0.0f ? int(std::nearbyintf(in[i] * inverse)) : 0;
        const int d = from + i;
        put(to.values, (int64_t(d / kQuad) * to.num_rows + r) * kQuad + d % kQuad, bytes, value);
        sum += value;
      }
      const int g = from / group;
      to.scales[g * to.num_rows + r] = !is_finite ? std::numeric_limits<float>::quiet_NaN() : is_zero ? 0.0f : largest / 127.0f;
      to.sums[g * to.num_rows + r] = float(sum);
    }
  }
}

int weight_at(const QuantWeight& w, int64_t quad, int i, int j) {
  if (w.type == QuantType::int8) return w.values[(quad * kPanel + i) * kQuad + j];
  const int both = w.values[quad * 32 + i % (kPanel / 2) * kQuad + j];
  return i < kPanel / 2 ? both & 15 : both >> 4;
}

void multiply(const QuantTile& t) {
  const QuantWeight& w = *t.weight;
  const int8_t* x = static_cast<const int8_t*>(t.x.values);
  const int rows = t.x.num_rows, quads = num_quads(w.num_inputs), groups = num_groups(w);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < kPanel; ++i) {
      float chain = 0.0f;
      for (int g = 0; g < groups; ++g) {
        const int last = std::min((g + 1) * w.group / kQuad, quads);
        int sum = 0;
        for (int q = g * w.group / kQuad; q < last; ++q) {
          for (int j = 0; j < kQuad; ++j) {
            sum += weight_at(w, int64_t(t.panel) * quads + q, i, j) * x[(int64_t(q) * rows + r) * kQuad + j];
          }
        }
        const int64_t at = (int64_t(t.panel) * groups + g) * kPanel + i;
        const float x_scale = t.x.scales[g * rows + r], x_sum = t.x.sums[g * rows + r];
        if (w.type == QuantType::int8) {
          chain = std::fmaf(std::fmaf(-128.0f, x_sum, float(sum)), x_scale, chain);
        } else {
          const float zero = w.zeros == nullptr ? 8.0f : float(w.zeros[at]);
          chain = std::fmaf(std::fmaf(-zero, x_sum, float(sum)), x_scale * scale_at(w, at), chain);
        }
      }
      t.out[r * kPanel + i] = chain;
    }
  }
}

}  // namespace

const QuantKernels kQuantScalar{4, 1, quantize, multiply, nullptr};

}  // namespace octavo
