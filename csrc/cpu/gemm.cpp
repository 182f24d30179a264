// Packs weights, cuts a product into tiles and hands them to the pool. Compiled for the baseline machine.
#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "pool.h"
#include "scratch.h"

namespace octavo {
namespace {

// A block of x, 192 x 512 floats, fills three quarters of a 512 KiB L2; panels stream past it.
constexpr int kBlockRows = 192;
constexpr int kBlockInputs = 512;
constexpr int kFewRows = 24;       // up to here x is read in place and panels are read once
constexpr int kPanelsPerItem = 16;

struct Product {
  const PackedWeight* weight;
  const float* x;  // [N, D], or packed
  bool is_packed;
  int num_rows;
  const float* bias;
  float* out;
  const GemmKernels* kernels;
  int rows_per_item;
  int inputs_per_block;
  int panels_per_item;
  int panel_items;
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

// A tile whose last panel goes beyond the outputs computes into a buffer of whole panels.
void run_edge(const Product& p, GemmTile tile, int valid) {
  float whole[kMaxTileRows * kPanel] = {};
  float* out = tile.out;
  const int64_t stride = tile.out_stride;
  for (int r = 0; r < tile.num_rows; ++r) std::memcpy(whole + r * kPanel, out + r * stride, sizeof(float) * size_t(valid));
  tile.out = whole;
  tile.out_stride = kPanel;
  tile.num_panels = 1;
  p.kernels->multiply(tile);
  for (int r = 0; r < tile.num_rows; ++r) std::memcpy(out + r * stride, whole + r * kPanel, sizeof(float) * size_t(valid));
}

// Panels first_panel .. last_panel for one tile's rows and one range of inputs.
void run_panels(const Product& p, GemmTile tile, int row, int first_panel, int last_panel) {
  const int whole = std::min(last_panel, p.weight->num_outputs / kPanel);
  tile.out = p.out + int64_t(row) * p.weight->num_outputs + int64_t(first_panel) * kPanel;
  tile.num_panels = whole - first_panel;
  if (tile.num_panels > 0) p.kernels->multiply(tile);
  if (whole < last_panel) {
    tile.panel += tile.panel_stride * (whole - first_panel);
    tile.out += int64_t(whole - first_panel) * kPanel;
    run_edge(p, tile, p.weight->num_outputs - whole * kPanel);
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
  const int64_t size = element_size(w.dtype);
  GemmTile tile{};
  tile.dtype = w.dtype;
  tile.panel_stride = int64_t(w.num_inputs) * kPanel * size;
  tile.out_stride = w.num_outputs;
  // One tile of rows: four panels at once, so that one row has enough chains. More: all tiles past a panel in the L1.
  const int step = p.num_rows <= kMaxTileRows ? 4 : p.kernels->panels_together;
  for (int from = 0; from < w.num_inputs; from += p.inputs_per_block) {
    tile.num_inputs = std::min(p.inputs_per_block, w.num_inputs - from);
    for (int panel = first_panel; panel < last_panel; panel += step) {
      tile.panel = static_cast<const char*>(w.data) + panel * tile.panel_stride + int64_t(from) * kPanel * size;
      for (int done = 0; done < rows; done += tile.num_rows) {
        tile.num_rows = tile_rows(rows, done);
        const int row = first_row + done;
        tile.row_stride = p.is_packed ? 1 : w.num_inputs;
        tile.input_stride = p.is_packed ? tile.num_rows : 1;
        tile.x = p.x + int64_t(row) * w.num_inputs + from * tile.input_stride;
        run_panels(p, tile, row, panel, std::min(panel + step, last_panel));
      }
    }
  }
}

struct RowPacking {
  const float* x;
  float* packed;
  int num_rows;
  int num_inputs;
};

// One block of rows as tiles [D, rows of the tile], so that a tile's inputs are read in one stream.
void pack_rows(void* context, int item, int /*worker*/) {
  const RowPacking& p = *static_cast<const RowPacking*>(context);
  const int first_row = item * kBlockRows;
  const int rows = std::min(kBlockRows, p.num_rows - first_row);
  int count = 0;
  for (int done = 0; done < rows; done += count) {
    count = tile_rows(rows, done);
    const float* from = p.x + int64_t(first_row + done) * p.num_inputs;
    float* to = p.packed + int64_t(first_row + done) * p.num_inputs;
    for (int r = 0; r < count; ++r) {
      const float* row = from + int64_t(r) * p.num_inputs;
      for (int d = 0; d < p.num_inputs; ++d) to[int64_t(d) * count + r] = row[d];
    }
  }
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

// Inputs first .. last of a panel, for outputs that are all there.
template <DType kFrom, DType kAs>
void pack_inputs(const char* rows, int64_t row_bytes, int first, int last, char* to) {
  constexpr int kFromSize = kFrom == DType::float32 ? 4 : 2, kAsSize = kAs == DType::float32 ? 4 : 2;
  for (int i = 0; i < kPanel; ++i) {
    const char* row = rows + i * row_bytes;
    char* column = to + place_of(i, kAs) * kAsSize;
    for (int64_t d = first; d < last; ++d) convert(row + d * kFromSize, kFrom, column + d * kPanel * kAsSize, kAs);
  }
}

using PackInputs = void (*)(const char*, int64_t, int, int, char*);

PackInputs packing_of(DType from, DType as) {
  if (from == DType::float32) {
    return as == DType::float32 ? pack_inputs<DType::float32, DType::float32> : pack_inputs<DType::float32, DType::bfloat16>;
  }
  return as == DType::float32 ? pack_inputs<DType::bfloat16, DType::float32> : pack_inputs<DType::bfloat16, DType::bfloat16>;
}

// Outputs are written sixteen apart; 64 inputs at a time, what is written stays in the L1 until its lines are full.
constexpr int kPackInputs = 64;

void pack_panel(void* context, int panel, int /*worker*/) {
  const WeightPacking& p = *static_cast<const WeightPacking*>(context);
  const int64_t row_bytes = int64_t(p.num_inputs) * element_size(p.from);
  const int64_t panel_bytes = int64_t(p.num_inputs) * kPanel * element_size(p.as);
  const char* rows = p.source + int64_t(panel) * kPanel * row_bytes;
  char* to = p.to + panel * panel_bytes;
  const int valid = std::min(kPanel, p.num_outputs - panel * kPanel);
  if (valid == kPanel) {
    const PackInputs pack = packing_of(p.from, p.as);
    for (int first = 0; first < p.num_inputs; first += kPackInputs) {
      pack(rows, row_bytes, first, std::min(first + kPackInputs, p.num_inputs), to);
    }
    return;
  }
  std::fill_n(to, panel_bytes, char(0));
  for (int i = 0; i < valid; ++i) {
    char* column = to + place_of(i, p.as) * element_size(p.as);
    for (int64_t d = 0; d < p.num_inputs; ++d, column += kPanel * element_size(p.as)) {
      convert(rows + i * row_bytes + d * element_size(p.from), p.from, column, p.as);
    }
  }
}

}  // namespace

const GemmKernels* gemm_kernels(Isa isa) {
  switch (isa) {
    case Isa::scalar: {
      static const GemmKernels scalar{gemm_scalar, 1};
      return &scalar;
    }
#ifdef OCTAVO_HAVE_AVX2
    case Isa::avx2: {
      static const GemmKernels avx2{gemm_avx2, 1};
      return &avx2;
    }
#endif
#ifdef OCTAVO_HAVE_AVX512
    case Isa::avx512: {
      static const GemmKernels avx512{gemm_avx512, 2};
      return &avx512;
    }
#endif
    default: return nullptr;
  }
}

int64_t packed_bytes(int num_outputs, int num_inputs, DType dtype) {
  return int64_t(num_panels(num_outputs)) * kPanel * num_inputs * element_size(dtype);
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
  const int64_t D = weight.num_inputs;
  const int size = element_size(weight.dtype);
  for (int64_t n = 0; n < count; ++n) {
    const char* from = static_cast<const char*>(weight.data) + ids[n] / kPanel * D * kPanel * size;
    from += place_of(int(ids[n] % kPanel), weight.dtype) * size;
    for (int64_t d = 0; d < D; ++d, from += kPanel * size, ++out) {
      uint32_t word = 0;
      std::memcpy(reinterpret_cast<char*>(&word) + (4 - size), from, size_t(size));  // little endian: the upper half
      std::memcpy(out, &word, 4);
    }
  }
}

void gemm(const PackedWeight& weight, const float* x, int num_rows, const float* bias, float* out,
          const GemmKernels& kernels, int num_threads) {
  if (num_rows == 0 || weight.num_outputs == 0) return;
  const int panels = num_panels(weight.num_outputs);
  Product product{&weight, x, false, num_rows, bias, out, &kernels, num_rows, std::max(1, weight.num_inputs), 0, 0};
  if (num_rows > kFewRows) {
    product.is_packed = true;
    product.rows_per_item = kBlockRows;
    product.inputs_per_block = kBlockInputs;
    product.panels_per_item = kPanelsPerItem;
    float* packed = thread_scratch(int64_t(num_rows) * weight.num_inputs);
    RowPacking packing{x, packed, num_rows, weight.num_inputs};
    parallel_for((num_rows + kBlockRows - 1) / kBlockRows, num_threads, pack_rows, &packing);
    product.x = packed;
  } else {
    // Four items per thread, so that a thread that is held up for a while does not hold up the others.
    const int items = num_threads == 1 ? 1 : num_threads * 4;
    product.panels_per_item = std::max(4, ((panels + items - 1) / items + 3) / 4 * 4);
  }
  product.panel_items = (panels + product.panels_per_item - 1) / product.panels_per_item;
  const int row_blocks = (num_rows + product.rows_per_item - 1) / product.rows_per_item;
  parallel_for(row_blocks * product.panel_items, num_threads, run_item, &product);
}

}  // namespace octavo
