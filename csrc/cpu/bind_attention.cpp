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

using Tensor3 = nb::ndarray<nb::ro, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Cache = nb::ndarray<nb::ro, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::string shape_of(const Tensor3& t) {
  return "[" + std::to_string(t.shape(0)) + ", " + std::to_string(t.shape(1)) + ", " + std::to_string(t.shape(2)) + "]";
}

// Where the tokens of a step and their keys are. Owns copies, checked once per step.
struct AttentionPlan {
  std::vector<int32_t> query_starts;
  std::vector<int32_t> context_lens;
  std::vector<int32_t> block_tables;
  int table_width = 0;
  int32_t top_block = -1;

  AttentionPlan(std::vector<int32_t> starts, std::vector<int32_t> lens, const Table& tables)
      : query_starts(std::move(starts)), context_lens(std::move(lens)) {
    const size_t slices = context_lens.size();
    require(query_starts.size() == slices + 1 && query_starts[0] == 0, "query_starts: expected [S + 1] from 0");
    require(tables.shape(0) == slices, "block_tables: expected one row per slice");
    table_width = static_cast<int>(tables.shape(1));
    block_tables.assign(tables.data(), tables.data() + tables.size());
    for (size_t s = 0; s < slices; ++s) check_slice(s);
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

void paged_attention(const AttentionPlan& plan, const Tensor3& q, const Cache& k_cache, const Cache& v_cache,
                     const Output& out, double scale, int window, double soft_cap, int num_threads,
                     const std::string& isa) {
  Attention a{};
  a.dtype = dtype_of(q, "q");
  require(k_cache.dtype() == q.dtype() && v_cache.dtype() == q.dtype() && out.dtype() == q.dtype(),
          "q, k_cache, v_cache and out: expected one dtype");
  require(int64_t(q.shape(0)) == plan.query_starts.back(), "q " + shape_of(q) + ": the plan has " +
                                                             std::to_string(plan.query_starts.back()) + " tokens");
  for (size_t i = 0; i < 3; ++i) require(out.shape(i) == q.shape(i), "out: expected the shape of q, " + shape_of(q));
  for (size_t i = 0; i < 4; ++i) require(k_cache.shape(i) == v_cache.shape(i), "k_cache and v_cache differ in shape");
  require(k_cache.shape(1) == size_t(kBlockSize), "k_cache: expected [num_blocks, 16, G, D]");
  require(k_cache.shape(3) == q.shape(2) && q.shape(2) > 0, "k_cache: its head size is not that of q " + shape_of(q));
  require(k_cache.shape(2) > 0 && q.shape(1) % k_cache.shape(2) == 0, "q " + shape_of(q) +
                                                                        ": heads are no multiple of the cache's");
  require(plan.top_block < int64_t(k_cache.shape(0)), "block_tables: block " + std::to_string(plan.top_block) +
                                                        " is outside a cache of " + std::to_string(k_cache.shape(0)));
  require(window >= 0 && num_threads >= 1, "window, num_threads: expected >= 0 and >= 1");
  require(std::isfinite(scale) && std::isfinite(soft_cap) && soft_cap >= 0, "scale, soft_cap: expected finite numbers");
  const AttentionKernel kernel = find_kernel(isa, attention_kernel);
  a.q = q.data();
  a.k_cache = k_cache.data();
  a.v_cache = v_cache.data();
  a.out = out.data();
  a.query_starts = plan.query_starts.data();
  a.context_lens = plan.context_lens.data();
  a.block_tables = plan.block_tables.data();
  a.num_slices = static_cast<int>(plan.context_lens.size());
  a.table_width = plan.table_width;
  a.num_heads = static_cast<int>(q.shape(1));
  a.num_kv_heads = static_cast<int>(k_cache.shape(2));
  a.head_dim = static_cast<int>(q.shape(2));
  a.scale = static_cast<float>(scale);
  a.window = window;
  a.soft_cap = static_cast<float>(soft_cap);
  nb::gil_scoped_release released;
  octavo::paged_attention(a, kernel, num_threads);
}

}  // namespace

void add_attention(nb::module_& m) {
  nb::class_<AttentionPlan>(m, "AttentionPlan", "Where the tokens of a step and their keys are.")
      .def(nb::init<std::vector<int32_t>, std::vector<int32_t>, const Table&>(), "query_starts"_a, "context_lens"_a,
           nb::arg("block_tables").noconvert());
  m.def("paged_attention", &paged_attention, "plan"_a, nb::arg("q").noconvert(), nb::arg("k_cache").noconvert(),
        nb::arg("v_cache").noconvert(), nb::arg("out").noconvert(), nb::kw_only(), "scale"_a, "window"_a = 0,
        "soft_cap"_a = 0.0, "num_threads"_a = 1, "isa"_a = "", "Attention of every query token over its cached keys.");
}

}  // namespace octavo::bind
