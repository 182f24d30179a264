// Packed weights that own their memory, and can be filled piece by piece: a panel depends on its own outputs alone.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>
#include <new>

#include "bind.h"
#include "gemm.h"
#include "qgemm.h"

namespace octavo::bind {

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

struct Shape {
  int num_outputs;
  int num_inputs;
};

// A weight in the kernels' layout.
struct OwnedWeight {
  PackedWeight packed{};
  Owned<char> data{nullptr, std::free};

  OwnedWeight(Shape shape, DType dtype) : packed{dtype, shape.num_outputs, shape.num_inputs, nullptr} {
    data = allocate<char>(num_bytes());
    packed.data = data.get();
  }

  int64_t num_bytes() const { return packed_bytes(packed.num_outputs, packed.num_inputs, packed.dtype); }

  // Outputs `first` .. `first + rows` from rows of `from`. `first` is a whole number of panels.
  void fill(const void* source, DType from, int first, int rows, int num_threads) {
    char* to = data.get() + packed_bytes(first, packed.num_inputs, packed.dtype);
    pack_weight(source, from, rows, packed.num_inputs, to, packed.dtype, num_threads);
  }
};

inline void check_format(int bits, int group) {
  require(bits == 8 || bits == 4, "bits: expected 4 or 8");
  require(bits == 8 || group == 32 || group == 64 || group == 128, "group: expected 32, 64 or 128");
}

// A weight quantized to int8 or int4.
struct OwnedQuantWeight {
  QuantWeight quant{};
  int64_t num_bytes = 0;
  Owned<uint8_t> values{nullptr, std::free};
  Owned<float> channel_scales{nullptr, std::free};
  Owned<uint16_t> scales{nullptr, std::free};
  Owned<uint8_t> zeros{nullptr, std::free};

  // `scale_type`: of int4's scales.
  OwnedQuantWeight(Shape shape, int bits, int group, bool has_zeros, DType scale_type = DType::bfloat16) {
    const bool is_int8 = bits == 8;
    quant.type = is_int8 ? QuantType::int8 : QuantType::int4;
    quant.num_outputs = shape.num_outputs;
    quant.num_inputs = shape.num_inputs;
    quant.group = is_int8 ? kActivationGroup : group;
    quant.scale_type = scale_type;
    const bool is_wide = is_int8 || scale_type == DType::float32;
    const int64_t bytes = quant_value_bytes(quant.type, quant.num_outputs, quant.num_inputs);
    const int64_t count = num_scales(quant.num_outputs);
    values = allocate<uint8_t>(bytes);
    if (is_wide) channel_scales = allocate<float>(count);
    if (!is_wide) scales = allocate<uint16_t>(count);
    if (!is_int8 && has_zeros) zeros = allocate<uint8_t>(count);
    num_bytes = bytes + count * ((is_wide ? 4 : 2) + (!is_int8 && has_zeros ? 1 : 0));
    quant.values = values.get();
    quant.channel_scales = channel_scales.get();
    quant.scales = scales.get();
    quant.zeros = zeros.get();
  }

  int64_t num_scales(int num_outputs) const {
    return quant_num_scales(quant.type, num_outputs, quant.num_inputs, quant.group);
  }

  // As `OwnedWeight::fill`.
  void fill(const void* source, DType from, int first, int rows, int num_threads) {
    QuantWeight part = quant;
    part.num_outputs = rows;
    const int64_t before = num_scales(first);
    const QuantTarget to{values.get() + quant_value_bytes(quant.type, first, quant.num_inputs),
                         channel_scales ? channel_scales.get() + before : nullptr,
                         scales ? scales.get() + before : nullptr, zeros ? zeros.get() + before : nullptr};
    pack_quant(part, source, from, to, num_threads);
  }

  // All of an int4 weight, from levels of its own groups.
  void take(const QuantLevels& from, int num_threads) {
    pack_levels(quant, from, {values.get(), channel_scales.get(), scales.get(), zeros.get()}, num_threads);
  }
};

}  // namespace octavo::bind
