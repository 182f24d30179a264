// The walk over a piece's keys, shared by the translation units of vector instruction sets.
//
// Each unit defines, in its unnamed namespace, a struct `Ops` and includes this file into that namespace, so that no
// function compiled for one instruction set can be merged by the linker with that of another. K is the cache's dtype; an
// input is a float, or with kPair = 2 half of a word of two bfloat16; a panel is 16 columns, a line of them per input or
// pair of inputs, line after line; columns of sums may lie in an order of the unit's own:
//   load_row(dst, src, dtype, n), store_row(dst, src, factor, dtype, n)   n values from dtype to inputs, from sums to dtype
//   pack_keys<K>(panel, k, stride, n)              16 keys -> a panel over features
//   pack_values<K>(panels, v, stride, tokens, n)   tokens rows of n values -> panels over keys, kStretch keys long each
//   tile<R, B>(tile)       out[r][16 b ..] (+)= chain over i in lo .. hi of x[r][i] * panel[b][i]
//   kPanels                the most panels of a tile, a divisor of a stretch's blocks
//   scores<K, R, B>(out, q, q_stride, k, k_stride, n, ahead)   the same chains for 16 keys of B heads where they lie, R rows
//                                                       each; out rows kStretch apart
//   add<K, R>(acc, stride, p, v, v_stride, lo, hi, n, ahead)   acc[r] += chain over j of p[r][j] * v[j]
//   softmax(row, lo, hi, factors, a, maximum, sum)      scores[lo .. hi) -> inputs; the factor for what was there
//   scale(row, factor, n), fold(...), prefetch(p)
//   heads_together(rows)   how many KV heads' scores are computed at once, a power of two: few rows alone have too few
//                          chains to keep a machine busy, and sixteen keys of one head share few sets of the L1 as it is
// Where keys lo .. hi begin or end within a pair, the other's weight is zero and its value counts as zero, whatever it is.
//
// Online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867.

constexpr int kTileRows = 6;

struct Range {
  int lo, hi;  // keys of a stretch
  bool empty() const { return lo >= hi; }
};

// Up to six rows times some panels.
struct Tile {
  float* out;
  int64_t out_stride;
  const float* x;  // input 0
  int64_t x_stride;
  const float* panel;  // input 0
  int64_t panel_stride;
  int lo, hi;
  bool from_zero;
};

// What is read next, line by line: rows of some heads, `stride` bytes apart.
template <class Ops>
struct Ahead {
  const char* line;
  int64_t row_bytes;
  int64_t stride;
  int64_t done = 0;  // of the row

  inline void fetch() {
    Ops::prefetch(line + done);
    done += 64;
    if (done >= row_bytes) {
      line += stride;
      done = 0;
    }
  }
};

// Calls f(std::integral_constant<int, B>) for B = count, from 1 to kMost.
template <int kMost, class F>
inline void with_panels(int count, F f) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_panels<kMost - 1>(count, f);
  }
  f(std::integral_constant<int, kMost>());
}

// Calls f(std::integral_constant<int, B>) for B = count, a power of two up to kMost.
template <int kMost, class F>
inline void with_heads(int count, F f) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_heads<kMost / 2>(count, f);
  }
  f(std::integral_constant<int, kMost>());
}

inline int least(int a, int b) { return a < b ? a : b; }
inline int most(int a, int b) { return a > b ? a : b; }

inline const char* at(const void* base, int64_t index, DType dtype) {
  return static_cast<const char*>(base) + index * size_of(dtype);
}

// Calls f(std::integral_constant<int, R>) for R = rows.
template <class F>
inline void with_rows(int rows, F f) {
  switch (rows) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
    case 5: return f(std::integral_constant<int, 5>());
    default: return f(std::integral_constant<int, 6>());
  }
}

