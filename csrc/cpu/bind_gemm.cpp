// The Python face of packed weights and their product.
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <memory>
#include <new>

#include "bind.h"
#include "gemm.h"

using namespace nanobind::literals;

namespace octavo::bind {
namespace {

using Weight = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A weight in the kernels' layout. Owns its memory.
struct OwnedWeight {
  PackedWeight packed{};
  std::unique_ptr<char, void (*)(void*)> data{nullptr, std::free};

  OwnedWeight(const Weight& weight, int num_threads) {
    const DType from = dtype_of(weight, "weight");
    require(weight.shape(0) <= INT32_MAX && weight.shape(1) <= INT32_MAX, "weight: too large");
    require(num_threads >= 1, "num_threads: expected >= 1");
    packed.num_outputs = static_cast<int>(weight.shape(0));
    packed.num_inputs = static_cast<int>(weight.shape(1));
    nb::gil_scoped_release released;
    const bool is_narrow = from == DType::bfloat16 ||
                           all_bfloat16(static_cast<const float*>(weight.data()), int64_t(weight.size()));
    packed.dtype = is_narrow ? DType::bfloat16 : DType::float32;
    const size_t bytes = size_t(num_bytes()) / 64 * 64 + 64;
    data.reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
    if (!data) throw std::bad_alloc();
    packed.data = data.get();
    pack_weight(weight.data(), from, packed.num_outputs, packed.num_inputs, data.get(), packed.dtype, num_threads);
  }

  int64_t num_bytes() const { return packed_bytes(packed.num_outputs, packed.num_inputs, packed.dtype); }
};

void linear(const OwnedWeight& weight, uintptr_t x, uintptr_t bias, uintptr_t out, int num_rows, int num_threads,
            const std::string& isa) {
  const GemmKernel kernel = find_kernel(isa, gemm_kernel);
  nb::gil_scoped_release released;
  octavo::gemm(weight.packed, pointer<const float>(x), num_rows, pointer<const float>(bias), pointer<float>(out), kernel,
               num_threads);
}

}  // namespace

void add_gemm(nb::module_& m) {
  nb::class_<OwnedWeight>(m, "PackedWeight", "A weight [O, D] in the kernels' layout.")
      .def(nb::init<const Weight&, int>(), nb::arg("weight").noconvert(), "num_threads"_a)
      .def_prop_ro("num_bytes", &OwnedWeight::num_bytes);
  m.def("linear", &linear, "out = x * weight^T + bias.");
}

}  // namespace octavo::bind
