// Norms, activation, and what goes into attention: feature counts around the lanes, odd head sizes, no rows.
#include "native.h"
#include "rows.h"

namespace native {
namespace {

Bytes norm(int64_t rows, int features, bool has_residual, const How& how) {
  Exact<float> x = floats(rows * features - how.missing, 1);
  Exact<float> residual = floats(has_residual ? rows * features : 0, 1);
  Exact<float> weight = floats(features, 1);
  Exact<float> out(rows * features, 1);
  const octavo::RmsNorm op{x.data(), residual.data(), weight.data(), out.data(), rows, features, 1e-6f};
  octavo::rms_norm(op, *octavo::row_kernels(how.isa), how.threads);
  Bytes all = bytes_of(out);
  const Bytes sums = bytes_of(residual);
  append(all, sums.data(), int64_t(sums.size()));
  return all;
}

Bytes activation(int64_t rows, int features, const How& how) {
  Exact<float> x = floats(rows * 2 * features - how.missing, 1);
  Exact<float> out(rows * features, 1);
  const octavo::SiluAndMul op{x.data(), out.data(), rows, features};
  octavo::silu_and_mul(op, *octavo::row_kernels(how.isa), how.threads);
  return bytes_of(out);
}

Bytes layer_norm(int64_t rows, int features, bool has_residual, bool has_bias, const How& how) {
  Exact<float> x = floats(rows * features - how.missing, 1);
  Exact<float> residual = floats(has_residual ? rows * features : 0, 1);
  Exact<float> weight = floats(features, 1), bias = floats(has_bias ? features : 0, 1);
  Exact<float> out(rows * features, 1);
  const octavo::LayerNorm op{x.data(), has_residual ? residual.data() : nullptr, weight.data(),
                             has_bias ? bias.data() : nullptr, out.data(), rows, features, 1e-6f};
  octavo::layer_norm(op, *octavo::row_kernels(how.isa), how.threads);
  Bytes all = bytes_of(out);
  const Bytes sums = bytes_of(residual);
  append(all, sums.data(), int64_t(sums.size()));
  return all;
}

Bytes activate(int64_t rows, int features, octavo::Curve curve, bool is_gated, const How& how) {
  Exact<float> x = floats(rows * features * (is_gated ? 2 : 1) - how.missing, 1);
  Exact<float> out(rows * features, 1);
  const octavo::Activate op{x.data(), out.data(), rows, features, curve, is_gated};
  octavo::activate(op, *octavo::row_kernels(how.isa), how.threads);
  return bytes_of(out);
}

struct Heads {
  int64_t tokens;
  int heads, kv_heads, dim, rotated;
  bool has_norms;
};

constexpr Heads kHeads[] = {{0, 2, 1, 8, 8, true},  {1, 1, 1, 7, 6, true},    {5, 4, 2, 20, 8, false},
                            {3, 3, 1, 17, 0, true}, {7, 2, 2, 128, 128, true}, {2, 1, 1, 1024, 1024, true}};

// Slots run backwards from the last of the cache, so that one too far is outside.
template <class T>
Bytes inputs(const Heads& h, octavo::DType cache, const How& how) {
  const bool is_int8 = cache == octavo::DType::int8;
  const int64_t slots = h.tokens + 3, kept = int64_t(h.kv_heads) * h.dim;
  Exact<float> qkv = floats(h.tokens * (h.heads + 2 * h.kv_heads) * h.dim - how.missing, 1);
  Exact<float> q_weight = floats(h.has_norms ? h.dim : 0, 1), k_weight = floats(h.has_norms ? h.dim : 0, 1);
  Exact<float> cos = floats(h.tokens * (h.rotated / 2)), sin = floats(h.tokens * (h.rotated / 2), 1);
  Exact<int64_t> places(h.tokens);
  places.fill([&](int64_t i) { return slots - 1 - i; });
  Exact<float> q(h.tokens * h.heads * h.dim, 1);
  Exact<T> keys(slots * kept, 1), values(slots * kept, 1);
  Exact<float> k_scales(is_int8 ? slots * h.kv_heads : 0, 1), v_scales(is_int8 ? slots * h.kv_heads : 0, 1);
  octavo::AttentionInputs op{};
  op.qkv = qkv.data();
  op.q_weight = q_weight.data();
  op.k_weight = k_weight.data();
  op.cos = cos.data();
  op.sin = sin.data();
  op.slots = places.data();
  op.q_out = q.data();
  op.cache_dtype = cache;
  op.k_cache = keys.data();
  op.v_cache = values.data();
  op.k_scales = k_scales.data();
  op.v_scales = v_scales.data();
  op.num_tokens = h.tokens;
  op.num_heads = h.heads;
  op.num_kv_heads = h.kv_heads;
  op.head_dim = h.dim;
  op.num_rotated = h.rotated;
  op.eps = 1e-6f;
  octavo::attention_inputs(op, *octavo::row_kernels(how.isa), how.threads);
  Bytes all = bytes_of(q);
  for (const Bytes& part : {bytes_of(keys), bytes_of(values), bytes_of(k_scales), bytes_of(v_scales)})
    append(all, part.data(), int64_t(part.size()));
  return all;
}

}  // namespace

std::vector<Case> row_cases() {
  std::vector<Case> found;
  for (int64_t rows : {0, 1, 5}) {
    for (int features : {1, 7, 15, 16, 17, 33, 1025}) {
      const std::string size = " " + std::to_string(rows) + " " + std::to_string(features);
      found.push_back({"rms_norm" + size, [=](const How& how) { return norm(rows, features, false, how); }});
      found.push_back({"rms_norm residual" + size, [=](const How& how) { return norm(rows, features, true, how); }});
      found.push_back({"silu_and_mul" + size, [=](const How& how) { return activation(rows, features, how); }});
      for (const bool is : {false, true}) {
        const std::string name = size + (is ? " with" : " without");
        found.push_back({"layer_norm" + name, [=](const How& how) { return layer_norm(rows, features, is, !is, how); }});
        for (const octavo::Curve curve : {octavo::Curve::gelu, octavo::Curve::gelu_tanh, octavo::Curve::relu}) {
          const std::string all = "activate " + std::to_string(int(curve)) + name;
          found.push_back({all, [=](const How& how) { return activate(rows, features, curve, is, how); }});
        }
      }
    }
  }
  for (const Heads& h : kHeads) {
    const std::string name = "attention_inputs " + std::to_string(h.tokens) + " " + std::to_string(h.dim);
    using octavo::DType;
    found.push_back({name, [=](const How& how) { return inputs<float>(h, DType::float32, how); }});
    found.push_back({name + " bfloat16", [=](const How& how) { return inputs<uint16_t>(h, DType::bfloat16, how); }});
    found.push_back({name + " float16", [=](const How& how) { return inputs<uint16_t>(h, DType::float16, how); }});
    found.push_back({name + " int8", [=](const How& how) { return inputs<int8_t>(h, DType::int8, how); }});
  }
  return found;
}

}  // namespace native