template <class Ops, DType K>
class Walk {
 public:
  Walk(const Attention& a, const AttentionPiece& piece, float* scratch)
      : a_(a), piece_(piece), D_(a.head_dim), stride_(row_stride(a.head_dim)), q_stride_(stride_ / kPair),
        heads_(a.num_heads / a.num_kv_heads) {
    rows_ = piece.num_rows * heads_;
    all_rows_ = rows_ * piece.num_kv_heads;
    const int count = a.query_starts[piece.slice + 1] - a.query_starts[piece.slice];
    first_ = a.context_lens[piece.slice] - count + (piece.first_row - a.query_starts[piece.slice]);
    table_ = a.block_tables + int64_t(piece.slice) * a.table_width;
    token_stride_ = int64_t(a.num_kv_heads) * D_ * size_of(K);
    const auto take = [&scratch](int64_t floats) {
      float* taken = scratch;
      scratch += (floats + 15) / 16 * 16;
      return taken;
    };
    q_ = take(all_rows_ * q_stride_);
    acc_ = take(all_rows_ * stride_);
    total_ = take(all_rows_ * stride_);
    p_ = take(int64_t(all_rows_) * kStretch);
    k_panels_ = take(Ops::kPanels * kBlockSize * q_stride_);
    v_panels_ = take(kStretch / kPair * stride_);
    k_scales_ = take(int64_t(piece.num_kv_heads) * kStretch);
    v_scales_ = take(int64_t(piece.num_kv_heads) * kStretch);
    maximum_ = take(all_rows_);
    sum_ = take(all_rows_);
    total_maximum_ = take(all_rows_);
    total_sum_ = take(all_rows_);
  }

  void run() {
    load_queries();
    const int reach = least(first_ + piece_.num_rows + a_.ahead, a_.context_lens[piece_.slice]);
    last_ = least(reach, piece_.end_key) - 1;
    const int oldest = a_.window > 0 ? most(0, first_ - a_.window + 1) : 0;
    seen_from_ = most(oldest, piece_.first_key);
    clear(total_sum_, total_maximum_);
    for (base_ = seen_from_ / kStretch * kStretch; base_ <= last_; base_ += kStretch) {
      if (base_ % kSpan == 0 || base_ <= seen_from_) begin_span();
      first_block_ = most(seen_from_ - base_, 0) / kBlockSize;
      tokens_ = least(last_ + 1 - base_, kStretch);
      num_blocks_ = (tokens_ + kBlockSize - 1) / kBlockSize;
      is_last_ = base_ + kStretch > last_;
      is_open_ = range(0).hi == kStretch && range(rows_ - 1).lo == 0;
      stretch();
      if (is_last_ || (base_ + kStretch) % kSpan == 0) end_span();
    }
    piece_.partial < 0 ? store() : store_partial();
  }

 private:
  // Row r of KV head g of the piece.
  int64_t row(int g, int r) const { return int64_t(g) * rows_ + r; }

  int64_t output(int g, int token) const {
    return (int64_t(piece_.first_row + token) * a_.num_heads + int64_t(piece_.kv_head + g) * heads_) * D_;
  }

  void load_queries() {
    for (int g = 0; g < piece_.num_kv_heads; ++g) {
      for (int r = 0; r < rows_; ++r) {
        const int64_t from = output(g, r / heads_) + int64_t(r % heads_) * D_;
        Ops::load_row(q_ + row(g, r) * q_stride_, at(a_.q, from, a_.dtype), a_.dtype, D_);
      }
    }
  }

  void clear(float* sum, float* maximum) const {
    for (int r = 0; r < all_rows_; ++r) {
      sum[r] = 0.0f;
      maximum[r] = -std::numeric_limits<float>::infinity();
    }
  }

  void begin_span() {
    clear(sum_, maximum_);
    std::memset(acc_, 0, sizeof(float) * static_cast<size_t>(all_rows_ * stride_));
  }

  // A row's first span is taken as it is, so that it has the bits that it has alone.
  void end_span() {
    for (int r = 0; r < all_rows_; ++r) {
      if (sum_[r] == 0.0f) continue;
      Ops::fold(total_ + r * stride_, &total_maximum_[r], &total_sum_[r], acc_ + r * stride_, maximum_[r], sum_[r],
                int(stride_));
    }
  }

  const char* block(const void* cache, int b, int g) const {
    const int64_t token = int64_t(table_[base_ / kBlockSize + b]) * kBlockSize;
    return at(cache, (token * a_.num_kv_heads + piece_.kv_head + g) * D_, K);
  }

  // The keys of this stretch that row r of a KV head sees.
  Range range(int r) const {
    const int position = first_ + r / heads_ - base_;
    const int lo = a_.window > 0 ? most(position - a_.window + 1, 0) : 0;
    return {lo, least(position + 1 + a_.ahead, tokens_)};
  }

  void stretch() {
    if (K == DType::int8) gather_scales();
    if (rows_ <= kRowsInPlace) {
      for (int b = first_block_; b < num_blocks_; ++b) scores_in_place(b);
      for (int g = 0; g < piece_.num_kv_heads; ++g) softmax(g);
      for (int b = first_block_; b < num_blocks_; ++b) values_in_place(b);
      return;
    }
    for (int g = 0; g < piece_.num_kv_heads; ++g) {
      for (int b = first_block_; b < num_blocks_; b += Ops::kPanels) packed_scores(g, b, least(b + Ops::kPanels, num_blocks_));
      softmax(g);
      packed_values(g);
    }
  }

