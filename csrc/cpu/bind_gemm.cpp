// The Python face of packed weights and their product.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <optional>

#include "bind.h"
#include "bind_weight.h"

using namespace nanobind::literals;

namespace octavo::bind {
namespace {

void linear(const OwnedWeight& weight, uintptr_t x, uintptr_t bias, uintptr_t out, int num_rows, int num_threads,
            const std::string& isa) {
  const GemmKernels& kernels = *find_kernel(isa, gemm_kernels);
  run("linear", [=, &kernels, packed = weight.packed] {
    octavo::gemm(packed, pointer<const float>(x), num_rows, pointer<const float>(bias), pointer<float>(out), kernels,
                 num_threads);
  });
}

void quant_linear(const OwnedQuantWeight& weight, uintptr_t x, uintptr_t bias, uintptr_t out, int num_rows,
                  int num_threads, const std::string& isa) {
  const QuantKernels& kernels = *find_kernel(isa, quant_kernels);
  run("quant_linear", [=, &kernels, quant = weight.quant] {
    quant_gemm(quant, pointer<const float>(x), num_rows, pointer<const float>(bias), pointer<float>(out), kernels,
               num_threads);
  });
}

using Array = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Shape shape_of(const Array& weight) {
  require(weight.shape(0) <= INT32_MAX && weight.shape(1) <= INT32_MAX, "weight: too large");
  return {static_cast<int>(weight.shape(0)), static_cast<int>(weight.shape(1))};
}

void make_packed(OwnedWeight* self, const Array& weight, int num_threads) {
  const DType from = dtype_of(weight, "weight");
  const Shape shape = shape_of(weight);
  require(num_threads >= 1, "num_threads: expected >= 1");
  nb::gil_scoped_release released;
  const bool is_narrow = from == DType::bfloat16 ||
                         all_bfloat16(static_cast<const float*>(weight.data()), int64_t(weight.size()));
  auto made = std::make_unique<OwnedWeight>(shape, is_narrow ? DType::bfloat16 : DType::float32);
  made->fill(weight.data(), from, 0, shape.num_outputs, num_threads);
  new (self) OwnedWeight(std::move(*made));
}

void make_quant(OwnedQuantWeight* self, const Array& weight, int bits, int group, bool has_zeros, int num_threads) {
  const DType from = dtype_of(weight, "weight");
  const Shape shape = shape_of(weight);
  require(num_threads >= 1, "num_threads: expected >= 1");
  check_format(bits, group);
  nb::gil_scoped_release released;
  auto made = std::make_unique<OwnedQuantWeight>(shape, bits, group, has_zeros);
  made->fill(weight.data(), from, 0, shape.num_outputs, num_threads);
  new (self) OwnedQuantWeight(std::move(*made));
}

DType scale_type_of(const Array& scales) {
  if (scales.dtype() == nb::dtype<float>()) return DType::float32;
  const nb::dlpack::dtype type = scales.dtype();
  require(type.bits == 16 && type.lanes == 1, "scales: expected float32, bfloat16 or float16");
  if (type.code == uint8_t(nb::dlpack::dtype_code::Bfloat)) return DType::bfloat16;
  require(type.code == uint8_t(nb::dlpack::dtype_code::Float), "scales: expected float32, bfloat16 or float16");
  return DType::float16;
}

OwnedQuantWeight take_levels(const Array& levels, const Array& scales, const std::optional<Array>& zeros, int group,
                             int num_threads) {
  const Shape shape = shape_of(levels);
  require(num_threads >= 1, "num_threads: expected >= 1");
  check_format(4, group);
  require(levels.dtype() == nb::dtype<uint8_t>(), "levels: expected uint8");
  const DType scale_type = scale_type_of(scales);
  const size_t groups = (size_t(shape.num_inputs) + size_t(group) - 1) / size_t(group);
  require(scales.shape(0) == levels.shape(0) && scales.shape(1) == groups, "scales: expected one per output and group");
  if (zeros) {
    require(zeros->dtype() == nb::dtype<uint8_t>(), "zeros: expected uint8");
    require(zeros->shape(0) == levels.shape(0) && zeros->shape(1) == groups, "zeros: expected one per output and group");
  }
  const QuantLevels from{static_cast<const uint8_t*>(levels.data()), scales.data(),
                         zeros ? static_cast<const uint8_t*>(zeros->data()) : nullptr};
  nb::gil_scoped_release released;
  OwnedQuantWeight made(shape, 4, group, zeros.has_value(), scale_type);
  made.take(from, num_threads);
  return made;
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
      .def("__init__", &make_packed, nb::arg("weight").noconvert(), "num_threads"_a)
      .def_prop_ro("num_bytes", &OwnedWeight::num_bytes);
  m.def("linear", &linear, "out = x * weight^T + bias.");
  nb::class_<OwnedQuantWeight>(m, "QuantWeight", "A weight [O, D] as int8 or int4 in the kernels' layout.")
      .def("__init__", &make_quant, nb::arg("weight").noconvert(), "bits"_a, "group"_a, "has_zeros"_a,
           "num_threads"_a)
      .def_static("take", &take_levels, nb::arg("levels").noconvert(), nb::arg("scales").noconvert(),
                  nb::arg("zeros").noconvert().none(), "group"_a, "num_threads"_a)
      .def_ro("num_bytes", &OwnedQuantWeight::num_bytes);
  m.def("packed_rows", &packed_rows, "Rows of a weight as float32.");
  m.def("quant_rows", &quant_rows, "Rows of a weight, dequantized.");
  m.def("quant_linear", &quant_linear, "out = x * weight^T + bias, x quantized per row and group of inputs.");
}

}  // namespace octavo::bind
