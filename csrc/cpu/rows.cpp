// Hands rows to the pool; the dispatch table. Compiled for the baseline machine.
#include "rows.h"

#include <algorithm>

#include "pool.h"

namespace octavo {
namespace {

// Floats that a thread should have to read before it is worth waking another: about ten microseconds of work.
constexpr int64_t kFloatsPerItem = 32768;

template <class Op>
struct Job {
  const Op* op;
  void (*kernel)(const Op&, int64_t, int64_t);
  int64_t num_rows;
  int64_t rows_per_item;
};

template <class Op>
void run_item(void* context, int item, int /*worker*/) {
  const Job<Op>& job = *static_cast<const Job<Op>*>(context);
  const int64_t first = item * job.rows_per_item;
  job.kernel(*job.op, first, std::min(first + job.rows_per_item, job.num_rows));
}

template <class Op>
void run(const Op& op, void (*kernel)(const Op&, int64_t, int64_t), int64_t rows, int64_t floats_per_row, int threads) {
  if (rows == 0) return;
  const int64_t rows_per_item = std::max<int64_t>(1, kFloatsPerItem / std::max<int64_t>(1, floats_per_row));
  Job<Op> job{&op, kernel, rows, rows_per_item};
  parallel_for(static_cast<int>((rows + rows_per_item - 1) / rows_per_item), threads, run_item<Op>, &job);
}

}  // namespace

const RowKernels* row_kernels(Isa isa) {
  switch (isa) {
    case Isa::scalar: return &row_kernels_scalar;
#ifdef OCTAVO_HAVE_AVX2
    case Isa::avx2: return &row_kernels_avx2;
#endif
#ifdef OCTAVO_HAVE_AVX512
    case Isa::avx512:
    case Isa::avx512_bf16: return &row_kernels_avx512;
#endif
    default: return nullptr;
  }
}

void rms_norm(const RmsNorm& op, const RowKernels& kernels, int num_threads) {
  run(op, kernels.rms_norm, op.num_rows, op.num_features, num_threads);
}

void silu_and_mul(const SiluAndMul& op, const RowKernels& kernels, int num_threads) {
  run(op, kernels.silu_and_mul, op.num_rows, 2 * int64_t(op.num_features), num_threads);
}

void attention_inputs(const AttentionInputs& op, const RowKernels& kernels, int num_threads) {
  const int64_t floats = int64_t(op.num_heads + 2 * op.num_kv_heads) * op.head_dim;
  run(op, kernels.attention_inputs, op.num_tokens, floats, num_threads);
}

void layer_norm(const LayerNorm& op, const RowKernels& kernels, int num_threads) {
  run(op, kernels.layer_norm, op.num_rows, op.num_features, num_threads);
}

void activate(const Activate& op, const RowKernels& kernels, int num_threads) {
  // A curve costs about as much as reading eight numbers.
  run(op, kernels.activate, op.num_rows, 8 * int64_t(op.num_features), num_threads);
}

}  // namespace octavo