  void gather_scales() {
    for (int j = first_block_ * kBlockSize; j < tokens_; ++j) {
      const int64_t token = int64_t(table_[(base_ + j) / kBlockSize]) * kBlockSize + j % kBlockSize;
      const int64_t from = token * a_.num_kv_heads + piece_.kv_head;
      for (int g = 0; g < piece_.num_kv_heads; ++g) {
        k_scales_[g * kStretch + j] = a_.k_scales[from + g];
        v_scales_[g * kStretch + j] = a_.v_scales[from + g];
      }
    }
  }

  // The scales of a block of the next stretch, beside which a block of this one is computed.
  void fetch_scales(int b) const {
    const int position = base_ + kStretch + b * kBlockSize;
    if (K != DType::int8 || position > last_) return;
    const int64_t from = int64_t(table_[position / kBlockSize]) * kBlockSize * a_.num_kv_heads;
    for (int i = 0; i < kBlockSize * a_.num_kv_heads; i += 64 / int(sizeof(float))) {
      Ops::prefetch(reinterpret_cast<const char*>(a_.k_scales + from + i));
      Ops::prefetch(reinterpret_cast<const char*>(a_.v_scales + from + i));
    }
  }

  // While heads of a block are computed, their share of what is read next comes into the cache, in the order in which it
  // lies in memory: a head's own rows are too short runs for the machine to foresee them.
  Ahead<Ops> next_share(const void* cache, int next_block, int g) const {
    const int heads = piece_.num_kv_heads, first = kBlockSize * g / heads;
    const int64_t token = int64_t(table_[next_block]) * kBlockSize + first;
    return {at(cache, (token * a_.num_kv_heads + piece_.kv_head) * D_, K), int64_t(heads) * D_ * size_of(K), token_stride_};
  }

  // A machine drops hints that it has no buffer for. So those of a block are given once more when it begins, in the order in
  // which it lies in memory.
  void fetch_dropped(const void* cache, int b) const {
    const int tokens = least(kBlockSize, tokens_ - b * kBlockSize), bytes = piece_.num_kv_heads * D_ * int(size_of(K));
    const char* from = block(cache, b, 0);
    for (int j = 0; j < tokens; ++j, from += token_stride_) {
      for (int i = 0; i < bytes; i += 64) Ops::prefetch(from + i);
    }
  }

  void scores_in_place(int b) {
    fetch_scales(b);
    fetch_dropped(a_.k_cache, b);
    const bool is_end = b + 1 == num_blocks_;
    const void* next_cache = is_end ? a_.v_cache : a_.k_cache;
    const int next = base_ / kBlockSize + (is_end ? first_block_ : b + 1);
    for (int g = 0, count = 0; g < piece_.num_kv_heads; g += count) {
      count = Ops::heads_together(rows_);
      while (g + count > piece_.num_kv_heads) count /= 2;
      Ahead<Ops> ahead = next_share(next_cache, next, g);
      float* out = p_ + row(g, 0) * kStretch + b * kBlockSize;
      const float* q = q_ + row(g, 0) * q_stride_;
      const char* k = block(a_.k_cache, b, g);
      with_rows(rows_, [&](auto R) {
        if constexpr (R <= kRowsInPlace) {
          with_heads<Ops::heads_together(R)>(
            count, [&](auto B) { Ops::template scores<K, R, B>(out, q, q_stride_, k, token_stride_, D_, ahead); });
        }
      });
    }
  }

  void values_in_place(int b) {
    fetch_dropped(a_.v_cache, b);
    const bool is_end = b + 1 == num_blocks_;
    const void* next_cache = is_end ? a_.k_cache : a_.v_cache;
    const int next = !is_end ? base_ / kBlockSize + b + 1 : is_last_ ? last_ / kBlockSize : (base_ + kStretch) / kBlockSize;
    for (int g = 0; g < piece_.num_kv_heads; ++g) {
      Ahead<Ops> ahead = next_share(next_cache, next, g);
      const char* v = block(a_.v_cache, b, g);
      const int from = b * kBlockSize;
      over_ranges(0, rows_, {from, from + kBlockSize}, [&](int r, auto R, Range keys) {
        if constexpr (R <= kRowsInPlace) {
          Ops::template add<K, R>(acc_ + row(g, r) * stride_, stride_, p_ + row(g, r) * kStretch + from / kPair, v, token_stride_,
                                  keys.lo - from, keys.hi - from, D_, ahead);
        }
      });
    }
  }

