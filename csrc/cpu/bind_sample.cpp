// The Python face of sampling.
#include <nanobind/stl/string.h>

#include "bind.h"
#include "sample.h"

namespace octavo::bind {
namespace {

static_assert(sizeof(SampleRow) == 40, "octavo.kernels.sampling.ROW has this layout");

void sample(uintptr_t logits, uintptr_t params, uintptr_t rows, uintptr_t positions, uintptr_t token_ids,
            int64_t num_rows, int vocab_size, uintptr_t masks, uintptr_t mask_of, int64_t num_masks, int num_threads,
            const std::string& isa) {
  require(vocab_size >= 1, "logits: expected at least one column");
  const Sample op{pointer<const float>(logits),      pointer<const SampleRow>(params), pointer<const int64_t>(rows),
                  pointer<const int64_t>(positions), pointer<int64_t>(token_ids),      num_rows, vocab_size,
                  pointer<const uint32_t>(masks),      pointer<const int64_t>(mask_of)};
  for (int64_t n = 0; masks != 0 && n < num_rows; ++n) {
    require(op.mask_of[n] >= -1 && op.mask_of[n] < num_masks, "masks: an entry is of a mask that is not there");
  }
  const SampleKernels& kernels = *find_kernel(isa, sample_kernels);
  nb::gil_scoped_release released;
  octavo::sample(op, kernels, num_threads);
}

}  // namespace

void add_sample(nb::module_& m) { m.def("sample", &sample, "A token per row of logits."); }

}  // namespace octavo::bind
