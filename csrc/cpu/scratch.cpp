#include "scratch.h"

#include <cstdlib>
#include <memory>

namespace octavo {
namespace {

struct Freer {
  void operator()(float* p) const { std::free(p); }
};

}  // namespace

float* thread_scratch(int64_t num_floats) {
  thread_local std::unique_ptr<float, Freer> scratch;
  thread_local int64_t size = 0;
  if (size < num_floats) {
    const size_t bytes = (static_cast<size_t>(num_floats) * sizeof(float) + 63) / 64 * 64;
    scratch.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!scratch) std::abort();  // out of memory inside a worker: nothing to return to
    size = num_floats;
  }
  return scratch.get();
}

}  // namespace octavo