  // Tokens first .. end of what lies at `from`.
  void fetch(const char* from, int first, int end) const {
    for (int j = first; j < end; ++j) {
      for (int64_t i = 0; i < D_ * size_of(K); i += 64) Ops::prefetch(from + j * token_stride_ + i);
    }
  }

  // Blocks first .. end of the stretch, as many as a tile has panels.
  void packed_scores(int g, int first, int end) {
    for (int b = first; b < end; ++b) {
      Ops::template pack_keys<K>(k_panels_ + (b - first) * kBlockSize * q_stride_, block(a_.k_cache, b, g), token_stride_, D_);
    }
    for (int r = 0; r < rows_; r += kTileRows) {
      const int count = least(kTileRows, rows_ - r);
      for (int b = first; b < end; ++b) {
        fetch(block(a_.v_cache, b, g), kBlockSize * r / rows_, kBlockSize * (r + count) / rows_);
      }
      const int from = is_open_ ? first : most(first, range(r).lo / kBlockSize);
      const int to = is_open_ ? end : least(end, (range(r + count - 1).hi + kBlockSize - 1) / kBlockSize);
      if (from >= to) continue;
      const Tile tile{p_ + row(g, r) * kStretch + from * kBlockSize, kStretch, q_ + row(g, r) * q_stride_, q_stride_,
                      k_panels_ + (from - first) * kBlockSize * q_stride_, kBlockSize * q_stride_, 0, D_, true};
      with_rows(count, [&](auto R) {
        with_panels<Ops::kPanels>(to - from, [&](auto B) { Ops::template tile<R, B>(tile); });
      });
    }
  }

  void softmax(int g) {
    const float* k_scales = K == DType::int8 ? k_scales_ + g * kStretch : nullptr;
    const float* v_scales = K == DType::int8 ? v_scales_ + g * kStretch : nullptr;
    for (int r = 0; r < rows_; ++r) {
      const Range keys = range(r);
      if (keys.empty()) continue;
      const int64_t i = row(g, r);
      const float factor =
        Ops::softmax(p_ + i * kStretch, keys.lo, keys.hi, k_scales, v_scales, a_, &maximum_[i], &sum_[i]);
      if (factor != 1.0f) Ops::scale(acc_ + i * stride_, factor, int(stride_));
    }
  }

  // Keys first .. end of the stretch that is packed next.
  void fetch_next_keys(int g, int first, int end) const {
    const bool is_last_head = g + 1 == piece_.num_kv_heads;
    const int base = is_last_head ? base_ + kStretch : base_;
    for (int position = base + first; position < least(base + end, last_ + 1); ++position) {
      const int64_t token = int64_t(table_[position / kBlockSize]) * kBlockSize + position % kBlockSize;
      fetch(at(a_.k_cache, (token * a_.num_kv_heads + piece_.kv_head + (is_last_head ? 0 : g + 1)) * D_, K), 0, 1);
    }
  }

  void packed_values(int g) {
    for (int b = first_block_; b < num_blocks_; ++b) {
      const int tokens = least(kBlockSize, tokens_ - b * kBlockSize);
      Ops::template pack_values<K>(v_panels_ + b * kBlockSize / kPair * 16, block(a_.v_cache, b, g), token_stride_, tokens, D_);
    }
    const int64_t all = stride_ * rows_, panel_stride = kStretch / kPair * 16;
    for (int64_t column = 0, width = 0; column < stride_; column += width) {
      width = least(Ops::kPanels, int(stride_ - column) / 16) * 16;
      for (int first = 0; first < rows_; first += kTileRows) {
        const int count = least(kTileRows, rows_ - first);
        const int64_t done = column * rows_ + width * first;
        fetch_next_keys(g, int(kStretch * done / all), int(kStretch * (done + width * count) / all));
        over_ranges(first, count, {0, kStretch}, [&](int r, auto R, Range keys) {
          const Tile tile{acc_ + row(g, r) * stride_ + column, stride_, p_ + row(g, r) * kStretch, kStretch,
                          v_panels_ + column / 16 * panel_stride, panel_stride, keys.lo, keys.hi, false};
          with_panels<Ops::kPanels>(int(width) / 16, [&](auto B) { Ops::template tile<R, B>(tile); });
        });
      }
    }
  }

