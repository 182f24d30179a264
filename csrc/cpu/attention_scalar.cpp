// The oracle: the arithmetic that attention.h states, one row at a time in plain C++ that any machine runs. Also the path
// for head sizes that do not fill vectors.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string.h>
#include <limits>

#include "attention.h"

namespace octavo {
namespace {

#include "convert_body.h"

constexpr float kNone = -std::numeric_limits<float>::infinity();

float load(const void* base, int64_t index, DType dtype) {
  const char* from = static_cast<const char*>(base) + index * size_of(dtype);
  if (dtype == DType::int8) return static_cast<float>(*reinterpret_cast<const int8_t*>(from));
  if (dtype == DType::float32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, from, 2);
  return dtype == DType::bfloat16 ? float_of_bits(uint32_t(half) << 16) : half_to_float(half);
}

void store(void* base, int64_t index, DType dtype, float value) {
  char* to = static_cast<char*>(base) + index * size_of(dtype);
  if (dtype == DType::float32) {
    std::memcpy(to, &value, 4);
    return;
  }
  const uint16_t half = dtype == DType::bfloat16 ? float_to_bf16(value) : float_to_half(value);
  std::memcpy(to, &half, 2);
}

// For x <= 0; the polynomial of Cephes expf, see attention_avx2.cpp.
float exp_of(float x) {
  if (x < -87.33654f) return 0.0f;
  if (x != x) return x;
  const float n = std::nearbyint(x * 1.44269504088896341f);
  float r = std::fmaf(-n, 0.693359375f, x);
  r = std::fmaf(-n, -2.12194440e-4f, r);
  float y = 1.9875691500e-4f;
  y = std::fmaf(y, r, 1.3981999507e-3f);
  y = std::fmaf(y, r, 8.3334519073e-3f);
  y = std::fmaf(y, r, 4.1665795894e-2f);
  y = std::fmaf(y, r, 1.6666665459e-1f);
  y = std::fmaf(y, r, 5.0000001201e-1f);
  y = std::fmaf(y, r * r, r + 1.0f);
  return y * float_of_bits(uint32_t(static_cast<int32_t>(n) + 127) << 23);
}

// Online softmax of one row: sums of values, their weights' sum, and the largest score.
struct Row {
  float* acc;  // [D]
  float maximum;
  float sum;
};

void clear(Row& row, int D) {
  for (int d = 0; d < D; ++d) row.acc[d] = 0.0f;
  row.maximum = kNone;
  row.sum = 0.0f;
}

void fold(Row& total, const Row& span, int D) {
  if (span.sum == 0.0f) return;
  if (total.sum == 0.0f) {
    for (int d = 0; d < D; ++d) total.acc[d] = span.acc[d];
    total.maximum = span.maximum;
    total.sum = span.sum;
    return;
  }
  const float top = span.maximum > total.maximum ? span.maximum : total.maximum;
  const float old_factor = exp_of(total.maximum - top), factor = exp_of(span.maximum - top);
  for (int d = 0; d < D; ++d) total.acc[d] = std::fmaf(span.acc[d], factor, total.acc[d] * old_factor);
  total.sum = total.sum * old_factor + span.sum * factor;
  total.maximum = top;
}

struct Keys {
  const Attention& a;
  const int32_t* table;
  int kv_head;

