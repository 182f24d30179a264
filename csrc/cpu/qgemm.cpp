// Cuts a quantized product into tiles and hands them to the pool. Compiled for the baseline machine.
#include "qgemm.h"

#include <algorithm>

#include "pool.h"
#include "scratch.h"

namespace octavo {
namespace {

constexpr int64_t kBlockBytes = 256 << 10;  // of quantized x per item: half of a 512 KiB L2; panels stream past it

// Scales and sums of one row of x.
int64_t num_factors(const QuantWeight& w) { return int64_t(num_activation_groups(w.num_inputs)) + num_groups(w); }

// Quantized rows of x in tiles, one block of memory per tile.
struct Quantized {
  const QuantWeight* weight;
  const float* x;
  int num_rows;
  const QuantKernels* kernels;
  int tile_rows;
  int bytes;             // of one value
  int64_t tile_floats;   // of a tile's block: values, scales, sums
  float* blocks;

  int num_tiles() const { return (num_rows + tile_rows - 1) / tile_rows; }

  bool has_only_row() const { return num_rows == 1 && kernels->multiply_row != nullptr; }

  QuantRows tile(int index) const {
    QuantRows rows;
    rows.num_rows = std::min(tile_rows, num_rows - index * tile_rows);
    rows.values = blocks + index * tile_floats;
    rows.scales = blocks + (index + 1) * tile_floats - num_factors(*weight) * tile_rows;
    rows.sums = reinterpret_cast<int32_t*>(rows.scales + num_activation_groups(weight->num_inputs) * tile_rows);
    return rows;
  }
};

Quantized plan_rows(const QuantWeight& weight, const float* x, int num_rows, const QuantKernels& kernels) {
  Quantized q{&weight, x, num_rows, &kernels, 0, 1, 0, nullptr};
  if (weight.type == QuantType::int8 && !q.has_only_row()) q.bytes = kernels.bytes_int8;
  // As even as can be, so that no tile is left with one row.
  const bool is_few = weight.type == QuantType::int8 && num_rows <= 2 * kernels.max_few_rows;
  const int most = is_few ? kernels.max_few_rows : kernels.max_rows;
  const int tiles = (num_rows + most - 1) / most;
  q.tile_rows = (num_rows + tiles - 1) / tiles;
  const int64_t values = int64_t(num_quads(weight.num_inputs)) * kQuad * q.tile_rows * q.bytes;
  q.tile_floats = 16 + ((values + 3) / 4 + num_factors(weight) * q.tile_rows + 15) / 16 * 16;
  return q;
}

void quantize_tile(void* context, int item, int /*worker*/) {
  const Quantized& q = *static_cast<const Quantized*>(context);
  const float* x = q.x + int64_t(item) * q.tile_rows * q.weight->num_inputs;
  q.kernels->quantize(x, *q.weight, q.bytes, q.tile(item));
}

struct Product {
  const Quantized* rows;
  const float* bias;
  float* out;
  int tiles_per_item;
  int panels_per_item;
  int panel_items;
  int panels_to_next;  // from an item to the one that the same thread is likely to take next
};

// One row: an item is as many runs of memory as panels go together, each read from its begin to its end.
void run_row(const Product& p, int first_panel, int last_panel) {
  const Quantized& q = *p.rows;
  const int step = (last_panel - first_panel) / kPanelsOfRow;
  for (int panel = first_panel; panel < first_panel + step; ++panel) {
    q.kernels->multiply_row({q.tile(0), q.weight, panel, step, p.bias, p.out, kPanelsOfRow, nullptr, 0});
  }
  for (int panel = first_panel + step * kPanelsOfRow; panel < last_panel; ++panel) {
    q.kernels->multiply_row({q.tile(0), q.weight, panel, 0, p.bias, p.out, 1, nullptr, 0});
  }
}

void run_item(void* context, int item, int /*worker*/) {
  const Product& p = *static_cast<const Product*>(context);
  const Quantized& q = *p.rows;
  const int first_tile = item / p.panel_items * p.tiles_per_item;
  const int last_tile = std::min(first_tile + p.tiles_per_item, q.num_tiles());
  const int first_panel = item % p.panel_items * p.panels_per_item;
  const int last_panel = std::min(first_panel + p.panels_per_item, num_panels(q.weight->num_outputs));
  if (q.has_only_row()) return run_row(p, first_panel, last_panel);
  const int64_t bytes = num_quads(q.weight->num_inputs) * quad_bytes(q.weight->type);
  const int64_t lines = bytes / 64;
  for (int panel = first_panel; panel < last_panel; panel += q.kernels->panels_together) {
    const int panels = std::min(q.kernels->panels_together, last_panel - panel);
    // What this thread is likely to multiply next: all tiles fetch a share of it, while there is arithmetic.
    const int next = panel + panels < last_panel ? panel + panels : first_panel + p.panels_to_next;
    const bool is_end = next >= num_panels(q.weight->num_outputs);
    for (int tile = first_tile; tile < last_tile; ++tile) {
      float* out = p.out + int64_t(tile) * q.tile_rows * q.weight->num_outputs;
      QuantTile t{q.tile(tile), q.weight, panel, 0, p.bias, out, panels, nullptr, 0};
      if (!is_end) {
        const int64_t first_line = lines * (tile - first_tile) / (last_tile - first_tile);
        t.ahead = q.weight->values + next * bytes + first_line * 64;
        t.ahead_bytes = (lines * (tile + 1 - first_tile) / (last_tile - first_tile) - first_line) * 64;
      }
      q.kernels->multiply(t);
    }
  }
}

}  // namespace

const QuantKernels* quant_kernels(Isa isa) {
  switch (isa) {
    case Isa::scalar: return &kQuantScalar;
#ifdef OCTAVO_HAVE_AVX2
    case Isa::avx2: return &kQuantAvx2;
#endif
#ifdef OCTAVO_HAVE_AVX512
    case Isa::avx512_bf16:
    case Isa::avx512: return features().avx512_vnni ? &kQuantAvx512 : &kQuantAvx2;
#endif
    default: return nullptr;
  }
}

void quant_gemm(const QuantWeight& weight, const float* x, int num_rows, const float* bias, float* out,
                const QuantKernels& kernels, int num_threads) {
  if (num_rows == 0 || weight.num_outputs == 0) return;
  Quantized rows = plan_rows(weight, x, num_rows, kernels);
  const int tiles = rows.num_tiles();
  rows.blocks = thread_scratch(rows.tile_floats * tiles);
  parallel_for(tiles, tiles < 4 ? 1 : num_threads, quantize_tile, &rows);

  const int panels = num_panels(weight.num_outputs);
  Product product{&rows, bias, out, 0, 0, 0, 0};
  product.tiles_per_item = int(std::min<int64_t>(tiles, std::max<int64_t>(1, kBlockBytes / (rows.tile_floats * 4))));
  // Four items per thread and block of rows, so that a thread that is held up for a while does not hold up the others; of
  // one row two, because longer runs of memory are read faster.
  const int items = num_threads == 1 ? 1 : num_threads * (rows.has_only_row() ? 2 : 4);
  product.panels_per_item = std::max(2, (panels + items - 1) / items);
  if (rows.has_only_row()) {
    product.panels_per_item = (product.panels_per_item + kPanelsOfRow - 1) / kPanelsOfRow * kPanelsOfRow;
  }
  product.panels_to_next = product.panels_per_item * num_threads;
  product.panel_items = (panels + product.panels_per_item - 1) / product.panels_per_item;
  const int blocks = (tiles + product.tiles_per_item - 1) / product.tiles_per_item;
  parallel_for(blocks * product.panel_items, num_threads, run_item, &product);
}

}  // namespace octavo
