// Paged attention: odd head sizes, slices without rows, windows, and a long context whose table names one block.
#include "attention.h"

#include <algorithm>

#include "native.h"

namespace native {
namespace {

using octavo::DType;
using octavo::kBlockSize;

struct Step {
  const char* name;
  std::vector<int> counts;    // of each slice, the rows of this step
  std::vector<int> contexts;  // and all its tokens
  int heads, kv_heads, dim;
  int window;
  float soft_cap;
  bool is_one_block;  // every entry of the tables is the cache's last block
  int ahead = 0;
};

const Step kSteps[] = {
    {"nothing", {}, {}, 2, 1, 8, 0, 0.0f, false},
    {"slices without rows", {0, 1, 0}, {5, 1, 16}, 2, 1, 8, 0, 0.0f, false},
    {"dim 7", {1, 3}, {17, 3}, 2, 2, 7, 0, 0.0f, false},
    {"dim 20", {1, 5}, {33, 40}, 3, 1, 20, 0, 30.0f, false},
    {"dim 80", {15, 17}, {15, 50}, 4, 2, 80, 9, 0.0f, false},
    {"dim 128", {1, 1, 33}, {16, 15, 33}, 8, 2, 128, 0, 0.0f, false},
    {"one row of every head", {1, 1, 1}, {70, 33, 150}, 13, 13, 48, 0, 0.0f, false},
    {"one row of every head, dim 40", {1}, {70}, 7, 7, 40, 0, 0.0f, false},
    {"two rows of every head", {1, 1}, {70, 33}, 14, 7, 128, 0, 0.0f, false},
    {"two rows of every head, dim 24 in a window", {1, 1}, {70, 133}, 6, 3, 24, 50, 0.0f, false},
    {"three rows of every head", {1}, {65}, 15, 5, 80, 0, 0.0f, false},
    {"four rows of every head", {1}, {49}, 20, 5, 64, 0, 0.0f, false},
    {"three rows of every head, dim 96 in an odd window", {1, 7}, {65, 50}, 6, 2, 96, 7, 0.0f, false},
    {"four rows of every head, dim 160", {1, 2}, {49, 33}, 8, 2, 160, 0, 0.0f, false},
    {"dim 32 in an odd window", {70, 1}, {90, 134}, 4, 2, 32, 21, 30.0f, false},
    {"dim 256 window of 1", {2}, {19}, 2, 1, 256, 1, 0.0f, false},
    {"more heads than a piece has rows", {3}, {20}, 40, 1, 8, 0, 0.0f, false},
    {"long context", {1, 2}, {70001, 300000}, 2, 1, 8, 0, 0.0f, true},
    {"long context with a window", {3}, {1000003}, 2, 1, 8, 17, 0.0f, true},
    {"both ways", {1, 15, 33, 130}, {1, 15, 33, 130}, 3, 3, 32, 0, 0.0f, false, 1 << 29},
    {"both ways in a window", {70, 200}, {70, 200}, 2, 2, 20, 9, 0.0f, false, 8},
};

// Whether each row has the bytes of `out` when it is computed alone.
template <class T>
bool is_same_alone(const octavo::Attention& whole, const How& how) {
  const int64_t row = int64_t(whole.num_heads) * whole.head_dim;
  const int32_t starts[2] = {0, 1};
  bool same = true;
  for (int slice = 0; slice < whole.num_slices; ++slice) {
    const int begin = whole.query_starts[slice], end = whole.query_starts[slice + 1];
    for (int at = begin; at < end; ++at) {
      Exact<T> out(row);
      const int32_t context = whole.context_lens[slice] - (end - 1 - at);
      octavo::Attention alone = whole;
      alone.q = static_cast<const T*>(whole.q) + at * row;
      alone.out = out.data();
      alone.query_starts = starts;
      alone.context_lens = &context;
      alone.block_tables = whole.block_tables + int64_t(slice) * whole.table_width;
      alone.num_slices = 1;
      octavo::paged_attention(alone, *octavo::attention_kernels(how.isa), how.threads);
      same = same && std::memcmp(out.data(), static_cast<T*>(whole.out) + at * row, sizeof(T) * size_t(row)) == 0;
    }
  }
  return same;
}

// Keys and values are of q's dtype unless `kept_as` says another: int8, with scales, or any beside float32.
template <class T, class K = T>
Bytes attend(const Step& s, DType dtype, Exact<T> (*values)(int64_t, int), DType kept_as,
             Exact<K> (*kept_values)(int64_t, int), const How& how, bool is_cut = false) {
  const bool is_int8 = kept_as == DType::int8;
  const int slices = int(s.counts.size());
  int width = 0;
  for (int context : s.contexts) width = std::max(width, (context + kBlockSize - 1) / kBlockSize);
  const int64_t blocks = s.is_one_block ? 1 : int64_t(width) * slices;
  Exact<int32_t> starts(slices + 1), lens(slices), tables(int64_t(width) * slices);
  for (int i = 0; i < slices; ++i) {
    starts.data()[i + 1] = starts.data()[i] + s.counts[size_t(i)];
    lens.data()[i] = s.contexts[size_t(i)];
  }
  // Backwards, so that the first block that is read is the last of the cache.
  tables.fill([&](int64_t i) { return int32_t(s.is_one_block ? 0 : blocks - 1 - i); });
  const int64_t rows = starts.data()[slices];
  const int64_t scales = blocks * kBlockSize * s.kv_heads, kept = scales * s.dim;
  Exact<T> q = values(rows * s.heads * s.dim - how.missing, 1);
  Exact<K> keys = kept_values(is_int8 ? 0 : kept, 1), cached = kept_values(is_int8 ? 0 : kept, 1);
  Exact<int8_t> int8_keys(is_int8 ? kept : 0, 1), int8_cached(is_int8 ? kept : 0, 1);
  Exact<float> k_scales = floats(is_int8 ? scales : 0), v_scales = floats(is_int8 ? scales : 0);
  int8_keys.fill([](int64_t i) { return int8_t(number(i) * 64); });
  int8_cached.fill([](int64_t i) { return int8_t(number(i + 1) * 64); });
  Exact<T> out(rows * s.heads * s.dim, 1);
  octavo::Attention a{};
  a.dtype = dtype;
  a.q = q.data();
  a.cache_dtype = kept_as;
  a.k_cache = is_int8 ? static_cast<const void*>(int8_keys.data()) : keys.data();
  a.v_cache = is_int8 ? static_cast<const void*>(int8_cached.data()) : cached.data();
  a.k_scales = k_scales.data();
  a.v_scales = v_scales.data();
  a.out = out.data();
  a.query_starts = starts.data();
  a.context_lens = lens.data();
  a.block_tables = tables.data();
  a.num_slices = slices;
  a.table_width = width;
  a.num_heads = s.heads;
  a.num_kv_heads = s.kv_heads;
  a.head_dim = s.dim;
  a.scale = 0.25f;
  a.window = s.window;
  a.ahead = s.ahead;
  a.soft_cap = s.soft_cap;
  octavo::paged_attention(a, *octavo::attention_kernels(how.isa), how.threads);
  return is_cut ? Bytes{char(is_same_alone<T>(a, how))} : bytes_of(out);
}

}  // namespace

std::vector<Case> attention_cases() {
  std::vector<Case> found;
  for (const Step& s : kSteps) {
    const std::string name = std::string("attention ") + s.name;
    const auto add = [&](const char* kinds, std::function<Bytes(const How&)> run, bool same_under_all = true) {
      found.push_back({name + kinds, run, same_under_all});
    };
    const bool is_rounded = s.dim % 32 == 0;  // by units that multiply bfloat16, where the cache is
    const auto wide = DType::float32, narrow = DType::bfloat16, half = DType::float16;
    add(" float32", [=](const How& how) { return attend(s, wide, floats, wide, floats, how); });
    add(" bfloat16", [=](const How& how) { return attend(s, narrow, bfloat16s, narrow, bfloat16s, how); }, !is_rounded);
    add(" int8", [=](const How& how) { return attend(s, wide, floats, DType::int8, floats, how); });
    if (s.is_one_block) continue;  // the other pairs of types walk the same way
    add(" float16", [=](const How& how) { return attend(s, half, halves, half, halves, how); });
    add(" over bfloat16", [=](const How& how) { return attend(s, wide, floats, narrow, bfloat16s, how); }, !is_rounded);
    if (is_rounded && s.ahead == 0) {
      add(" over bfloat16, row by row", [=](const How& how) { return attend(s, wide, floats, narrow, bfloat16s, how, true); });
    }
    add(" over float16", [=](const How& how) { return attend(s, wide, floats, half, halves, how); });
  }
  return found;
}

}  // namespace native