  // Index of the position's scale; its features follow from D times that.
  int64_t at(int position) const {
    const int64_t token = int64_t(table[position / kBlockSize]) * kBlockSize + position % kBlockSize;
    return token * a.num_kv_heads + kv_head;
  }
};

// One stretch: keys lo .. hi of the stretch at `base`.
void add_stretch(const Keys& keys, const float* q, int base, int lo, int hi, Row& row) {
  const Attention& a = keys.a;
  const int D = a.head_dim;
  float scores[kStretch], sums[8] = {};
  float top = kNone;
  for (int j = lo; j < hi; ++j) {
    const int64_t at = keys.at(base + j);
    float dot = 0.0f;
    for (int d = 0; d < D; ++d) dot = std::fmaf(q[d], load(a.k_cache, at * D + d, a.cache_dtype), dot);
    if (a.cache_dtype == DType::int8) dot = dot * a.k_scales[at];
    dot = dot * a.scale;
    if (a.soft_cap > 0.0f) dot = a.soft_cap * tanhf(dot / a.soft_cap);
    scores[j] = dot;
    top = dot > top ? dot : top;
  }
  top = top > row.maximum ? top : row.maximum;
  const float factor = exp_of(row.maximum - top);
  for (int d = 0; d < D; ++d) row.acc[d] *= factor;
  for (int j = lo; j < hi; ++j) {
    const int64_t at = keys.at(base + j);
    float weight = exp_of(scores[j] - top);
    sums[j % 8] += weight;
    if (a.cache_dtype == DType::int8) weight = weight * a.v_scales[at];
    for (int d = 0; d < D; ++d) row.acc[d] = std::fmaf(weight, load(a.v_cache, at * D + d, a.cache_dtype), row.acc[d]);
  }
  const float low = (sums[0] + sums[4]) + (sums[2] + sums[6]), high = (sums[1] + sums[5]) + (sums[3] + sums[7]);
  row.sum = row.sum * factor + (low + high);
  row.maximum = top;
}

int least(int a, int b) { return a < b ? a : b; }
int most(int a, int b) { return a > b ? a : b; }

// Keys first .. end of one row, span by span.
Row walk(const Keys& keys, const float* q, int first, int end, float* scratch) {
  const int D = keys.a.head_dim;
  Row total{scratch, 0, 0}, span{scratch + D, 0, 0};
  clear(total, D);
  clear(span, D);
  for (int base = first / kStretch * kStretch; base < end; base += kStretch) {
    add_stretch(keys, q, base, most(first - base, 0), least(end - base, kStretch), span);
    if (base + kStretch >= end || (base + kStretch) % kSpan == 0) {
      fold(total, span, D);
      clear(span, D);
    }
  }
  return total;
}

void store_row(const Attention& a, int row, int head, const Row& total) {
  const float factor = 1.0f / total.sum;
  const int64_t to = (int64_t(row) * a.num_heads + head) * a.head_dim;
  for (int d = 0; d < a.head_dim; ++d) store(a.out, to + d, a.dtype, total.acc[d] * factor);
}

void piece(const Attention& a, const AttentionPiece& piece, float* scratch) {
  const int D = a.head_dim, heads = a.num_heads / a.num_kv_heads;
  const int start = a.query_starts[piece.slice], count = a.query_starts[piece.slice + 1] - start;
  const int32_t* table = a.block_tables + int64_t(piece.slice) * a.table_width;
  float* partial = piece.partial < 0 ? nullptr : a.partials + piece.partial;
  for (int token = piece.first_row; token < piece.first_row + piece.num_rows; ++token) {
    const int position = a.context_lens[piece.slice] - count + (token - start);
    const int oldest = a.window > 0 ? most(position - a.window + 1, 0) : 0;
    const int reach = least(position + 1 + a.ahead, a.context_lens[piece.slice]);
    const int first = most(oldest, piece.first_key), end = least(reach, piece.end_key);
    for (int head = piece.kv_head * heads; head < (piece.kv_head + piece.num_kv_heads) * heads; ++head) {
      for (int d = 0; d < D; ++d) scratch[d] = load(a.q, (int64_t(token) * a.num_heads + head) * D + d, a.dtype);
      const Row total = walk({a, table, head / heads}, scratch, first, end, scratch + D);
      if (piece.partial < 0) {
        store_row(a, token, head, total);
        continue;
      }
      for (int d = 0; d < D; ++d) partial[d] = total.acc[d];
      partial[row_stride(D)] = total.maximum;
      partial[row_stride(D) + 1] = total.sum;
      partial += partial_stride(D);
    }
  }
}

void fold_row(const Attention& a, const AttentionFold& work, float* scratch) {
  const int D = a.head_dim;
  for (int head = 0; head < a.num_heads; ++head) {
    Row total{scratch, 0, 0};
    clear(total, D);
    for (int span = 0; span < work.num_spans; ++span) {
      float* from = a.partials + work.partial + (int64_t(span) * a.num_heads + head) * partial_stride(D);
      fold(total, {from, from[row_stride(D)], from[row_stride(D) + 1]}, D);
    }
    store_row(a, work.row, head, total);
  }
}

}  // namespace

const AttentionKernels attention_kernels_scalar = {piece, fold_row};

}  // namespace octavo
