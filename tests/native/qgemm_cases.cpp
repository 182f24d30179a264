// Quantized products: groups with a rest, quads with a rest, row counts on both sides of every tile, and for the loops of one
// row panels on both sides of four; packing, of numbers and of a checkpoint's levels.
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
                             {8, 16, 96},  {9, 16, 64},  {10, 7, 36},  {11, 9, 129}, {1, 215, 130}, {1, 64, 41},  {31, 20, 36},
                             {0, 17, 33},  {1, 63, 127}, {1, 65, 129}, {1, 128, 128}, {1, 143, 255}, {1, 1000, 20}, {2, 63, 127}};
constexpr Format kFormats[] = {{"int8", octavo::QuantType::int8, 128, false}, {"int4 32", octavo::QuantType::int4, 32, false},
                               {"int4 64 zeros", octavo::QuantType::int4, 64, true},
                               {"int4 128", octavo::QuantType::int4, 128, false},
                               {"int4 32 zeros", octavo::QuantType::int4, 32, true},
                               {"int4 64", octavo::QuantType::int4, 64, false},
                               {"int4 128 zeros", octavo::QuantType::int4, 128, true},
                               {"taken 32 float16", octavo::QuantType::int4, 32, true, octavo::DType::float16, true},
                               {"taken 64 float32", octavo::QuantType::int4, 64, false, octavo::DType::float32, true},
                               {"taken 128 bfloat16", octavo::QuantType::int4, 128, true, octavo::DType::bfloat16, true}};

const octavo::QuantKernels& kernels_of(Isa isa) {
#ifdef OCTAVO_EMULATED_AVX512
  if (isa == Isa::avx512) return octavo::kQuantAvx512;
#endif
  return *octavo::quant_kernels(isa);
}

Bytes pack(const Shape& s, const Format& f, bool is_wide_source, const How& how);

// A packed weight in memory of exactly its size.
class Packed {
 public:
  // `missing` elements are lacking in what is packed; with `is_wide_source`, numbers are packed from float32.
  Packed(const Shape& s, const Format& f, int threads, int missing = 0, bool is_wide_source = false)
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
      take(s, f, target, threads, missing);
      return;
    }
    const int64_t size = int64_t(s.outputs) * s.inputs - missing;
    Exact<float> wide = floats(is_wide_source ? size : 0, 1);
    Exact<uint16_t> narrow = bfloat16s(is_wide_source ? 0 : size, 1);
    const octavo::DType from = is_wide_source ? octavo::DType::float32 : octavo::DType::bfloat16;
    const void* source = is_wide_source ? static_cast<const void*>(wide.data()) : narrow.data();
    octavo::pack_quant(weight, source, from, target, threads);
  }

 private:
  void take(const Shape& s, const Format& f, const octavo::QuantTarget& to, int threads, int missing) {
    const int64_t groups = (s.inputs + f.group - 1) / f.group;
    Exact<uint8_t> levels(int64_t(s.outputs) * s.inputs - missing, 1), zeros(f.has_zeros ? s.outputs * groups : 0);
    levels.fill([](int64_t i) { return uint8_t(i * 7 % 16); });
    zeros.fill([](int64_t i) { return uint8_t(i * 5 % 16); });
    Exact<float> wide = floats(is_wide_ ? s.outputs * groups : 0, 1);
    Exact<uint16_t> narrow(is_wide_ ? 0 : s.outputs * groups);
    narrow.fill([](int64_t i) { return uint16_t(0x1c00 + i * 37 % 512); });
    const void* scales = is_wide_ ? static_cast<const void*>(wide.data()) : narrow.data();
    octavo::pack_levels(weight, {levels.data(), scales, f.has_zeros ? zeros.data() : nullptr}, to, threads);
  }

  friend Bytes pack(const Shape& s, const Format& f, bool is_wide_source, const How& how);

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

// What is packed, byte by byte.
Bytes pack(const Shape& s, const Format& f, bool is_wide_source, const How& how) {
  Packed packed(s, f, how.threads, how.missing, is_wide_source);
  Bytes all = bytes_of(packed.values_);
  for (const Bytes& part : {bytes_of(packed.channel_scales_), bytes_of(packed.scales_), bytes_of(packed.zeros_)}) {
    append(all, part.data(), int64_t(part.size()));
  }
  return all;
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
      found.push_back({"qgemm pack " + shape, [=](const How& how) { return pack(s, f, false, how); }});
      if (!f.is_taken) found.push_back({"qgemm pack wide " + shape, [=](const How& how) { return pack(s, f, true, how); }});
    }
  }
  return found;
}

}  // namespace native
