// Cuts a product into tiles and hands them to the pool. Compiled for the baseline machine.
#include "gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "pool.h"
#include "scratch.h"

namespace octavo {
namespace {

constexpr int kBlockRows = 96;  // whose inputs, 96 x 1,024 floats, fill three quarters of a 512 KiB L2; panels stream past
constexpr int kBlockInputs = 1024;
constexpr int kFewRows = 48;  // up to here the first panels are waited for, and 512 inputs of them less long
constexpr int kFewInputs = 512;
constexpr int kLeastPanels = 4;  // of an item: as many as are read side by side
constexpr int kMostPanels = 16;  // that rows are kept in a cache for
constexpr int kItemsPerThread = 32;
constexpr int64_t kAhead = 8192;  // bytes of all panels together, by which a lone tile of rows fetches before it multiplies
constexpr int64_t kSkew = kPanel;  // words between rounded rows, so that rows of 4 KiB do not share lines of an L1
constexpr int64_t kRoundedPerItem = 1 << 14;   // inputs: rounding fewer is not worth another thread
constexpr int kPanelsOfRow = 4;  // read side by side for a product's only row: enough chains, enough runs of memory
constexpr int64_t kLeastRowBytes = 128 << 10;  // of an item of one row: shorter runs of memory are read slower

alignas(64) constexpr float kZeros[kPanel] = {};

struct Product {
  const PackedWeight* weight;
  const float* x;       // floats, or words of two bfloat16
  int64_t x_stride;     // from one row of x to the next
  bool is_paired;       // words
  int num_inputs;       // or words, of which `inputs_per_block` go through at once, and `inputs_per_line` lie in one line
  int inputs_per_block;
  int inputs_per_line;
  int num_blocks;
  int num_rows;
  int rows_per_item;
  const float* bias;
  float* out;
  const GemmKernels* kernels;
  int panels_per_item;
  int panel_items;
  int num_items;
  int num_threads;
  std::atomic<int> next_item{0};  // that no thread has taken
};

int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

// Rows of a tile that begins `done` rows into a block: as even as can be, so that no tile of a block is left with one row.
int tile_rows(int rows_in_block, int done) {
  const int left = rows_in_block - done;
  return ceil_div(left, ceil_div(left, kMaxTileRows));
}

void multiply(const Product& p, const GemmTile& tile) {
  p.is_paired ? p.kernels->multiply_pairs(tile) : p.kernels->multiply(tile);
}

// A tile whose last panel goes beyond the outputs computes into a buffer of whole panels.
void run_edge(const Product& p, GemmTile& tile, int valid) {
  float whole[kMaxTileRows * kPanel] = {};
  float* out = tile.out;
  const int64_t stride = tile.out_stride;
  const size_t bytes = sizeof(float) * size_t(valid);
  for (int r = 0; r < tile.num_rows; ++r) std::memcpy(whole + r * kPanel, tile.begin + r * tile.begin_row, bytes);
  tile.begin = tile.out = whole;
  tile.begin_row = tile.out_stride = kPanel;
  tile.num_panels = 1;
  multiply(p, tile);
  for (int r = 0; r < tile.num_rows; ++r) std::memcpy(out + r * stride, whole + r * kPanel, bytes);
}

// Panels first_panel .. last_panel for one tile's rows and one range of inputs, the first of all or one that goes on. The
// tile is not copied: what was just written to it would be read in other pieces, which waits for all stores before.
void run_panels(const Product& p, GemmTile& tile, int row, int first_panel, int last_panel, bool is_first) {
  const int whole = std::min(last_panel, p.weight->num_outputs / kPanel);
  tile.out = p.out + int64_t(row) * p.weight->num_outputs + int64_t(first_panel) * kPanel;
  tile.begin = !is_first ? tile.out : p.bias != nullptr ? p.bias + int64_t(first_panel) * kPanel : kZeros;
  tile.begin_row = is_first ? 0 : tile.out_stride;
  tile.begin_panel = is_first && p.bias == nullptr ? 0 : kPanel;
  tile.num_panels = whole - first_panel;
  if (tile.num_panels > 0) multiply(p, tile);
  if (whole < last_panel) {
    GemmTile edge = tile;
    edge.panel += tile.panel_stride * (whole - first_panel);
    edge.out += int64_t(whole - first_panel) * kPanel;
    edge.begin += tile.begin_panel * (whole - first_panel);
    run_edge(p, edge, p.weight->num_outputs - whole * kPanel);
  }
}

// What all rows of an item go past at a time: some panels and a range of inputs.
struct Part {
  int panel;
  int input;
};

// Parts begin where lines do.
const char* address_of(const Product& p, int64_t panel_stride, Part part) {
  const int64_t line = part.input / p.inputs_per_line;
  return static_cast<const char*>(p.weight->data) + part.panel * panel_stride + line * kLine;
}

// Memory is to be read while there is arithmetic: one tile of rows fetches some way before itself, and several share what
// is `next`, which else would be waited for by the first of them while the others find it in a cache.
void look_ahead(const Product& p, GemmTile& tile, int tiles, int nth, Part next) {
  const bool is_end = next.panel >= num_panels(p.weight->num_outputs);
  const int64_t lines = tile.num_inputs / p.inputs_per_line;
  tile.ahead_step = is_end ? 0 : kLine / tiles;
  if (tiles > 1) {
    tile.ahead = is_end ? tile.panel : address_of(p, tile.panel_stride, next) + nth * lines * tile.ahead_step;
  } else {
    tile.ahead = is_end ? tile.panel : tile.panel + kAhead / p.kernels->panels_together;
  }
}

// `next_item` is what the same thread does next, if there is one.
void run_item(const Product& p, int item, int next_item) {
  const PackedWeight& w = *p.weight;
  const int panels = num_panels(w.num_outputs);
  const int first_row = item / p.panel_items * p.rows_per_item;
  const int rows = std::min(p.rows_per_item, p.num_rows - first_row);
  const int first_panel = item % p.panel_items * p.panels_per_item;
  const int last_panel = std::min(first_panel + p.panels_per_item, panels);
  const Part after{next_item < p.num_items ? next_item % p.panel_items * p.panels_per_item : panels, 0};
  GemmTile tile{};
  tile.dtype = w.dtype;
  tile.row_stride = p.x_stride;
  tile.panel_stride = num_lines(w.num_inputs, w.dtype) * kLine;
  tile.out_stride = w.num_outputs;
  // One tile of rows: four panels at once, so that one row has enough chains. More: all tiles past panels in a cache.
  const int step = p.num_rows <= kMaxTileRows ? kLeastPanels : p.kernels->panels_together;
  const int tiles = ceil_div(rows, kMaxTileRows);
  const int parts = ceil_div(last_panel - first_panel, step) * p.num_blocks;
  const auto part_of = [&](int nth) {
    return Part{first_panel + nth / p.num_blocks * step, nth % p.num_blocks * p.inputs_per_block};
  };
  for (int n = 0; n < parts; ++n) {
    const Part part = part_of(n), next = n + 1 < parts ? part_of(n + 1) : after;
    tile.num_inputs = std::min(p.inputs_per_block, p.num_inputs - part.input);
    tile.panel = address_of(p, tile.panel_stride, part);
    for (int done = 0, nth = 0; done < rows; done += tile.num_rows, ++nth) {
      tile.num_rows = tile_rows(rows, done);
      tile.x = p.x + (first_row + done) * p.x_stride + part.input;
      look_ahead(p, tile, tiles, nth, next);
      run_panels(p, tile, first_row + done, part.panel, std::min(part.panel + step, last_panel), part.input == 0);
    }
  }
}

// A thread takes an item when it begins the one before, so that what it asks for early is what it will read. Its first is
// `item`, so that nobody takes two before others have one.
void run_items(void* context, int item, int /*worker*/) {
  Product& p = *static_cast<Product*>(context);
  for (int after; item < p.num_items; item = after) {
    after = p.next_item.fetch_add(1, std::memory_order_relaxed);
    run_item(p, item, after);
  }
}

// Cuts a product of two rows or more.
void cut(Product& p) {
  const int panels = num_panels(p.weight->num_outputs);
  if (p.num_rows <= kMaxTileRows) {
    // Panels are read once. Four items per thread, so that one that is held up for a while does not hold up the others.
    const int items = p.num_threads == 1 ? 1 : p.num_threads * 4;
    p.panels_per_item = std::max(kLeastPanels, ceil_div(ceil_div(panels, items), kLeastPanels) * kLeastPanels);
  } else {
    const int row_blocks = ceil_div(p.num_rows, kBlockRows);  // of whole tiles
    p.rows_per_item = ceil_div(ceil_div(p.num_rows, kMaxTileRows), row_blocks) * kMaxTileRows;
    const int share = ceil_div(int64_t(panels) * row_blocks, p.num_threads * kItemsPerThread);
    p.panels_per_item = std::min(kMostPanels, ceil_div(share, kLeastPanels) * kLeastPanels);
    const int blocks = std::max(1, ceil_div(p.num_inputs, p.num_rows <= kFewRows ? kFewInputs : kBlockInputs));
    const int lines = ceil_div(p.num_inputs, p.inputs_per_line);
    p.inputs_per_block = std::max(1, ceil_div(lines, blocks)) * p.inputs_per_line;
  }
  p.num_blocks = std::max(1, ceil_div(p.num_inputs, p.inputs_per_block));
  p.panel_items = ceil_div(panels, p.panels_per_item);
  p.num_items = ceil_div(p.num_rows, p.rows_per_item) * p.panel_items;
}

// One row. An item's panels are as many runs of memory as go together, each read from its begin to its end.
struct RowProduct {
  const Product* product;
  std::vector<int> bounds;  // item i has the panels bounds[i] .. bounds[i + 1]
};

// Items become shorter towards the end, so that threads end together and few runs are short.
std::vector<int> cut_row(int panels, int64_t panel_bytes, int num_threads) {
  std::vector<int> bounds{0};
  const int least = std::max(kPanelsOfRow, int(kLeastRowBytes / panel_bytes) / kPanelsOfRow * kPanelsOfRow);
  while (bounds.back() < panels) {
    const int left = panels - bounds.back();
    const int share = num_threads == 1 ? left : (left + 2 * num_threads - 1) / (2 * num_threads);
    const int whole = std::max(least, (share + kPanelsOfRow - 1) / kPanelsOfRow * kPanelsOfRow);
    bounds.push_back(std::min(panels, bounds.back() + whole));
  }
  return bounds;
}

// `count` panels from `panel` on, `step` apart.
void multiply_row(const Product& p, int panel, int step, int count) {
  const PackedWeight& w = *p.weight;
  const int64_t panel_bytes = num_lines(w.num_inputs, w.dtype) * kLine;
  alignas(64) float chains[kPanelsOfRow * kPanel] = {};
  const auto each = [&](auto copy) {
    for (int i = 0; i < count; ++i) {
      const int first = (panel + i * step) * kPanel;
      copy(chains + i * kPanel, first, sizeof(float) * size_t(std::min(kPanel, w.num_outputs - first)));
    }
  };
  if (p.bias != nullptr) each([&](float* chain, int first, size_t bytes) { std::memcpy(chain, p.bias + first, bytes); });
  GemmTile tile{};
  tile.dtype = w.dtype;
  tile.x = p.x;
  tile.row_stride = p.num_inputs;
  tile.panel = static_cast<const char*>(w.data) + panel * panel_bytes;
  tile.panel_stride = panel_bytes * step;
  tile.num_rows = 1;
  tile.ahead = tile.panel;  // four runs side by side are foreseen by the hardware
  tile.num_panels = count;
  tile.num_inputs = p.num_inputs;
  tile.begin = tile.out = chains;
  tile.begin_panel = kPanel;
  tile.out_stride = kPanelsOfRow * kPanel;
  multiply(p, tile);
  each([&](const float* chain, int first, size_t bytes) { std::memcpy(p.out + first, chain, bytes); });
}

void run_row_item(void* context, int item, int /*worker*/) {
  const RowProduct& row = *static_cast<const RowProduct*>(context);
  const int first = row.bounds[size_t(item)], last = row.bounds[size_t(item) + 1];
  const int step = (last - first) / kPanelsOfRow;
  for (int panel = first; panel < first + step; ++panel) multiply_row(*row.product, panel, step, kPanelsOfRow);
  for (int panel = first + step * kPanelsOfRow; panel < last; ++panel) multiply_row(*row.product, panel, 1, 1);
}

struct Rounding {
  const float* x;
  int num_inputs;
  float* words;  // two bfloat16 each, the first in the lower half; an odd last one has a zero beside it
  int64_t words_stride;
  int num_rows;
  int rows_per_item;
  const GemmKernels* kernels;
};

void round_item(void* context, int item, int /*worker*/) {
  const Rounding& p = *static_cast<const Rounding*>(context);
  const int first = item * p.rows_per_item, last = std::min(first + p.rows_per_item, p.num_rows);
  for (int row = first; row < last; ++row) {
    uint16_t* to = reinterpret_cast<uint16_t*>(p.words + row * p.words_stride);
    p.kernels->round_inputs(p.x + int64_t(row) * p.num_inputs, p.num_inputs, to);
    if (p.num_inputs % 2 != 0) to[p.num_inputs] = 0;
  }
}

// Rows as pairs, instead of those that came.
void round_rows(Product& p) {
  const int inputs = p.weight->num_inputs, rows_per_item = int(std::max<int64_t>(1, kRoundedPerItem / std::max(1, inputs)));
  p.x_stride = p.num_inputs + kSkew;
  Rounding rounding{p.x, inputs, thread_scratch(p.num_rows * p.x_stride), p.x_stride, p.num_rows, rows_per_item, p.kernels};
  parallel_for(ceil_div(p.num_rows, rows_per_item), p.num_threads, round_item, &rounding);
  p.x = rounding.words;
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

void gemm(const PackedWeight& weight, const float* x, int num_rows, const float* bias, float* out,
          const GemmKernels& kernels, int num_threads) {
  if (num_rows == 0 || weight.num_outputs == 0) return;
  Product p{};
  p.weight = &weight;
  p.x = x;
  p.is_paired = weight.dtype == DType::bfloat16 && kernels.multiply_pairs != nullptr;
  p.inputs_per_line = p.is_paired ? 1 : inputs_per_line(weight.dtype);
  p.x_stride = p.num_inputs = p.is_paired ? ceil_div(weight.num_inputs, 2) : weight.num_inputs;
  p.inputs_per_block = std::max(1, p.num_inputs);
  p.num_rows = p.rows_per_item = num_rows;
  p.bias = bias;
  p.out = out;
  p.kernels = &kernels;
  p.num_threads = num_threads;
  if (p.is_paired) round_rows(p);
  if (num_rows == 1) {
    const int64_t panel_bytes = std::max<int64_t>(1, num_lines(weight.num_inputs, weight.dtype)) * kLine;
    RowProduct row{&p, cut_row(num_panels(weight.num_outputs), panel_bytes, num_threads)};
    return parallel_for(static_cast<int>(row.bounds.size()) - 1, num_threads, run_row_item, &row);
  }
  cut(p);
  const int first_items = std::min(num_threads, p.num_items);
  p.next_item = first_items;
  parallel_for(first_items, num_threads, run_items, &p);
}

}  // namespace octavo
