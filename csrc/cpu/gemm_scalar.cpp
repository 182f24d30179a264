// The oracle: plain C++ that any machine runs, one output at a time.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "gemm.h"

namespace octavo {
namespace {

float weight_at(const char* panel, int64_t d, int output, DType dtype) {
  const char* at = panel + place_of(d, output, dtype);
  float value;
  if (dtype == DType::float32) {
    std::memcpy(&value, at, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  std::memcpy(&value, &word, 4);
  return value;
}

}  // namespace

void gemm_scalar(const GemmTile& t) {
  for (int panel = 0; panel < t.num_panels; ++panel) {
    const char* weights = t.panel + panel * t.panel_stride;
    for (int r = 0; r < t.num_rows; ++r) {
      for (int i = 0; i < kPanel; ++i) {
        float sum = t.begin[r * t.begin_row + panel * t.begin_panel + i];
        for (int64_t d = 0; d < t.num_inputs; ++d) {
          const float x = t.x[r * t.row_stride + d];
          sum = std::fmaf(x, weight_at(weights, d, i, t.dtype), sum);
        }
        t.out[r * t.out_stride + panel * kPanel + i] = sum;
      }
    }
  }
}

}  // namespace octavo
