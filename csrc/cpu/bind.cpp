// The Python face of the kernels, and the only file with Python headers. Checks everything; releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "isa.h"
#include "pool.h"
#include "rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using octavo::Isa;
using Tensor3 = nb::ndarray<nb::ro, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Cache = nb::ndarray<nb::ro, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr Isa kAllIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512};

void require(bool holds, const std::string& message) {
  if (!holds) throw nb::value_error(message.c_str());
}

std::string shape_of(const Tensor3& t) {
  return "[" + std::to_string(t.shape(0)) + ", " + std::to_string(t.shape(1)) + ", " + std::to_string(t.shape(2)) + "]";
}

bool has_kernels(Isa isa) {
  return isa <= octavo::best_isa() && octavo::attention_kernel(isa) != nullptr && octavo::gemm_kernel(isa) != nullptr &&
         octavo::row_kernels(isa) != nullptr;
}

// Best first.
std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (Isa isa : kAllIsas) {
    if (has_kernels(isa)) names.insert(names.begin(), octavo::isa_name(isa));
  }
  return names;
}

template <class Kernel>
Kernel find_kernel(const std::string& name, Kernel (*kernel_of)(Isa)) {
  Kernel best = nullptr;
  for (Isa isa : kAllIsas) {
    if (!has_kernels(isa)) continue;
    best = kernel_of(isa);
    if (name == octavo::isa_name(isa)) return best;
  }
  if (name.empty()) return best;
  std::string known;
  for (const std::string& each : runnable_isas()) known += (known.empty() ? "" : ", ") + each;
  throw nb::value_error(("isa '" + name + "' has no kernels here; known: " + known).c_str());
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
    const int64_t blocks = (int64_t(context_lens[s]) + octavo::kBlockSize - 1) / octavo::kBlockSize;
    require(blocks <= table_width, slice + "its context needs more blocks than block_tables has");
    for (int64_t b = 0; b < blocks; ++b) {
      const int32_t block = block_tables[s * table_width + b];
      require(block >= 0, slice + "negative block id");
      top_block = std::max(top_block, block);
    }
  }
};

template <class Array>
octavo::DType dtype_of(const Array& array, const std::string& name) {
  if (array.dtype() == nb::dtype<float>()) return octavo::DType::float32;
  const bool bf16 = array.dtype().code == uint8_t(nb::dlpack::dtype_code::Bfloat) && array.dtype().bits == 16;
  require(bf16 && array.dtype().lanes == 1, name + ": expected float32 or bfloat16");
  return octavo::DType::bfloat16;
}

void paged_attention(const AttentionPlan& plan, const Tensor3& q, const Cache& k_cache, const Cache& v_cache,
                     const Output& out, double scale, int window, double soft_cap, int num_threads,
                     const std::string& isa) {
  octavo::Attention a{};
  a.dtype = dtype_of(q, "q");
  require(k_cache.dtype() == q.dtype() && v_cache.dtype() == q.dtype() && out.dtype() == q.dtype(),
          "q, k_cache, v_cache and out: expected one dtype");
  require(int64_t(q.shape(0)) == plan.query_starts.back(), "q " + shape_of(q) + ": the plan has " +
                                                             std::to_string(plan.query_starts.back()) + " tokens");
  for (size_t i = 0; i < 3; ++i) require(out.shape(i) == q.shape(i), "out: expected the shape of q, " + shape_of(q));
  for (size_t i = 0; i < 4; ++i) require(k_cache.shape(i) == v_cache.shape(i), "k_cache and v_cache differ in shape");
  require(k_cache.shape(1) == size_t(octavo::kBlockSize), "k_cache: expected [num_blocks, 16, G, D]");
  require(k_cache.shape(3) == q.shape(2) && q.shape(2) > 0, "k_cache: its head size is not that of q " + shape_of(q));
  require(k_cache.shape(2) > 0 && q.shape(1) % k_cache.shape(2) == 0, "q " + shape_of(q) +
                                                                        ": heads are no multiple of the cache's");
  require(plan.top_block < int64_t(k_cache.shape(0)), "block_tables: block " + std::to_string(plan.top_block) +
                                                        " is outside a cache of " + std::to_string(k_cache.shape(0)));
  require(window >= 0 && num_threads >= 1, "window, num_threads: expected >= 0 and >= 1");
  require(std::isfinite(scale) && std::isfinite(soft_cap) && soft_cap >= 0, "scale, soft_cap: expected finite numbers");
  const octavo::AttentionKernel kernel = find_kernel(isa, octavo::attention_kernel);
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

using Weight = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A weight in the kernels' layout. Owns its memory.
struct PackedWeight {
  octavo::PackedWeight packed{};
  std::unique_ptr<char, void (*)(void*)> data{nullptr, std::free};

  PackedWeight(const Weight& weight, int num_threads) {
    const octavo::DType from = dtype_of(weight, "weight");
    require(weight.shape(0) <= INT32_MAX && weight.shape(1) <= INT32_MAX, "weight: too large");
    require(num_threads >= 1, "num_threads: expected >= 1");
    packed.num_outputs = static_cast<int>(weight.shape(0));
    packed.num_inputs = static_cast<int>(weight.shape(1));
    nb::gil_scoped_release released;
    const bool is_narrow = from == octavo::DType::bfloat16 ||
                           octavo::all_bfloat16(static_cast<const float*>(weight.data()), int64_t(weight.size()));
    packed.dtype = is_narrow ? octavo::DType::bfloat16 : octavo::DType::float32;
    const size_t bytes = size_t(num_bytes()) / 64 * 64 + 64;
    data.reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
    if (!data) throw std::bad_alloc();
    packed.data = data.get();
    octavo::pack_weight(weight.data(), from, packed.num_outputs, packed.num_inputs, data.get(), packed.dtype, num_threads);
  }

  int64_t num_bytes() const { return octavo::packed_bytes(packed.num_outputs, packed.num_inputs, packed.dtype); }
};

// The hot path: called many times per step, so the arrays come as addresses, checked by octavo.kernels.cpu.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void linear(const PackedWeight& weight, uintptr_t x, uintptr_t bias, uintptr_t out, int num_rows, int num_threads,
            const std::string& isa) {
  const octavo::GemmKernel kernel = find_kernel(isa, octavo::gemm_kernel);
  nb::gil_scoped_release released;
  octavo::gemm(weight.packed, pointer<const float>(x), num_rows, pointer<const float>(bias), pointer<float>(out), kernel,
               num_threads);
}

