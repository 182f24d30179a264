// Packs weights, cuts a product into tiles and hands them to the pool. Compiled for the baseline machine.
#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "pool.h"
#include "scratch.h"

namespace octavo {
namespace {

#include "convert_body.h"

// A block of x, 192 x 512 floats, fills three quarters of a 512 KiB L2, panels stream past it; or few rows, whose panels
// are gone past 512 inputs at a time.
constexpr int kBlockRows = 192;
constexpr int kBlockInputs = 512;
constexpr int kFewRows = 24;       // up to here, or up to the floats of a block, x is read in place, panels once
constexpr int kPanelsPerItem = 16;
constexpr int64_t kAhead = 8192;  // bytes between what one tile of rows multiplies and what it has fetched meanwhile

struct Product {
  const PackedWeight* weight;
  const float* x;  // [N, D], or packed; floats, or words of two bfloat16 and D is the number of pairs
  bool is_packed;
  bool is_paired;
  int num_inputs;  // D, of which `inputs_per_block` go through at once
  int num_rows;
  const float* bias;
  float* out;
  const GemmKernels* kernels;
  int rows_per_item;
  int inputs_per_block;
  int panels_per_item;
  int panel_items;
  int panels_to_next;  // from an item to the one that the same thread is likely to take next
};

// Rows of a tile that begins `done` rows into a block: as even as can be, so that no tile is left with one row.
int tile_rows(int rows_in_block, int done) {
  const int left = rows_in_block - done;
  const int tiles = (left + kMaxTileRows - 1) / kMaxTileRows;
  return (left + tiles - 1) / tiles;
}

void begin_rows(const Product& p, int row, int rows, int first_output, int outputs) {
  for (int r = 0; r < rows; ++r) {
    float* out = p.out + int64_t(row + r) * p.weight->num_outputs + first_output;
    if (p.bias == nullptr) {
      std::memset(out, 0, sizeof(float) * size_t(outputs));
    } else {
      std::memcpy(out, p.bias + first_output, sizeof(float) * size_t(outputs));
    }
  }
}

void multiply(const Product& p, const GemmTile& tile) {
  p.is_paired ? p.kernels->multiply_pairs(tile) : p.kernels->multiply(tile);
}

// A tile whose last panel goes beyond the outputs computes into a buffer of whole panels.
void run_edge(const Product& p, GemmTile tile, int valid) {
  float whole[kMaxTileRows * kPanel] = {};
  float* out = tile.out;
  const int64_t stride = tile.out_stride;
  for (int r = 0; r < tile.num_rows; ++r) std::memcpy(whole + r * kPanel, out + r * stride, sizeof(float) * size_t(valid));
  tile.out = whole;
  tile.out_stride = kPanel;
  tile.num_panels = 1;
  multiply(p, tile);
  for (int r = 0; r < tile.num_rows; ++r) std::memcpy(out + r * stride, whole + r * kPanel, sizeof(float) * size_t(valid));
}

// Panels first_panel .. last_panel for one tile's rows and one range of inputs.
void run_panels(const Product& p, GemmTile tile, int row, int first_panel, int last_panel) {
  const int whole = std::min(last_panel, p.weight->num_outputs / kPanel);
  tile.out = p.out + int64_t(row) * p.weight->num_outputs + int64_t(first_panel) * kPanel;
  tile.num_panels = whole - first_panel;
  if (tile.num_panels > 0) multiply(p, tile);
  if (whole < last_panel) {
    tile.panel += tile.panel_stride * (whole - first_panel);
    tile.out += int64_t(whole - first_panel) * kPanel;
    run_edge(p, tile, p.weight->num_outputs - whole * kPanel);
  }
}

// What all rows of an item go past at a time: some panels and a range of inputs.
struct Part {
  int panel;
  int input;
};

// Parts of an item in the order in which it goes through them. Packed rows stay in a cache for all panels, others in turn.
Part part_of(const Product& p, int first_panel, int groups, int step, int nth) {
  const int blocks = (p.num_inputs + p.inputs_per_block - 1) / p.inputs_per_block;
  const int group = p.is_packed ? nth % groups : nth / blocks, block = p.is_packed ? nth / groups : nth % blocks;
  return {first_panel + group * step, block * p.inputs_per_block};
}

const char* address_of(const Product& p, int64_t panel_stride, Part part) {
  const int per_line = p.is_paired ? 1 : inputs_per_line(p.weight->dtype);  // parts begin where lines do
  return static_cast<const char*>(p.weight->data) + part.panel * panel_stride + int64_t(part.input / per_line) * kLine;
}

// Memory is to be read while there is arithmetic: one tile of rows fetches some way before itself, and several share what
// is `next`, which else would be waited for by the first of them while the others find it in a cache.
void look_ahead(const Product& p, GemmTile& tile, int tiles, int nth, Part next) {
  const bool is_end = next.panel >= num_panels(p.weight->num_outputs);
  const int64_t lines = tile.num_inputs / (p.is_paired ? 1 : inputs_per_line(tile.dtype));
  tile.ahead_step = is_end ? 0 : kLine / tiles;
  if (tiles > 1) {
    tile.ahead = is_end ? tile.panel : address_of(p, tile.panel_stride, next) + nth * lines * tile.ahead_step;
  } else {
    tile.ahead = is_end ? tile.panel : tile.panel + kAhead;
  }
}

void run_item(void* context, int item, int /*worker*/) {
  const Product& p = *static_cast<const Product*>(context);
  const PackedWeight& w = *p.weight;
  const int row_block = item / p.panel_items;
  const int first_panel = item % p.panel_items * p.panels_per_item;
  const int last_panel = std::min(first_panel + p.panels_per_item, num_panels(w.num_outputs));
  const int first_row = row_block * p.rows_per_item;
  const int rows = std::min(p.rows_per_item, p.num_rows - first_row);
  const int first_output = first_panel * kPanel;
  begin_rows(p, first_row, rows, first_output, std::min(last_panel * kPanel, w.num_outputs) - first_output);
  GemmTile tile{};
  tile.dtype = w.dtype;
  tile.panel_stride = num_lines(w.num_inputs, w.dtype) * kLine;
  tile.out_stride = w.num_outputs;
  // One tile of rows: four panels at once, so that one row has enough chains. More: all tiles past panels in a cache.
  const int step = p.num_rows <= kMaxTileRows ? 4 : p.kernels->panels_together;
  const int groups = (last_panel - first_panel + step - 1) / step;
  const int parts = groups * ((p.num_inputs + p.inputs_per_block - 1) / p.inputs_per_block);
  const int tiles = (rows + kMaxTileRows - 1) / kMaxTileRows;
  for (int n = 0; n < parts; ++n) {
    const Part part = part_of(p, first_panel, groups, step, n);
    const bool is_last = n + 1 == parts;
    const Part next = is_last ? Part{first_panel + p.panels_to_next, 0} : part_of(p, first_panel, groups, step, n + 1);
    tile.num_inputs = std::min(p.inputs_per_block, p.num_inputs - part.input);
    tile.panel = address_of(p, tile.panel_stride, part);
    for (int done = 0, nth = 0; done < rows; done += tile.num_rows, ++nth) {
      tile.num_rows = tile_rows(rows, done);
      look_ahead(p, tile, tiles, nth, next);
      const int row = first_row + done;
      tile.row_stride = p.is_packed ? 1 : p.num_inputs;
      tile.input_stride = p.is_packed ? tile.num_rows : 1;
      tile.x = p.x + int64_t(row) * p.num_inputs + part.input * tile.input_stride;
      run_panels(p, tile, row, part.panel, std::min(part.panel + step, last_panel));
    }
  }
}

struct RowPacking {
  const float* x;
  float* packed;
  int num_rows;
  int num_inputs;
  const GemmKernels* rounding;  // to pairs of bfloat16; null: as they are
  int parts;                    // of each block of rows: kPackedWords of its words, or the rest
};

constexpr int kPackedWords = 256;

// Inputs as bfloat16, two in a word, the first in its lower half; an odd last one has a zero beside it.
void round_row(const GemmKernels& kernels, const float* x, int count, float* words) {
  uint16_t* to = reinterpret_cast<uint16_t*>(words);
  kernels.round_inputs(x, count, to);
  if (count % 2 != 0) to[count] = 0;
}

// Rows [R, n] at `from`, one `stride` after the other, as [n, R].
template <int R>
void interleave(const float* from, int64_t stride, int n, float* to) {
  for (int w = 0; w < n; ++w) {
    for (int r = 0; r < R; ++r) to[int64_t(w) * R + r] = from[r * stride + w];
  }
}

void interleave(const float* from, int64_t stride, int rows, int n, float* to) {
  switch (rows) {
    case 1: return interleave<1>(from, stride, n, to);
    case 2: return interleave<2>(from, stride, n, to);
    case 3: return interleave<3>(from, stride, n, to);
    case 4: return interleave<4>(from, stride, n, to);
    case 5: return interleave<5>(from, stride, n, to);
    default: return interleave<6>(from, stride, n, to);
  }
}

// A part of one block of rows, as tiles [D, rows of the tile], so that a tile's inputs are read in one stream.
void pack_rows(void* context, int item, int /*worker*/) {
  const RowPacking& p = *static_cast<const RowPacking*>(context);
  const int first_row = item / p.parts * kBlockRows;
  const int rows = std::min(kBlockRows, p.num_rows - first_row);
  const int per_word = p.rounding == nullptr ? 1 : 2, words = (p.num_inputs + per_word - 1) / per_word;
  const int first = item % p.parts * kPackedWords, last = std::min(first + kPackedWords, words);
  float rounded[kMaxTileRows * kPackedWords];
  int count = 0;
  for (int done = 0; done < rows; done += count) {
    count = tile_rows(rows, done);
    const float* from = p.x + int64_t(first_row + done) * p.num_inputs + int64_t(first) * per_word;
    float* to = p.packed + int64_t(first_row + done) * words + int64_t(first) * count;
    if (p.rounding == nullptr) {
      interleave(from, p.num_inputs, count, last - first, to);
      continue;
    }
    const int inputs = std::min(last * 2, p.num_inputs) - first * 2;
    for (int r = 0; r < count; ++r) {
      round_row(*p.rounding, from + int64_t(r) * p.num_inputs, inputs, rounded + r * kPackedWords);
    }
    interleave(rounded, kPackedWords, count, last - first, to);
  }
}

// Few rows as they lie, [N, pairs].
void round_rows(void* context, int row, int /*worker*/) {
  const RowPacking& p = *static_cast<const RowPacking*>(context);
  float* to = p.packed + int64_t(row) * ((p.num_inputs + 1) / 2);
  round_row(*p.rounding, p.x + int64_t(row) * p.num_inputs, p.num_inputs, to);
}

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

const GemmKernels* gemm_kernels(Isa isa) {
  switch (isa) {
    case Isa::scalar: {
      static const GemmKernels scalar{gemm_scalar, 1, nullptr, nullptr};
      return &scalar;
    }
#ifdef OCTAVO_HAVE_AVX2
    case Isa::avx2: {
      static const GemmKernels avx2{gemm_avx2, 1, nullptr, nullptr};
      return &avx2;
    }
#endif
#ifdef OCTAVO_HAVE_AVX512
    case Isa::avx512: {
      static const GemmKernels avx512{gemm_avx512, 4, nullptr, nullptr};
      return &avx512;
    }
    case Isa::avx512_bf16: {
      static const GemmKernels avx512_bf16{gemm_avx512, 4, gemm_avx512_bf16, round_avx512_bf16};
      return &avx512_bf16;
    }
#endif
    default: return nullptr;
  }
}

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

void gemm(const PackedWeight& weight, const float* x, int num_rows, const float* bias, float* out,
          const GemmKernels& kernels, int num_threads) {
  if (num_rows == 0 || weight.num_outputs == 0) return;
  const int panels = num_panels(weight.num_outputs);
  const bool is_paired = weight.dtype == DType::bfloat16 && kernels.multiply_pairs != nullptr;
  const int words = is_paired ? (weight.num_inputs + 1) / 2 : weight.num_inputs;
  Product product{&weight, x, false, is_paired, words, num_rows, bias, out, &kernels, num_rows, std::max(1, words), 0, 0, 0};
  RowPacking packing{x, nullptr, num_rows, weight.num_inputs, is_paired ? &kernels : nullptr, 1};
  if (num_rows > kFewRows && int64_t(num_rows) * words > kBlockRows * kBlockInputs) {
    product.is_packed = true;
    product.rows_per_item = kBlockRows;
    product.inputs_per_block = kBlockInputs;
    product.panels_per_item = kPanelsPerItem;
    packing.parts = (words + kPackedWords - 1) / kPackedWords;
    product.x = packing.packed = thread_scratch(int64_t(num_rows) * words);
    parallel_for((num_rows + kBlockRows - 1) / kBlockRows * packing.parts, num_threads, pack_rows, &packing);
  } else {
    // Four items per thread, so that a thread that is held up for a while does not hold up the others.
    const int items = num_threads == 1 ? 1 : num_threads * 4;
    product.panels_per_item = std::max(4, ((panels + items - 1) / items + 3) / 4 * 4);
    if (num_rows > kMaxTileRows) {
      product.inputs_per_block = kBlockInputs;
      product.panels_per_item = 4;  // so that hardly any panel is waited for by all its tiles
    }
    if (is_paired) {
      product.x = packing.packed = thread_scratch(int64_t(num_rows) * words);
      const bool is_little = int64_t(num_rows) * words < kBlockInputs * kFewRows;
      parallel_for(num_rows, is_little ? 1 : num_threads, round_rows, &packing);
    }
  }
  product.panels_to_next = product.panels_per_item * num_threads;
  product.panel_items = (panels + product.panels_per_item - 1) / product.panels_per_item;
  const int row_blocks = (num_rows + product.rows_per_item - 1) / product.rows_per_item;
  parallel_for(row_blocks * product.panel_items, num_threads, run_item, &product);
}

}  // namespace octavo
