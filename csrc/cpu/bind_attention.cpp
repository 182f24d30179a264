// The Python face of paged attention.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bind.h"

using namespace nanobind::literals;

namespace octavo::bind {
namespace {

using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Where the tokens of a step and their keys are. Owns copies, checked once per step.
struct AttentionPlan {
  std::vector<int32_t> query_starts;
  std::vector<int32_t> context_lens;
  std::vector<int32_t> block_tables;
  int table_width = 0;
  int32_t top_block = -1;
  int64_t fewest_blocks = INT64_MAX;  // of the caches it was run with, which replays run with again

  AttentionPlan(std::vector<int32_t> starts, std::vector<int32_t> lens, const Table& tables)
      : query_starts(std::move(starts)) {
    require(query_starts.size() == lens.size() + 1 && query_starts[0] == 0, "query_starts: expected [S + 1] from 0");
    update(std::move(lens), tables);
  }

  // The same slices a step later: a replay of what was recorded with this plan reads these.
  void update(std::vector<int32_t> lens, const Table& tables) {
    const size_t slices = query_starts.size() - 1;
    require(lens.size() == slices, "context_lens: expected one per slice");
    require(tables.shape(0) == slices, "block_tables: expected one row per slice");
    context_lens = std::move(lens);
    table_width = static_cast<int>(tables.shape(1));
    block_tables.assign(tables.data(), tables.data() + tables.size());
    top_block = -1;
    for (size_t s = 0; s < slices; ++s) check_slice(s);
    check_blocks(fewest_blocks);
  }

  void check_blocks(int64_t num_blocks) const {
    require(top_block < num_blocks, "block_tables: block " + std::to_string(top_block) + " is outside a cache of " +
                                      std::to_string(num_blocks));
  }

  void check_slice(size_t s) {
    const std::string slice = "slice " + std::to_string(s) + ": ";
    const int64_t count = int64_t(query_starts[s + 1]) - query_starts[s];
    require(count >= 0, slice + "query_starts go down");
    require(context_lens[s] >= count, slice + "context_lens is less than its tokens");
    const int64_t blocks = (int64_t(context_lens[s]) + kBlockSize - 1) / kBlockSize;
    require(blocks <= table_width, slice + "its context needs more blocks than block_tables has");
    for (int64_t b = 0; b < blocks; ++b) {
      const int32_t block = block_tables[s * table_width + b];
      require(block >= 0, slice + "negative block id");
      top_block = std::max(top_block, block);
    }
  }
};

// Shapes, dtypes and layout of what lies at the addresses are checked by octavo.kernels.cpu; here, what the plan knows.
void paged_attention(AttentionPlan& plan, uintptr_t q, uintptr_t k_cache, uintptr_t v_cache, uintptr_t k_scales,
                     uintptr_t v_scales, uintptr_t out, int64_t num_tokens, int64_t num_blocks, int num_heads,
                     int num_kv_heads, int head_dim, int dtype, int cache_dtype, double scale, int window,
                     int ahead, double soft_cap, int num_threads, const std::string& isa) {
  require(num_tokens == plan.query_starts.back(), "q has " + std::to_string(num_tokens) + " tokens, the plan has " +
                                                    std::to_string(plan.query_starts.back()));
  require(head_dim > 0 && num_kv_heads > 0 && num_heads % num_kv_heads == 0,
          "q: " + std::to_string(num_heads) + " heads are no multiple of the cache's " + std::to_string(num_kv_heads));
  plan.check_blocks(num_blocks);
  require(dtype >= 0 && dtype < int(DType::int8) && cache_dtype >= 0 && cache_dtype <= int(DType::int8),
          "dtype, cache_dtype: not one of attention.h");
  require(cache_dtype != int(DType::int8) || (k_scales != 0 && v_scales != 0), "k_scales, v_scales: int8 needs them");
  require(window >= 0 && num_threads >= 1, "window, num_threads: expected >= 0 and >= 1");
  require(ahead >= 0, "ahead: expected >= 0");
  require(std::isfinite(scale) && std::isfinite(soft_cap) && soft_cap >= 0, "scale, soft_cap: expected finite numbers");
  const AttentionKernels& kernels = *find_kernel(isa, attention_kernels);
  Attention a{};
  a.dtype = DType(dtype);
  a.cache_dtype = DType(cache_dtype);
  a.q = pointer<const void>(q);
  a.k_cache = pointer<const void>(k_cache);
  a.v_cache = pointer<const void>(v_cache);
  a.k_scales = pointer<const float>(k_scales);
  a.v_scales = pointer<const float>(v_scales);
  a.out = pointer<void>(out);
  a.num_heads = num_heads;
  a.num_kv_heads = num_kv_heads;
  a.head_dim = head_dim;
  a.scale = static_cast<float>(scale);
  a.window = window;
  a.ahead = std::min(ahead, 1 << 29);  // so that sums with positions stay numbers
  a.soft_cap = static_cast<float>(soft_cap);
  plan.fewest_blocks = std::min(plan.fewest_blocks, num_blocks);
  run("paged_attention", [a, &plan, &kernels, num_threads] {
    Attention step = a;
    step.query_starts = plan.query_starts.data();
    step.context_lens = plan.context_lens.data();
    step.block_tables = plan.block_tables.data();
    step.num_slices = static_cast<int>(plan.context_lens.size());
    step.table_width = plan.table_width;
    octavo::paged_attention(step, kernels, num_threads);
  });
}

}  // namespace

void add_attention(nb::module_& m) {
  nb::class_<AttentionPlan>(m, "AttentionPlan", "Where the tokens of a step and their keys are.")
      .def(nb::init<std::vector<int32_t>, std::vector<int32_t>, const Table&>(), "query_starts"_a, "context_lens"_a,
           nb::arg("block_tables").noconvert())
      .def("update", &AttentionPlan::update, "context_lens"_a, nb::arg("block_tables").noconvert());
  m.def("paged_attention", &paged_attention, "Attention of every query token over its cached keys.");
}

}  // namespace octavo::bind
