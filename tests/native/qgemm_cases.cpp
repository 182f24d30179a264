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
  octavo::DType scale_type = octavo::DType::bfloat16;
  bool is_taken = false;  // levels as they are
};

constexpr Shape kShapes[] = {{0, 16, 8},   {1, 15, 7},   {1, 16, 1},   {1, 17, 9},  {2, 1, 3},   {3, 40, 257}, {5, 63, 31},
                             {6, 64, 32},  {7, 65, 33},  {12, 33, 128}, {13, 31, 65}, {4, 0, 5},  {4, 5, 0},    {40, 50, 130},
                             {8, 16, 96},  {9, 16, 64},  {10, 7, 36},  {11, 9, 129}, {1, 215, 130}, {1, 64, 41},  {31, 20, 36}};
constexpr Format kFormats[] = {{"int8", octavo::QuantType::int8, 128, false}, {"int4 32", octavo::QuantType::int4, 32, false},
                               {"int4 64 zeros", octavo::QuantType::int4, 64, true},
                               {"int4 128", octavo::QuantType::int4, 128, false},
                               {"taken 32 float16", octavo::QuantType::int4, 32, true, octavo::DType::float16, true},
                               {"taken 64 float32", octavo::QuantType::int4, 64, false, octavo::DType::float32, true},
                               {"taken 128 bfloat16", octavo::QuantType::int4, 128, true, octavo::DType::bfloat16, true}};

const octavo::QuantKernels& kernels_of(Isa isa) {
#ifdef OCTAVO_EMULATED_AVX512
  if (isa == Isa::avx512) return octavo::kQuantAvx512;
#endif
  return *octavo::quant_kernels(isa);
}

// A packed weight in memory of exactly its size.
class Packed {
 public:
  Packed(const Shape& s, const Format& f, int threads)
      : is_wide_(f.type == octavo::QuantType::int8 || f.scale_type == octavo::DType::float32),
        count_(octavo::quant_num_scales(f.type, s.outputs, s.inputs, f.group)),
        values_(octavo::quant_value_bytes(f.type, s.outputs, s.inputs)),
        channel_scales_(is_wide_ ? count_ : 0),
        scales_(is_wide_ ? 0 : count_),
        zeros_(f.has_zeros ? count_ : 0),
        weight{f.type,         s.outputs,              s.inputs,       f.group,
               values_.data(), channel_scales_.data(), scales_.data(), zeros_.data(), f.scale_type} {
    const octavo::QuantTarget target{values_.data(), channel_scales_.data(), scales_.data(), zeros_.data()};
    if (f.is_taken) {
      take(s, f, target, threads);
      return;
    }
    Exact<uint16_t> source = bfloat16s(int64_t(s.outputs) * s.inputs);
    octavo::pack_quant(weight, source.data(), octavo::DType::bfloat16, target, threads);
  }

 private:
  void take(const Shape& s, const Format& f, const octavo::QuantTarget& to, int threads) {
    const int64_t groups = (s.inputs + f.group - 1) / f.group;
    Exact<uint8_t> levels(int64_t(s.outputs) * s.inputs), zeros(f.has_zeros ? s.outputs * groups : 0);
    levels.fill([](int64_t i) { return uint8_t(i * 7 % 16); });
    zeros.fill([](int64_t i) { return uint8_t(i * 5 % 16); });
    Exact<float> wide = floats(is_wide_ ? s.outputs * groups : 0, 1);
    Exact<uint16_t> narrow(is_wide_ ? 0 : s.outputs * groups);
    narrow.fill([](int64_t i) { return uint16_t(0x1c00 + i * 37 % 512); });
    const void* scales = is_wide_ ? static_cast<const void*>(wide.data()) : narrow.data();
    octavo::pack_levels(weight, {levels.data(), scales, f.has_zeros ? zeros.data() : nullptr}, to, threads);
  }

  bool is_wide_;
  int64_t count_;
  Exact<uint8_t> values_;
  Exact<float> channel_scales_;
  Exact<uint16_t> scales_;
  Exact<uint8_t> zeros_;

 public:
  octavo::QuantWeight weight;
};

Bytes multiply(const Shape& s, const Format& f, const How& how) {
  const Packed packed(s, f, how.threads);
  Exact<float> x = floats(int64_t(s.rows) * s.inputs - how.missing, 1);
  Exact<float> bias = floats(s.outputs, 1);
  Exact<float> out(int64_t(s.rows) * s.outputs, 1);
  octavo::quant_gemm(packed.weight, x.data(), s.rows, bias.data(), out.data(), kernels_of(how.isa), how.threads);
  return bytes_of(out);
}

Bytes gather(const Shape& s, const Format& f, const How& how) {
  const Packed packed(s, f, how.threads);
  Exact<int64_t> ids(s.outputs);
  ids.fill([&](int64_t i) { return s.outputs - 1 - i; });
  Exact<float> out(int64_t(s.outputs) * s.inputs, 1);
  octavo::gather_rows(packed.weight, ids.data(), s.outputs, out.data());
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
