// The oracle: plain C++ that any machine runs. Also the path for head sizes that do not fill vectors.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention.h"

namespace octavo {
namespace {

#include "attention_body.h"

inline float bf16_to_float(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
inline uint16_t float_to_bf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if ((word & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((word >> 16) | 0x40u);
  word += 0x7fffu + ((word >> 16) & 1u);
  return static_cast<uint16_t>(word >> 16);
}

struct Scalar {
  static void load_row(float* dst, const char* src, DType dtype, int n) {
    if (dtype == DType::float32) {
      std::memcpy(dst, src, sizeof(float) * static_cast<size_t>(n));
      return;
    }
    for (int i = 0; i < n; ++i) {
      uint16_t bits;
      std::memcpy(&bits, src + 2 * static_cast<int64_t>(i), 2);
      dst[i] = bf16_to_float(bits);
    }
  }

  static void store_row(char* dst, const float* src, float factor, DType dtype, int n) {
    for (int i = 0; i < n; ++i) {
      const float value = src[i] * factor;
      if (dtype == DType::float32) {
        std::memcpy(dst + 4 * static_cast<int64_t>(i), &value, 4);
      } else {
        const uint16_t bits = float_to_bf16(value);
        std::memcpy(dst + 2 * static_cast<int64_t>(i), &bits, 2);
      }
    }
  }

  template <int R>
  static void scores(float* out, const float* q, const float* k, int64_t stride, int tokens, int n) {
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < tokens; ++j) {
        float dot = 0.0f;
        for (int d = 0; d < n; ++d) dot += q[static_cast<int64_t>(r) * n + d] * k[j * stride + d];
        out[r * kBlockSize + j] = dot;
      }
    }
  }

  static float softmax(float* scores, int lo, int hi, float* maximum, float* sum) {
    float top = *maximum;
    for (int j = lo; j < hi; ++j) top = scores[j] > top ? scores[j] : top;
    const float factor = std::exp(*maximum - top);  // exp(-inf) = 0 on a row's first block
    float total = 0.0f;
    for (int j = lo; j < hi; ++j) {
      scores[j] = std::exp(scores[j] - top);
      total += scores[j];
    }
    *sum = *sum * factor + total;
    *maximum = top;
    return factor;
  }

  template <int R>
  static void accumulate(float* acc, const float* p, const float* v, int64_t stride, int lo, int hi,
                         const float* factors, int n) {
    for (int r = 0; r < R; ++r) {
      float* row = acc + static_cast<int64_t>(r) * n;
      for (int d = 0; d < n; ++d) row[d] *= factors[r];
      for (int j = lo; j < hi; ++j) {
        const float weight = p[r * kBlockSize + j];
        for (int d = 0; d < n; ++d) row[d] += weight * v[j * stride + d];
      }
    }
  }
};

}  // namespace

void attention_scalar(const Attention& a, const AttentionPiece& piece, float* scratch) {
  run_attention_piece<Scalar>(a, piece, scratch);
}

}  // namespace octavo