const octavo::RowKernels& find_rows(const std::string& isa) { return *find_kernel(isa, octavo::row_kernels); }

void rms_norm(uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t out, int64_t rows, int features, double eps,
              int num_threads, const std::string& isa) {
  const octavo::RmsNorm op{pointer<const float>(x), pointer<float>(residual), pointer<const float>(weight),
                           pointer<float>(out), rows, features, static_cast<float>(eps)};
  const octavo::RowKernels& kernels = find_rows(isa);
  nb::gil_scoped_release released;
  octavo::rms_norm(op, kernels, num_threads);
}

void silu_and_mul(uintptr_t x, uintptr_t out, int64_t rows, int features, int num_threads, const std::string& isa) {
  const octavo::SiluAndMul op{pointer<const float>(x), pointer<float>(out), rows, features};
  const octavo::RowKernels& kernels = find_rows(isa);
  nb::gil_scoped_release released;
  octavo::silu_and_mul(op, kernels, num_threads);
}

void attention_inputs(uintptr_t qkv, uintptr_t q_weight, uintptr_t k_weight, uintptr_t cos, uintptr_t sin,
                      uintptr_t slots, uintptr_t q_out, uintptr_t k_cache, uintptr_t v_cache, int64_t num_tokens,
                      int num_heads, int num_kv_heads, int head_dim, int num_rotated, double eps, int num_threads,
                      const std::string& isa) {
  require(head_dim <= octavo::kMaxHeadDim && num_rotated <= head_dim, "head_dim: at most 1024, and all rotated within");
  const octavo::AttentionInputs op{pointer<const float>(qkv), pointer<const float>(q_weight),
                                   pointer<const float>(k_weight), pointer<const float>(cos),
                                   pointer<const float>(sin), pointer<const int64_t>(slots), pointer<float>(q_out),
                                   pointer<float>(k_cache), pointer<float>(v_cache), num_tokens, num_heads,
                                   num_kv_heads, head_dim, num_rotated, static_cast<float>(eps)};
  const octavo::RowKernels& kernels = find_rows(isa);
  nb::gil_scoped_release released;
  octavo::attention_inputs(op, kernels, num_threads);
}

nb::dict features() {
  const octavo::Features& f = octavo::features();
  nb::dict found;
  found["avx2"] = f.avx2;
  found["fma"] = f.fma;
  found["f16c"] = f.f16c;
  found["avx512f"] = f.avx512f;
  found["avx512bw"] = f.avx512bw;
  found["avx512vl"] = f.avx512vl;
  found["avx512_vnni"] = f.avx512_vnni;
  found["avx512_bf16"] = f.avx512_bf16;
  return found;
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Compiled CPU kernels. Use them through octavo.kernels.cpu.";
  m.def("isa", [] { return octavo::isa_name(octavo::best_isa()); }, "The best instruction set of this machine.");
  m.def("features", &features, "Instruction set extensions that this machine has.");
  m.def("runnable_isas", &runnable_isas, "Instruction sets with kernels that run here, best first.");
  nb::class_<AttentionPlan>(m, "AttentionPlan", "Where the tokens of a step and their keys are.")
      .def(nb::init<std::vector<int32_t>, std::vector<int32_t>, const Table&>(), "query_starts"_a, "context_lens"_a,
           nb::arg("block_tables").noconvert());
  m.def("paged_attention", &paged_attention, "plan"_a, nb::arg("q").noconvert(), nb::arg("k_cache").noconvert(),
        nb::arg("v_cache").noconvert(), nb::arg("out").noconvert(), nb::kw_only(), "scale"_a, "window"_a = 0,
        "soft_cap"_a = 0.0, "num_threads"_a = 1, "isa"_a = "", "Attention of every query token over its cached keys.");
  nb::class_<PackedWeight>(m, "PackedWeight", "A weight [O, D] in the kernels' layout.")
      .def(nb::init<const Weight&, int>(), nb::arg("weight").noconvert(), "num_threads"_a)
      .def_prop_ro("num_bytes", &PackedWeight::num_bytes);
  m.def("set_watch", &octavo::set_watch, "Microseconds for which idle threads watch for the next call.");
  m.def("linear", &linear, "out = x * weight^T + bias.");
  m.def("rms_norm", &rms_norm, "RMS norm of rows, with a residual sum where there is one.");
  m.def("silu_and_mul", &silu_and_mul, "silu(first half) * second half of rows.");
  m.def("attention_inputs", &attention_inputs, "Norm, rotate and store projected rows.");
}
