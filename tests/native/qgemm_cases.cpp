// Quantized products: groups with a rest, quads with a rest, row counts on both sides of every tile.
#include "qgemm.h"

#include "native.h"

namespace native {
namespace {

struct Shape {
  int rows, outputs, inputs;
};

struct Format {
  const char* name;
  octavo::QuantType type;
  int group;
  bool has_zeros;
};

constexpr Shape kShapes[] = {{0, 16, 8},   {1, 15, 7},   {1, 16, 1},   {1, 17, 9},  {2, 1, 3},   {3, 40, 257}, {5, 63, 31},
                             {6, 64, 32},  {7, 65, 33},  {12, 33, 128}, {13, 31, 65}, {4, 0, 5},  {4, 5, 0},    {40, 50, 130},
                             {8, 16, 96},  {9, 16, 64},  {10, 7, 36},  {11, 9, 129}};
constexpr Format kFormats[] = {{"int8", octavo::QuantType::int8, 128, false}, {"int4 32", octavo::QuantType::int4, 32, false},
                               {"int4 64 zeros", octavo::QuantType::int4, 64, true},
                               {"int4 128", octavo::QuantType::int4, 128, false}};

const octavo::QuantKernels& kernels_of(Isa isa) {
#ifdef OCTAVO_EMULATED_AVX512
  if (isa == Isa::avx512) return octavo::kQuantAvx512;
#endif
  return *octavo::quant_kernels(isa);
}

Bytes multiply(const Shape& s, const Format& f, const How& how) {
  const bool is_int8 = f.type == octavo::QuantType::int8;
  const int64_t count = octavo::quant_num_scales(f.type, s.outputs, s.inputs, f.group);
  Exact<uint16_t> source = bfloat16s(int64_t(s.outputs) * s.inputs);
  Exact<uint8_t> values(octavo::quant_value_bytes(f.type, s.outputs, s.inputs));
  Exact<float> channel_scales(is_int8 ? count : 0);
  Exact<uint16_t> scales(is_int8 ? 0 : count);
  Exact<uint8_t> zeros(f.has_zeros ? count : 0);
  const octavo::QuantWeight weight{f.type,        s.outputs,             s.inputs,      f.group,
                                   values.data(), channel_scales.data(), scales.data(), zeros.data()};
  const octavo::QuantTarget target{values.data(), channel_scales.data(), scales.data(), zeros.data()};
  octavo::pack_quant(weight, source.data(), octavo::DType::bfloat16, target, how.threads);
  Exact<float> x = floats(int64_t(s.rows) * s.inputs - how.missing, 1);
  Exact<float> bias = floats(s.outputs, 1);
  Exact<float> out(int64_t(s.rows) * s.outputs, 1);
  octavo::quant_gemm(weight, x.data(), s.rows, bias.data(), out.data(), kernels_of(how.isa), how.threads);
  return bytes_of(out);
}

Bytes gather(const Shape& s, const Format& f, const How& how) {
  const bool is_int8 = f.type == octavo::QuantType::int8;
  const int64_t count = octavo::quant_num_scales(f.type, s.outputs, s.inputs, f.group);
  Exact<float> source = floats(int64_t(s.outputs) * s.inputs);
  Exact<uint8_t> values(octavo::quant_value_bytes(f.type, s.outputs, s.inputs));
  Exact<float> channel_scales(is_int8 ? count : 0);
  Exact<uint16_t> scales(is_int8 ? 0 : count);
  Exact<uint8_t> zeros(f.has_zeros ? count : 0);
  const octavo::QuantWeight weight{f.type,        s.outputs,             s.inputs,      f.group,
                                   values.data(), channel_scales.data(), scales.data(), zeros.data()};
  const octavo::QuantTarget target{values.data(), channel_scales.data(), scales.data(), zeros.data()};
  octavo::pack_quant(weight, source.data(), octavo::DType::float32, target, how.threads);
  Exact<int64_t> ids(s.outputs);
  ids.fill([&](int64_t i) { return s.outputs - 1 - i; });
  Exact<float> out(int64_t(s.outputs) * s.inputs, 1);
  octavo::gather_rows(weight, ids.data(), s.outputs, out.data());
  return bytes_of(out);
}

}  // namespace

std::vector<Case> qgemm_cases() {
  std::vector<Case> found;
  for (const Shape& s : kShapes) {
    for (const Format& f : kFormats) {
      const std::string shape = std::to_string(s.rows) + " " + std::to_string(s.outputs) + " " +
                                std::to_string(s.inputs) + " " + f.name;
      found.push_back({"qgemm " + shape, [=](const How& how) { return multiply(s, f, how); }});
      found.push_back({"qgemm rows " + shape, [=](const How& how) { return gather(s, f, how); }});
    }
  }
  return found;
}

}  // namespace native
