// Cuts a step into pieces and hands them to the pool; the dispatch table. Compiled for the baseline machine.
#include "attention.h"

#include <algorithm>
#include <vector>

#include "pool.h"
#include "scratch.h"

namespace octavo {
namespace {

// Rows (token x head) per piece: their accumulators, 32 x 128 floats, share the L1 with one block of K and V.
constexpr int kRowsPerPiece = 32;

struct Step {
  const Attention* attention;
  AttentionKernel kernel;
  const AttentionPiece* pieces;
  int64_t scratch_floats;
};

void run_piece(void* context, int item, int /*worker*/) {
  const Step& step = *static_cast<const Step*>(context);
  step.kernel(*step.attention, step.pieces[item], thread_scratch(step.scratch_floats));
}

}  // namespace

int64_t attention_scratch_floats(const Attention& a, int max_rows) {
  const int64_t heads_per_group = a.num_heads / a.num_kv_heads;
  const int64_t rows = max_rows * heads_per_group;
  const int64_t block = static_cast<int64_t>(kBlockSize) * a.head_dim;
  // Accumulators and float queries, [rows, D] each; running maximum and sum, [rows] each; one block of K and of V.
  return 2 * rows * a.head_dim + 2 * rows + 2 * block + 4 * kBlockSize;
}

AttentionKernel attention_kernel(Isa isa) {
  switch (isa) {
    case Isa::scalar: return attention_scalar;
#ifdef OCTAVO_HAVE_AVX2
    case Isa::avx512:  // no unit of its own yet
    case Isa::avx2: return attention_avx2;
#endif
    default: return nullptr;
  }
}

void paged_attention(const Attention& a, AttentionKernel kernel, int num_threads) {
  const int heads_per_group = a.num_heads / a.num_kv_heads;
  const int rows_per_piece = std::max(1, kRowsPerPiece / heads_per_group);
  std::vector<AttentionPiece> pieces;
  for (int slice = 0; slice < a.num_slices; ++slice) {
    const int end = a.query_starts[slice + 1];
    for (int row = a.query_starts[slice]; row < end; row += rows_per_piece) {
      const int num_rows = std::min(rows_per_piece, end - row);
      for (int kv_head = 0; kv_head < a.num_kv_heads; ++kv_head) {
        pieces.push_back({slice, row, num_rows, kv_head});
      }
    }
  }
  Step step{&a, kernel, pieces.data(), attention_scratch_floats(a, rows_per_piece)};
  parallel_for(static_cast<int>(pieces.size()), num_threads, run_piece, &step);
}

}  // namespace octavo
