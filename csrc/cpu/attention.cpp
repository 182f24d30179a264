// Cuts a step into pieces and hands them to the pool; the dispatch table. Compiled for the baseline machine.
#include "attention.h"

#include <algorithm>
#include <climits>
#include <vector>

#include "pool.h"
#include "scratch.h"

namespace octavo {
namespace {

// Rows (token x head) per piece: packing a block of keys costs as much as three rows' products with it, and their
// queries, scores and sums must stay in the L2 beside the keys and values of a stretch. A multiple of the tile's six.
constexpr int kRowsPerPiece = 192;
// So that no thread waits long for the last piece. More would cut a slice into single heads, whose rows are short runs
// of memory: one row at a context of 1,024 took 657 us with 4, 502 with 2, 426 with 1; 16 rows at 256 2.0, 1.5, 1.7 ms.
constexpr int kPiecesPerThread = 2;

struct Call {
  const Attention* attention;
  const AttentionKernels* kernels;
  const AttentionPiece* pieces;
  const AttentionFold* folds;
  int64_t scratch_floats;
};

void run_piece(void* context, int item, int /*worker*/) {
  const Call& call = *static_cast<const Call*>(context);
  call.kernels->piece(*call.attention, call.pieces[item], thread_scratch(call.scratch_floats));
}

void run_fold(void* context, int item, int /*worker*/) {
  const Call& call = *static_cast<const Call*>(context);
  call.kernels->fold(*call.attention, call.folds[item], thread_scratch(call.scratch_floats));
}

int64_t scratch_floats(const Attention& a, int64_t rows) {
  const int64_t stride = row_stride(a.head_dim);
  // Per row: query, sums of the span and of all spans, scores, the scales of keys and values if it is a KV head of its
  // own, maxima and sums; then the packed keys and values of a stretch; alignment.
  return rows * (3 * stride + 3 * kStretch + 4) + 2 * kStretch * stride + 16 * 16;
}

// How a step is cut.
struct Cut {
  int tokens_per_piece;
  int heads_per_piece;  // KV heads, where a slice has few rows: more of them read longer runs of memory
  bool has_spans;       // slices of one token are cut by spans of their context
};

int queries_per_head(const Attention& a) { return a.num_heads / a.num_kv_heads; }

int count_of(const Attention& a, int slice) { return a.query_starts[slice + 1] - a.query_starts[slice]; }

// KV heads per piece of this slice.
int heads_of(const Attention& a, const Cut& cut, int slice) {
  const int rows = count_of(a, slice) * queries_per_head(a);
  return std::max(1, std::min(cut.heads_per_piece, kRowsPerPiece / rows));
}

// The first key that a token of the slice sees.
int first_seen(const Attention& a, int slice) {
  const int first = a.context_lens[slice] - count_of(a, slice);
  return a.window > 0 ? std::max(0, first - a.window + 1) : 0;
}

bool has_spans(const Attention& a, const Cut& cut, int slice) {
  return cut.has_spans && count_of(a, slice) == 1 && first_seen(a, slice) / kSpan < (a.context_lens[slice] - 1) / kSpan;
}

// How many times the largest piece the whole step is: with more threads than that, some would wait for it.
int64_t evenness(const Attention& a, const Cut& cut) {
  int64_t total = 0, largest = 1;
  for (int slice = 0; slice < a.num_slices; ++slice) {
    const int64_t count = count_of(a, slice), keys = a.context_lens[slice] - first_seen(a, slice);
    if (count == 0) continue;
    const int64_t tokens = std::min<int64_t>(count, cut.tokens_per_piece);
    const int64_t keys_of_piece = has_spans(a, cut, slice) ? std::min<int64_t>(keys, kSpan) : keys;
    total += a.num_kv_heads * keys * (count * queries_per_head(a) + 1);  // 1: reading them
    largest = std::max(largest, heads_of(a, cut, slice) * keys_of_piece * (tokens * queries_per_head(a) + 1));
  }
  return total / largest;
}

Cut choose_cut(const Attention& a, int num_threads) {
  Cut cut{std::max(1, kRowsPerPiece / queries_per_head(a)), a.num_kv_heads, false};
  const int64_t wanted = num_threads == 1 ? 1 : int64_t(kPiecesPerThread) * num_threads;
  while (evenness(a, cut) < wanted) {
    if (!cut.has_spans) {
      cut.has_spans = true;
    } else if (cut.heads_per_piece > 1) {
      cut.heads_per_piece = (cut.heads_per_piece + 1) / 2;
    } else if (cut.tokens_per_piece * queries_per_head(a) > kRowsPerPiece / 4 && cut.tokens_per_piece > 1) {
      cut.tokens_per_piece = (cut.tokens_per_piece + 1) / 2;
    } else {
      break;
    }
  }
  return cut;
}

struct Pieces {
  std::vector<AttentionPiece> pieces;
  std::vector<AttentionFold> folds;
  int64_t num_partial_floats = 0;
  int most_rows = 0;
};

// Last tokens first, because theirs are the longest pieces.
void cut_slice(const Attention& a, const Cut& cut, int slice, Pieces& work) {
  const int start = a.query_starts[slice], end = a.query_starts[slice + 1];
  const int tokens = cut.tokens_per_piece, heads = heads_of(a, cut, slice);
  for (int row = start + (end - start - 1) / tokens * tokens; row >= start; row -= tokens) {
    const int num_rows = std::min(tokens, end - row);
    for (int head = 0; head < a.num_kv_heads; head += heads) {
      const int num_heads = std::min(heads, a.num_kv_heads - head);
      work.pieces.push_back({slice, row, num_rows, head, num_heads, 0, INT_MAX, -1});
      work.most_rows = std::max(work.most_rows, num_rows * num_heads * queries_per_head(a));
    }
  }
}

void cut_spans(const Attention& a, const Cut& cut, int slice, Pieces& work) {
  const int row = a.query_starts[slice], heads = heads_of(a, cut, slice);
  const int first = first_seen(a, slice) / kSpan, last = (a.context_lens[slice] - 1) / kSpan;
  work.folds.push_back({row, work.num_partial_floats, last - first + 1});
  for (int span = first; span <= last; ++span) {
    for (int head = 0; head < a.num_kv_heads; head += heads) {
      const int num_heads = std::min(heads, a.num_kv_heads - head);
      const int64_t partial = work.num_partial_floats + head * queries_per_head(a) * partial_stride(a.head_dim);
      work.pieces.push_back({slice, row, 1, head, num_heads, span * kSpan, (span + 1) * kSpan, partial});
      work.most_rows = std::max(work.most_rows, num_heads * queries_per_head(a));
    }
    work.num_partial_floats += a.num_heads * partial_stride(a.head_dim);
  }
}

Pieces cut_step(const Attention& a, int num_threads) {
  const Cut cut = choose_cut(a, num_threads);
  Pieces work;
  for (const bool is_chunk : {true, false}) {
    for (int slice = 0; slice < a.num_slices; ++slice) {
      if (count_of(a, slice) == 0 || (count_of(a, slice) > 1) != is_chunk) continue;
      has_spans(a, cut, slice) ? cut_spans(a, cut, slice, work) : cut_slice(a, cut, slice, work);
    }
  }
  return work;
}

}  // namespace

const AttentionKernels* attention_kernels(Isa isa) {
  switch (isa) {
    case Isa::scalar: return &attention_kernels_scalar;
#ifdef OCTAVO_HAVE_AVX2
    case Isa::avx2: return &attention_kernels_avx2;
#endif
#ifdef OCTAVO_HAVE_AVX512
    case Isa::avx512: return &attention_kernels_avx512;
    case Isa::avx512_bf16: return &attention_kernels_avx512_bf16;
#endif
    default: return nullptr;
  }
}

void paged_attention(const Attention& attention, const AttentionKernels& kernels, int num_threads) {
  const Pieces work = cut_step(attention, num_threads);
  std::vector<float> partials(static_cast<size_t>(work.num_partial_floats));
  Attention a = attention;
  a.partials = partials.data();
  Call call{&a, &kernels, work.pieces.data(), work.folds.data(), scratch_floats(a, work.most_rows)};
  parallel_for(static_cast<int>(work.pieces.size()), num_threads, run_piece, &call);
  if (!work.folds.empty()) parallel_for(static_cast<int>(work.folds.size()), num_threads, run_fold, &call);
}

}  // namespace octavo
