// One persistent pool of threads for all kernels, so that nothing fights over cores. No Python, no torch.
#pragma once

namespace octavo {

// Runs one item of work. `worker` is 0 for the calling thread and is below the number of threads asked for.
using Work = void (*)(void* context, int item, int worker);

// Runs items 0 .. num_items - 1 on at most `num_threads` threads, the caller among them, and returns when all are
// done. Threads take the next item as they become free, so results must not depend on who runs what. Work must not
// throw. Idle threads sleep on a condition variable, at once or after a watch. Calls from several threads take turns. After a fork() the child
// starts a pool of its own.
void parallel_for(int num_items, int num_threads, Work work, void* context);

// How long idle threads, and a caller whose helpers are not done, watch before they sleep; 0 at first. Between two
// kernels of a step lie some ten microseconds of Python; to wake a sleeping thread takes as long, and far longer on a
// virtual machine. But beside another pool that also watches, both only wait for each other.
void set_watch(int microseconds);

}  // namespace octavo
