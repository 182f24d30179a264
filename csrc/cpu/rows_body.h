// The arithmetic of rows.h, compiled once per instruction set: plain loops over lanes, which compilers turn into vectors.
// Included into an unnamed namespace, so that no function of one instruction set is merged with that of another.

#include "convert_body.h"

constexpr int kLanes = 16;

inline float fold(const float* lanes) {
  float eight[8], four[4];
  for (int i = 0; i < 8; ++i) eight[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

inline float sum_of_squares(const float* x, int n) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * x[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += x[i] * x[i];
  return fold(lanes);
}

inline float norm_factor(const float* x, int n, float eps) {
  return 1.0f / sqrtf(sum_of_squares(x, n) / static_cast<float>(n) + eps);
}

inline void norm_row(const float* x, const float* weight, float* out, int n, float eps) {
  const float factor = norm_factor(x, n, eps);
  for (int i = 0; i < n; ++i) out[i] = weight[i] * (x[i] * factor);
}

void rms_norm_rows(const RmsNorm& op, int64_t first, int64_t last) {
  const int n = op.num_features;
  for (int64_t row = first; row < last; ++row) {
    const float* x = op.x + row * n;
    if (op.residual != nullptr) {
      float* sum = op.residual + row * n;
      for (int i = 0; i < n; ++i) sum[i] += x[i];
      x = sum;
    }
    norm_row(x, op.weight, op.out + row * n, n, op.eps);
  }
}

// exp(x), within 2 units in the last place: exp(x) = 2^n exp(r), |r| <= ln(2) / 2, with the polynomial of Cephes expf
// (S. Moshier, https://www.netlib.org/cephes/, single/expf.c). Clamped to +-80: there a sum with 1 no longer changes, and
// compilers divide by the bounds beforehand, where a subnormal quotient would cost three times as much.
inline float exp_lane(float x) {
  x = x < -80.0f ? -80.0f : (x > 80.0f ? 80.0f : x);
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float n = (x * 1.44269504088896341f + shift) - shift;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  union {  // memcpy would do the same, but is not vectorised
    int32_t bits;
    float value;
  } power;
  power.bits = (static_cast<int32_t>(n) + 127) << 23;
  return p * power.value;
}

void silu_and_mul_rows(const SiluAndMul& op, int64_t first, int64_t last) {
  const int n = op.num_features;
  for (int64_t row = first; row < last; ++row) {
    const float* gate = op.x + row * 2 * n;
    const float* up = gate + n;
    float* out = op.out + row * n;
    for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exp_lane(-gate[i])) * up[i];
  }
}

inline float sum_of(const float* x, int n) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += x[i];
  return fold(lanes);
}

inline float sum_of_squares_from(const float* x, float mean, int n) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += (x[i + l] - mean) * (x[i + l] - mean);
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += (x[i] - mean) * (x[i] - mean);
  return fold(lanes);
}

void layer_norm_rows(const LayerNorm& op, int64_t first, int64_t last) {
  const int n = op.num_features;
  for (int64_t row = first; row < last; ++row) {
    const float* x = op.x + row * n;
    if (op.residual != nullptr) {
      float* sum = op.residual + row * n;
      for (int i = 0; i < n; ++i) sum[i] += x[i];
      x = sum;
    }
    float* out = op.out + row * n;
    const float mean = sum_of(x, n) / static_cast<float>(n);
    const float factor = 1.0f / sqrtf(sum_of_squares_from(x, mean, n) / static_cast<float>(n) + op.eps);
    if (op.bias == nullptr) {
      for (int i = 0; i < n; ++i) out[i] = (x[i] - mean) * factor * op.weight[i];
    } else {
      for (int i = 0; i < n; ++i) out[i] = (x[i] - mean) * factor * op.weight[i] + op.bias[i];
    }
  }
}

// x times the share of the normal distribution below x: half of erfc, within 1.5e-7, by formula 7.1.26 of Abramowitz and
// Stegun, "Handbook of Mathematical Functions" (1964).
inline float gelu_lane(float x) {
  const float z = fabsf(x) * 0.70710678118654752f;
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float above = 0.5f * (p * t) * exp_lane(-z * z);
  return x * (x < 0.0f ? above : 1.0f - above);
}

