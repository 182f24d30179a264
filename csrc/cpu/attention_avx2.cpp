// AVX2 + FMA + F16C, eight floats at a time. Head sizes that are no multiple of eight go to the scalar unit.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "attention.h"
#include "unroll.h"

namespace octavo {
namespace {

#include "attention_body.h"
#include "attention_avx2_body.h"

void piece(const Attention& a, const AttentionPiece& piece, float* scratch) {
  if (a.head_dim % 8 != 0) return attention_kernels_scalar.piece(a, piece, scratch);
  run_attention_piece<Avx2>(a, piece, scratch);
}

void fold(const Attention& a, const AttentionFold& fold, float* scratch) {
  if (a.head_dim % 8 != 0) return attention_kernels_scalar.fold(a, fold, scratch);
  fold_attention_row<Avx2>(a, fold, scratch);
}

}  // namespace

const AttentionKernels attention_kernels_avx2 = {piece, fold};

}  // namespace octavo
