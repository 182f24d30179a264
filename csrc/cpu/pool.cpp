#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(_WIN32)
#include <process.h>
#define OCTAVO_GETPID _getpid
#else
#include <unistd.h>
#define OCTAVO_GETPID getpid
#endif

namespace octavo {
namespace {

class Pool {
 public:
  void run(int num_items, int num_threads, Work work, void* context) {
    std::lock_guard<std::mutex> turn(turn_);
    const int helpers = num_threads - 1;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(threads_.size()) < helpers) {
        const int index = static_cast<int>(threads_.size());
        threads_.emplace_back([this, index, seen = generation_] { serve(index, seen); });
      }
      work_ = work;
      context_ = context;
      num_items_ = num_items;
      next_.store(0, std::memory_order_relaxed);
      helpers_ = helpers;
      busy_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    take_items(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void serve(int index, unsigned long seen) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        if (index >= helpers_) continue;
      }
      take_items(index + 1);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  void take_items(int worker) {
    for (;;) {
      const int item = next_.fetch_add(1, std::memory_order_relaxed);
      if (item >= num_items_) return;
      work_(context_, item, worker);
    }
  }

  std::mutex turn_;  // held for a whole run
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> threads_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  int num_items_ = 0;
  int helpers_ = 0;  // threads that take part in this generation
  int busy_ = 0;     // of those, still at work
  unsigned long generation_ = 0;
  std::atomic<int> next_{0};
};

// Never destroyed: joining threads while the process exits can deadlock, and sleeping threads cost nothing.
Pool& pool() {
  static std::mutex mutex;
  static Pool* current = nullptr;
  static int owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  const int pid = static_cast<int>(OCTAVO_GETPID());
  if (current == nullptr || owner != pid) {
    current = new Pool();
    owner = pid;
  }
  return *current;
}

}  // namespace

void parallel_for(int num_items, int num_threads, Work work, void* context) {
  const int threads = std::max(1, std::min(num_threads, num_items));
  if (threads == 1) {
    for (int item = 0; item < num_items; ++item) work(context, item, 0);
    return;
  }
  pool().run(num_items, threads, work, context);
}

}  // namespace octavo
