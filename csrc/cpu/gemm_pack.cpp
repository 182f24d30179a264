// Packs weights into panels, and reads rows of packed ones. Compiled for the baseline machine.
#include <algorithm>
#include <cstring>

#include "gemm.h"
#include "pool.h"

namespace octavo {
namespace {

struct WeightPacking {
  const char* source;
  DType from;
  int num_outputs;
  int num_inputs;
  char* to;
  DType as;
};

// One element of a weight in another dtype; float32 -> bfloat16 must lose nothing. Little endian.
inline void convert(const char* from, DType source, char* to, DType as) {
  if (source == as) {
    std::memcpy(to, from, size_t(element_size(as)));
  } else if (as == DType::bfloat16) {
    std::memcpy(to, from + 2, 2);
  } else {
    const uint16_t low = 0;
    std::memcpy(to, &low, 2);
    std::memcpy(to + 2, from, 2);
  }
}

// Whole lines of a panel, for inputs first .. last and outputs that are all there.
template <DType kFrom, DType kAs>
void pack_lines(const char* rows, int64_t row_bytes, int first, int last, char* to) {
  constexpr int kSize = kFrom == DType::float32 ? 4 : 2, kWidth = kAs == DType::float32 ? 4 : 2, kInputs = 4 / kWidth;
  for (int i = 0; i < kPanel; ++i) {
    const char* row = rows + i * row_bytes;
    char* word = to + place_of(first, i, kAs);
    for (int64_t d = first; d + kInputs <= last; d += kInputs, word += kLine) {
      if (kFrom == DType::bfloat16 && kAs == DType::bfloat16) {
        std::memcpy(word, row + d * kSize, 4);
      } else {
        for (int k = 0; k < kInputs; ++k) convert(row + (d + k) * kSize, kFrom, word + k * kWidth, kAs);
      }
    }
  }
}

using PackLines = void (*)(const char*, int64_t, int, int, char*);

PackLines packing_of(DType from, DType as) {
  if (from == DType::float32) {
    return as == DType::float32 ? pack_lines<DType::float32, DType::float32> : pack_lines<DType::float32, DType::bfloat16>;
  }
  return as == DType::float32 ? pack_lines<DType::bfloat16, DType::float32> : pack_lines<DType::bfloat16, DType::bfloat16>;
}

// Outputs are written sixteen apart; 64 inputs at a time, what is written stays in the L1 until its lines are full.
constexpr int kPackInputs = 64;

void pack_panel(void* context, int panel, int /*worker*/) {
  const WeightPacking& p = *static_cast<const WeightPacking*>(context);
  const int64_t row_bytes = int64_t(p.num_inputs) * element_size(p.from);
  const int64_t panel_bytes = num_lines(p.num_inputs, p.as) * kLine;
  const char* rows = p.source + int64_t(panel) * kPanel * row_bytes;
  char* to = p.to + panel * panel_bytes;
  const int valid = std::min(kPanel, p.num_outputs - panel * kPanel);
  const bool is_whole = valid == kPanel;
  const int in_lines = is_whole ? p.num_inputs / inputs_per_line(p.as) * inputs_per_line(p.as) : 0;
  const PackLines pack = packing_of(p.from, p.as);
  for (int first = 0; first < in_lines; first += kPackInputs) {
    pack(rows, row_bytes, first, std::min(first + kPackInputs, in_lines), to);
  }
  // What fills no line: outputs that are not there, and an input without its neighbour.
  const int64_t packed = int64_t(in_lines / inputs_per_line(p.as)) * kLine;
  std::fill_n(to + packed, panel_bytes - packed, char(0));
  for (int i = 0; i < valid; ++i) {
    for (int64_t d = in_lines; d < p.num_inputs; ++d) {
      convert(rows + i * row_bytes + d * element_size(p.from), p.from, to + place_of(d, i, p.as), p.as);
    }
  }
}

}  // namespace

int64_t packed_bytes(int num_outputs, int num_inputs, DType dtype) {
  return num_panels(num_outputs) * num_lines(num_inputs, dtype) * kLine;
}

bool all_bfloat16(const float* values, int64_t count) {
  uint32_t low = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t word;
    std::memcpy(&word, values + i, 4);
    low |= word & 0xffffu;
    if ((i & 0xfff) == 0 && low != 0) return false;
  }
  return low == 0;
}

void pack_weight(const void* source, DType from, int num_outputs, int num_inputs, void* to, DType as, int num_threads) {
  WeightPacking packing{static_cast<const char*>(source), from, num_outputs, num_inputs, static_cast<char*>(to), as};
  parallel_for(num_panels(num_outputs), num_threads, pack_panel, &packing);
}

void gather_rows(const PackedWeight& weight, const int64_t* ids, int64_t count, float* out) {
  const int64_t D = weight.num_inputs, panel_bytes = num_lines(weight.num_inputs, weight.dtype) * kLine;
  const int size = element_size(weight.dtype);
  for (int64_t n = 0; n < count; ++n) {
    const char* panel = static_cast<const char*>(weight.data) + ids[n] / kPanel * panel_bytes;
    const int output = int(ids[n] % kPanel);
    for (int64_t d = 0; d < D; ++d, ++out) {
      uint32_t word = 0;  // little endian: a bfloat16 is the upper half
      std::memcpy(reinterpret_cast<char*>(&word) + (4 - size), panel + place_of(d, output, weight.dtype), size_t(size));
      std::memcpy(out, &word, 4);
    }
  }
}

}  // namespace octavo
