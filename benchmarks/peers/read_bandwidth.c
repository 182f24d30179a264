/* Sum of the 64-bit words of some memory: as little arithmetic as reading takes. Several streams at a time, because one
 * does not keep a core's prefetchers busy. */
#include <stddef.h>
#include <stdint.h>

#define STREAMS 8

typedef uint64_t lanes __attribute__((vector_size(32), aligned(32)));

uint64_t sum_words(const void *memory, size_t num_bytes) {
  const size_t each = num_bytes / STREAMS / sizeof(lanes);
  const lanes *at = memory;
  lanes sum[STREAMS] = {{0}};
  for (size_t i = 0; i + 2 <= each; i += 2) {
#pragma GCC unroll 8
    for (int s = 0; s < STREAMS; ++s) sum[s] += at[s * each + i] + at[s * each + i + 1];
  }
  uint64_t total = 0;
  for (int s = 0; s < STREAMS; ++s) {
    for (int j = 0; j < 4; ++j) total += sum[s][j];
  }
  return total;
}
