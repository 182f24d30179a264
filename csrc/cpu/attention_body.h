// The walk over a piece's KV blocks, shared by the translation units of all instruction sets.
//
// Each unit defines, in its unnamed namespace, a struct `Ops` and includes this file into that namespace, so that no
// function compiled for one instruction set can be merged by the linker with that of another:
//   load_row(dst, src, dtype, n)            n values of dtype -> float
//   store_row(dst, src, factor, dtype, n)   n floats * factor -> dtype
//   scores<R>(out, q, k, k_stride, tokens, n)   out[r * 16 + j] = dot(q[r], k[j]) for R rows, j < tokens
//   softmax(scores, lo, hi, maximum, sum)   online softmax of scores[lo .. hi); returns the factor for what is there
//   accumulate<R>(acc, p, v, v_stride, lo, hi, factors, n)   acc[r] = acc[r] * factors[r] + sum_j p[r * 16 + j] * v[j]
//
// Online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.

struct View {
  const float* data;
  int64_t stride;  // floats from one token to the next
};

inline const char* at(const void* base, int64_t index, DType dtype) {
  return static_cast<const char*>(base) + index * (dtype == DType::float32 ? 4 : 2);
}

// The keys (or values) of one block and KV head as floats. Rows that are read once are read in place; others are
// gathered, because in the cache a head's rows lie a power of two apart and would share a few sets of the L1.
template <class Ops>
inline View load_block(float* gathered, const void* cache, int64_t from, DType dtype, int64_t stride, int tokens, int n,
                       bool read_once) {
  if (read_once && dtype == DType::float32) return {static_cast<const float*>(cache) + from, stride};
  for (int j = 0; j < tokens; ++j) {
    Ops::load_row(gathered + int64_t(j) * n, at(cache, from + j * stride, dtype), dtype, n);
  }
  return {gathered, n};
}

template <class Ops, int R>
inline void rows_step(const Attention& a, const float* q, View k, View v, int lo, int hi, float* acc, float* maximum,
                      float* sum) {
  alignas(64) float scores[R * kBlockSize];
  float factors[R];
  Ops::template scores<R>(scores, q, k.data, k.stride, hi, a.head_dim);
  for (int r = 0; r < R; ++r) {
    float* row = scores + r * kBlockSize;
    for (int j = lo; j < hi; ++j) row[j] *= a.scale;
    if (a.soft_cap > 0.0f) {
      for (int j = lo; j < hi; ++j) row[j] = a.soft_cap * tanhf(row[j] / a.soft_cap);
    }
    factors[r] = Ops::softmax(row, lo, hi, &maximum[r], &sum[r]);
  }
  Ops::template accumulate<R>(acc, scores, v.data, v.stride, lo, hi, factors, a.head_dim);
}

template <class Ops>
void run_attention_piece(const Attention& a, const AttentionPiece& piece, float* scratch) {
  const int D = a.head_dim;
  const int heads = a.num_heads / a.num_kv_heads;  // query heads that share this KV head
  const int rows = piece.num_rows * heads;
  float* acc = scratch;                       // [rows, D]
  float* q = acc + int64_t(rows) * D;         // [rows, D]
  float* k_block = q + int64_t(rows) * D;     // [16, D]
  float* v_block = k_block + kBlockSize * D;  // [16, D]
  float* maximum = v_block + kBlockSize * D;  // [rows]
  float* sum = maximum + rows;                // [rows]

  for (int t = 0; t < piece.num_rows; ++t) {
    const int64_t from = (int64_t(piece.first_row + t) * a.num_heads + int64_t(piece.kv_head) * heads) * D;
    Ops::load_row(q + int64_t(t) * heads * D, at(a.q, from, a.dtype), a.dtype, heads * D);
  }
  for (int64_t i = 0; i < int64_t(rows) * D; ++i) acc[i] = 0.0f;
  for (int r = 0; r < rows; ++r) {
    maximum[r] = -std::numeric_limits<float>::infinity();
    sum[r] = 0.0f;
  }

  const int count = a.query_starts[piece.slice + 1] - a.query_starts[piece.slice];
  const int slice_start = a.context_lens[piece.slice] - count;  // position of the slice's first token
  const int first = slice_start + (piece.first_row - a.query_starts[piece.slice]);
  const int last = first + piece.num_rows - 1;
  const int seen_from = a.window > 0 ? (first - a.window + 1 > 0 ? first - a.window + 1 : 0) : 0;
  const int32_t* table = a.block_tables + int64_t(piece.slice) * a.table_width;
  const bool read_once = rows <= 2;
  const int64_t token_stride = int64_t(a.num_kv_heads) * D;

  for (int block = seen_from / kBlockSize; block <= last / kBlockSize; ++block) {
    const int start = block * kBlockSize;
    const int tokens = last + 1 - start < kBlockSize ? last + 1 - start : kBlockSize;
    const int64_t from = int64_t(table[block]) * kBlockSize * token_stride + int64_t(piece.kv_head) * D;
    const View k = load_block<Ops>(k_block, a.k_cache, from, a.dtype, token_stride, tokens, D, read_once);
    const View v = load_block<Ops>(v_block, a.v_cache, from, a.dtype, token_stride, tokens, D, read_once);
    for (int t = 0; t < piece.num_rows; ++t) {
      const int position = first + t;
      const int hi = position + 1 - start < kBlockSize ? position + 1 - start : kBlockSize;
      const int oldest = a.window > 0 ? position - a.window + 1 - start : 0;
      const int lo = oldest > 0 ? oldest : 0;
      if (lo >= hi) continue;
      // Rows of one step are heads of one token: all see the same keys, so no row computes with another's mask.
      int head = 0;
      for (; head + 2 <= heads; head += 2) {
        const int r = t * heads + head;
        rows_step<Ops, 2>(a, q + int64_t(r) * D, k, v, lo, hi, acc + int64_t(r) * D, maximum + r, sum + r);
      }
      for (; head < heads; ++head) {
        const int r = t * heads + head;
        rows_step<Ops, 1>(a, q + int64_t(r) * D, k, v, lo, hi, acc + int64_t(r) * D, maximum + r, sum + r);
      }
    }
  }

  for (int t = 0; t < piece.num_rows; ++t) {
    const int64_t to = (int64_t(piece.first_row + t) * a.num_heads + int64_t(piece.kv_head) * heads) * D;
    for (int head = 0; head < heads; ++head) {
      const int r = t * heads + head;
      char* out = const_cast<char*>(at(a.out, to + int64_t(head) * D, a.dtype));
      Ops::store_row(out, acc + int64_t(r) * D, 1.0f / sum[r], a.dtype, D);
    }
  }
}
