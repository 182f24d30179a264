// The Python face of packed weights and their product.
#include <nanobind/stl/string.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>
#include <new>

#include "bind.h"
#include "gemm.h"
#include "qgemm.h"

using namespace nanobind::literals;

namespace octavo::bind {
namespace {

using Weight = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
using Owned = std::unique_ptr<T, void (*)(void*)>;

// At least one byte, so that none is no special case. Large weights lie on large pages where the system has them.
template <class T>
Owned<T> allocate(int64_t count) {
  constexpr size_t kHuge = size_t(2) << 20;
  const size_t wanted = size_t(count) * sizeof(T) + 1;
  const size_t unit = wanted < 2 * kHuge ? 64 : kHuge;
  const size_t bytes = (wanted + unit - 1) / unit * unit;
  Owned<T> data(static_cast<T*>(std::aligned_alloc(unit, bytes)), std::free);
  if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (unit == kHuge) madvise(data.get(), bytes, MADV_HUGEPAGE);
#endif
  return data;
}

// A weight in the kernels' layout. Owns its memory.
struct OwnedWeight {
  PackedWeight packed{};
  Owned<char> data{nullptr, std::free};

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
    data = allocate<char>(num_bytes());
    packed.data = data.get();
    pack_weight(weight.data(), from, packed.num_outputs, packed.num_inputs, data.get(), packed.dtype, num_threads);
  }

  int64_t num_bytes() const { return packed_bytes(packed.num_outputs, packed.num_inputs, packed.dtype); }
};

void linear(const OwnedWeight& weight, uintptr_t x, uintptr_t bias, uintptr_t out, int num_rows, int num_threads,
            const std::string& isa) {
  const GemmKernels& kernels = *find_kernel(isa, gemm_kernels);
  run("linear", [=, &kernels, packed = weight.packed] {
    octavo::gemm(packed, pointer<const float>(x), num_rows, pointer<const float>(bias), pointer<float>(out), kernels,
                 num_threads);
  });
}

// A weight quantized to int8 or int4. Owns its memory.
struct OwnedQuantWeight {
  QuantWeight quant{};
  int64_t num_bytes = 0;
  Owned<uint8_t> values{nullptr, std::free};
  Owned<float> channel_scales{nullptr, std::free};
  Owned<uint16_t> scales{nullptr, std::free};
  Owned<uint8_t> zeros{nullptr, std::free};

  OwnedQuantWeight(const Weight& weight, int bits, int group, bool has_zeros, int num_threads) {
    const DType from = dtype_of(weight, "weight");
    require(weight.shape(0) <= INT32_MAX && weight.shape(1) <= INT32_MAX, "weight: too large");
    require(num_threads >= 1, "num_threads: expected >= 1");
    require(bits == 8 || bits == 4, "bits: expected 4 or 8");
    require(bits == 8 || group == 32 || group == 64 || group == 128, "group: expected 32, 64 or 128");
    const bool is_int8 = bits == 8;
    quant.type = is_int8 ? QuantType::int8 : QuantType::int4;
    quant.num_outputs = static_cast<int>(weight.shape(0));
    quant.num_inputs = static_cast<int>(weight.shape(1));
    quant.group = is_int8 ? kActivationGroup : group;
    const int64_t bytes = quant_value_bytes(quant.type, quant.num_outputs, quant.num_inputs);
    const int64_t count = quant_num_scales(quant.type, quant.num_outputs, quant.num_inputs, quant.group);
    values = allocate<uint8_t>(bytes);
    if (is_int8) channel_scales = allocate<float>(count);
    if (!is_int8) scales = allocate<uint16_t>(count);
    if (!is_int8 && has_zeros) zeros = allocate<uint8_t>(count);
    num_bytes = bytes + count * (is_int8 ? 4 : has_zeros ? 3 : 2);
    quant.values = values.get();
    quant.channel_scales = channel_scales.get();
    quant.scales = scales.get();
    quant.zeros = zeros.get();
    nb::gil_scoped_release released;
    pack_quant(quant, weight.data(), from, {values.get(), channel_scales.get(), scales.get(), zeros.get()}, num_threads);
  }
};

void quant_linear(const OwnedQuantWeight& weight, uintptr_t x, uintptr_t bias, uintptr_t out, int num_rows,
                  int num_threads, const std::string& isa) {
  const QuantKernels& kernels = *find_kernel(isa, quant_kernels);
  run("quant_linear", [=, &kernels, quant = weight.quant] {
    quant_gemm(quant, pointer<const float>(x), num_rows, pointer<const float>(bias), pointer<float>(out), kernels,
               num_threads);
  });
}

// Rows of a table: an embedding. The ids come from outside, so each is checked.
template <class Owner>
void gather(const Owner& weight, int num_outputs, uintptr_t ids, uintptr_t out, int64_t count) {
  run("rows", [=] {
    const int64_t* id = pointer<const int64_t>(ids);
    for (int64_t n = 0; n < count; ++n) {
      require(id[n] >= 0 && id[n] < num_outputs,
              "ids: " + std::to_string(id[n]) + " is no row of " + std::to_string(num_outputs));
    }
    gather_rows(weight, id, count, pointer<float>(out));
  });
}

void packed_rows(const OwnedWeight& weight, uintptr_t ids, uintptr_t out, int64_t count) {
  gather(weight.packed, weight.packed.num_outputs, ids, out, count);
}

void quant_rows(const OwnedQuantWeight& weight, uintptr_t ids, uintptr_t out, int64_t count) {
  gather(weight.quant, weight.quant.num_outputs, ids, out, count);
}

}  // namespace

void add_gemm(nb::module_& m) {
  nb::class_<OwnedWeight>(m, "PackedWeight", "A weight [O, D] in the kernels' layout.")
      .def(nb::init<const Weight&, int>(), nb::arg("weight").noconvert(), "num_threads"_a)
      .def_prop_ro("num_bytes", &OwnedWeight::num_bytes);
  m.def("linear", &linear, "out = x * weight^T + bias.");
  nb::class_<OwnedQuantWeight>(m, "QuantWeight", "A weight [O, D] as int8 or int4 in the kernels' layout.")
      .def(nb::init<const Weight&, int, int, bool, int>(), nb::arg("weight").noconvert(), "bits"_a, "group"_a,
           "has_zeros"_a, "num_threads"_a)
      .def_ro("num_bytes", &OwnedQuantWeight::num_bytes);
  m.def("packed_rows", &packed_rows, "Rows of a weight as float32.");
  m.def("quant_rows", &quant_rows, "Rows of a weight, dequantized.");
  m.def("quant_linear", &quant_linear, "out = x * weight^T + bias, x quantized per row and group of inputs.");
}

}  // namespace octavo::bind
