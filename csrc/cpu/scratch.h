// Memory that a thread keeps from call to call.
#pragma once

#include <cstdint>

namespace octavo {

// At least `num_floats` floats, aligned to 64 bytes, contents undefined. Valid until the thread's next call.
float* thread_scratch(int64_t num_floats);

}  // namespace octavo
