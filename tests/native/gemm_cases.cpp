// Packed products: row counts on both sides of every tile and block, outputs one short of a panel and one beyond; packing
// from each dtype as each.
#include "gemm.h"

#include "native.h"

namespace native {
namespace {

struct Shape {
  int rows, outputs, inputs;
};

constexpr Shape kShapes[] = {
    {0, 16, 8},   {1, 15, 7},   {1, 16, 1},   {1, 17, 9},    {2, 1, 3},      {5, 63, 31},
    {6, 64, 32},  {7, 65, 33},  {24, 31, 17}, {25, 47, 65},  {192, 33, 513}, {193, 17, 512},
    {3, 257, 40}, {1, 130, 71}, {4, 0, 5},    {200, 259, 12}, {1, 300, 21},  {1, 3001, 100},
    {0, 17, 33},  {1, 63, 127}, {1, 65, 129}, {23, 15, 2},    {4, 5, 0},     {13, 70, 1100},
    {96, 47, 40}, {97, 33, 1025}, {7, 49, 2051}, {7, 17, 0},    {1, 16, 0}};

Bytes multiply(const Shape& s, octavo::DType dtype, bool has_bias, const How& how) {
  const int64_t weights = int64_t(s.outputs) * s.inputs;
  Exact<float> wide = floats(dtype == octavo::DType::float32 ? weights : 0);
  Exact<uint16_t> narrow = bfloat16s(dtype == octavo::DType::bfloat16 ? weights : 0);
  const void* source = dtype == octavo::DType::float32 ? static_cast<const void*>(wide.data()) : narrow.data();
  Exact<char> packed(octavo::packed_bytes(s.outputs, s.inputs, dtype));
  octavo::pack_weight(source, dtype, s.outputs, s.inputs, packed.data(), dtype, how.threads);
  Exact<float> x = floats(int64_t(s.rows) * s.inputs - how.missing, 1);
  Exact<float> bias = floats(has_bias ? s.outputs : 0, 1);
  Exact<float> out(int64_t(s.rows) * s.outputs, 1);
  const octavo::PackedWeight weight{dtype, s.outputs, s.inputs, packed.data()};
  octavo::gemm(weight, x.data(), s.rows, bias.data(), out.data(), *octavo::gemm_kernels(how.isa), how.threads);
  return bytes_of(out);
}

// What is packed, from one dtype as another, and rows of it.
Bytes rows_of(const Shape& s, octavo::DType from, octavo::DType as, const How& how) {
  const int64_t weights = int64_t(s.outputs) * s.inputs - how.missing;
  Exact<float> wide = floats(from == octavo::DType::float32 ? weights : 0, 1);
  Exact<uint16_t> narrow = bfloat16s(from == octavo::DType::bfloat16 ? weights : 0, 1);
  const void* source = from == octavo::DType::float32 ? static_cast<const void*>(wide.data()) : narrow.data();
  const bool narrows = wide.size() > 0 && octavo::all_bfloat16(wide.data(), wide.size());
  Exact<char> packed(octavo::packed_bytes(s.outputs, s.inputs, as));
  octavo::pack_weight(source, from, s.outputs, s.inputs, packed.data(), as, how.threads);
  Exact<int64_t> ids(s.outputs);
  ids.fill([&](int64_t i) { return s.outputs - 1 - i; });
  Exact<float> out(int64_t(s.outputs) * s.inputs, 1);
  octavo::gather_rows({as, s.outputs, s.inputs, packed.data()}, ids.data(), s.outputs, out.data());
  Bytes all = bytes_of(packed);
  const Bytes rows = bytes_of(out);
  append(all, rows.data(), int64_t(rows.size()));
  all.push_back(char(narrows));
  return all;
}

}  // namespace

std::vector<Case> gemm_cases() {
  std::vector<Case> found;
  for (const Shape& s : kShapes) {
    for (octavo::DType dtype : {octavo::DType::float32, octavo::DType::bfloat16}) {
      const bool is_wide = dtype == octavo::DType::float32;
      const std::string name = "gemm " + std::to_string(s.rows) + " " + std::to_string(s.outputs) + " " +
                               std::to_string(s.inputs) + (is_wide ? " float32" : " bfloat16");
      found.push_back({name, [=](const How& how) { return multiply(s, dtype, is_wide, how); }});
      for (octavo::DType as : {octavo::DType::float32, octavo::DType::bfloat16}) {
        const std::string to = as == octavo::DType::float32 ? " as float32" : " as bfloat16";
        found.push_back({"gemm rows" + name.substr(4) + to, [=](const How& how) { return rows_of(s, dtype, as, how); }});
      }
    }
  }
  return found;
}

}  // namespace native