  // Calls f(first row, number of rows, keys) so that each of `count` rows meets its keys within `limits` in order, as many
  // rows together as see the same keys. No row is computed with a key that it does not see, not even with weight zero:
  // what lies there may be anything.
  template <class F>
  void over_ranges(int first, int count, Range limits, F f) const {
    if (is_open_) return with_rows(count, [&](auto R) { f(first, R, limits); });
    Range common = limits;
    for (int r = first; r < first + count; ++r) common = {most(common.lo, range(r).lo), least(common.hi, range(r).hi)};
    // Nor is a pair of keys halved, of which some of the rows see both.
    if (common.lo > most(limits.lo, range(first).lo)) common.lo = (common.lo + kPair - 1) / kPair * kPair;
    if (common.hi < least(limits.hi, range(first + count - 1).hi)) common.hi = common.hi / kPair * kPair;
    const auto alone = [&](int from, int to) {
      for (int r = first; r < first + count; ++r) {
        const Range keys{most(range(r).lo, from), least(range(r).hi, to)};
        if (!keys.empty()) f(r, std::integral_constant<int, 1>(), keys);
      }
    };
    if (common.empty()) return alone(limits.lo, limits.hi);
    alone(limits.lo, common.lo);
    with_rows(count, [&](auto R) { f(first, R, common); });
    alone(common.hi, limits.hi);
  }

  void store() {
    for (int g = 0; g < piece_.num_kv_heads; ++g) {
      for (int r = 0; r < rows_; ++r) {
        char* out = const_cast<char*>(at(a_.out, output(g, r / heads_) + int64_t(r % heads_) * D_, a_.dtype));
        Ops::store_row(out, total_ + row(g, r) * stride_, 1.0f / total_sum_[row(g, r)], a_.dtype, D_);
      }
    }
  }

  void store_partial() {
    float* to = a_.partials + piece_.partial;
    for (int r = 0; r < all_rows_; ++r, to += partial_stride(D_)) {
      std::memcpy(to, total_ + r * stride_, sizeof(float) * static_cast<size_t>(stride_));
      to[stride_] = total_maximum_[r];
      to[stride_ + 1] = total_sum_[r];
    }
  }

  static constexpr int kPair = Ops::kPair;

  const Attention& a_;
  const AttentionPiece& piece_;
  const int D_;
  const int64_t stride_;
  const int64_t q_stride_;
  const int heads_;  // query heads that share a KV head
  int rows_;         // per KV head
  int all_rows_;
  int first_;  // position of the piece's first token
  const int32_t* table_;
  int64_t token_stride_;  // bytes
  int seen_from_ = 0;
  int last_ = 0;
  int base_ = 0;  // position of the stretch's first key
  int first_block_ = 0;
  int num_blocks_ = 0;
  int tokens_ = 0;
  bool is_last_ = false;
  bool is_open_ = false;  // all rows see the whole stretch
  float *q_, *acc_, *total_, *p_, *k_panels_, *v_panels_, *k_scales_, *v_scales_;
  float *maximum_, *sum_, *total_maximum_, *total_sum_;
};

template <class Ops>
void run_attention_piece(const Attention& a, const AttentionPiece& piece, float* scratch) {
  switch (a.cache_dtype) {
    case DType::float32: return Walk<Ops, DType::float32>(a, piece, scratch).run();
    case DType::bfloat16: return Walk<Ops, DType::bfloat16>(a, piece, scratch).run();
    case DType::float16: return Walk<Ops, DType::float16>(a, piece, scratch).run();
    case DType::int8: return Walk<Ops, DType::int8>(a, piece, scratch).run();
  }
}

template <class Ops>
void fold_attention_row(const Attention& a, const AttentionFold& fold, float* scratch) {
  const int64_t stride = row_stride(a.head_dim), step = partial_stride(a.head_dim);
  for (int head = 0; head < a.num_heads; ++head) {
    float maximum = -std::numeric_limits<float>::infinity(), sum = 0.0f;
    for (int span = 0; span < fold.num_spans; ++span) {
      const float* from = a.partials + fold.partial + (int64_t(span) * a.num_heads + head) * step;
      if (from[stride + 1] == 0.0f) continue;
      Ops::fold(scratch, &maximum, &sum, from, from[stride], from[stride + 1], int(stride));
    }
    char* out = const_cast<char*>(at(a.out, (int64_t(fold.row) * a.num_heads + head) * a.head_dim, a.dtype));
    Ops::store_row(out, scratch, 1.0f / sum, a.dtype, a.head_dim);
  }
}