// x / 2 (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3); arXiv:1606.08415.
inline float gelu_tanh_lane(float x) {
  const float u = 0.79788456080286536f * (x + 0.044715f * (x * x * x));
  return x / (1.0f + exp_lane(-2.0f * u));
}

inline float relu_lane(float x) { return x < 0.0f ? 0.0f : x; }  // NaN stays

template <class F>
inline void activate_all(const Activate& op, int64_t first, int64_t last, F curve) {
  const int n = op.num_features;
  for (int64_t row = first; row < last; ++row) {
    const float* x = op.x + row * (op.is_gated ? 2 * n : n);
    float* out = op.out + row * n;
    if (op.is_gated) {
      for (int i = 0; i < n; ++i) out[i] = curve(x[i]) * x[n + i];
    } else {
      for (int i = 0; i < n; ++i) out[i] = curve(x[i]);
    }
  }
}

void activate_rows(const Activate& op, int64_t first, int64_t last) {
  switch (op.curve) {
    case Curve::gelu: return activate_all(op, first, last, [](float x) { return gelu_lane(x); });
    case Curve::gelu_tanh: return activate_all(op, first, last, [](float x) { return gelu_tanh_lane(x); });
    case Curve::relu: return activate_all(op, first, last, [](float x) { return relu_lane(x); });
  }
}

inline void rotate_row(const float* x, const float* cos, const float* sin, float* out, int rotated, int n) {
  const int half = rotated / 2;
  for (int i = 0; i < half; ++i) {
    const float left = x[i], right = x[half + i];
    out[i] = left * cos[i] - right * sin[i];
    out[half + i] = right * cos[i] + left * sin[i];
  }
  for (int i = rotated; i < n; ++i) out[i] = x[i];
}

inline float largest(const float* x, int n) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float size = fabsf(x[i + l]);
      lanes[l] = size > lanes[l] ? size : lanes[l];
    }
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] = fabsf(x[i]) > lanes[l] ? fabsf(x[i]) : lanes[l];
  float top = lanes[0];
  for (int l = 1; l < kLanes; ++l) top = lanes[l] > top ? lanes[l] : top;
  return top;
}

// One head's keys or values -> place `at` (slot * G + head) of a cache.
inline void store_head(const float* x, int n, DType dtype, void* cache, float* scales, int64_t at) {
  char* to = static_cast<char*>(cache) + at * n * size_of(dtype);
  if (dtype == DType::float32) {
    memcpy(to, x, sizeof(float) * static_cast<size_t>(n));
  } else if (dtype == DType::bfloat16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(to);
    for (int i = 0; i < n; ++i) out[i] = float_to_bf16(x[i]);
  } else if (dtype == DType::float16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(to);
    for (int i = 0; i < n; ++i) out[i] = float_to_half(x[i]);
  } else {
    int8_t* out = reinterpret_cast<int8_t*>(to);
    const float top = largest(x, n), inverse = top > 0.0f ? 127.0f / top : 0.0f;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
    for (int i = 0; i < n; ++i) out[i] = static_cast<int8_t>(static_cast<int32_t>((x[i] * inverse + shift) - shift));
    scales[at] = top / 127.0f;
  }
}

void attention_inputs_rows(const AttentionInputs& op, int64_t first, int64_t last) {
  const int D = op.head_dim, H = op.num_heads, G = op.num_kv_heads;
  float normed[kMaxHeadDim], rotated[kMaxHeadDim];
  for (int64_t t = first; t < last; ++t) {
    const float* row = op.qkv + t * (H + 2 * G) * D;
    const float* cos = op.cos + t * (op.num_rotated / 2);
    const float* sin = op.sin + t * (op.num_rotated / 2);
    for (int head = 0; head < H + G; ++head) {
      const float* x = row + head * D;
      const float* weight = head < H ? op.q_weight : op.k_weight;
      if (weight != nullptr) {
        norm_row(x, weight, normed, D, op.eps);
        x = normed;
      }
      rotate_row(x, cos, sin, head < H ? op.q_out + (t * H + head) * D : rotated, op.num_rotated, D);
      if (head >= H) store_head(rotated, D, op.cache_dtype, op.k_cache, op.k_scales, op.slots[t] * G + head - H);
    }
    for (int head = 0; head < G; ++head) {
      const float* x = row + (H + G + head) * D;
      store_head(x, D, op.cache_dtype, op.v_cache, op.v_scales, op.slots[t] * G + head);
    }
  }
}
