#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(_WIN32)
#include <process.h>
#define OCTAVO_GETPID _getpid
#else
#include <unistd.h>
#define OCTAVO_GETPID getpid
#endif

namespace octavo {
namespace {

std::atomic<int> watch_us{0};

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Whether `done` came true while watching.
template <class Condition>
bool watch(Condition done) {
  if (done()) return true;
  const std::chrono::microseconds span{watch_us.load(std::memory_order_relaxed)};
  if (span.count() == 0) return false;
  const auto until = std::chrono::steady_clock::now() + span;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  return done();
}

class Pool {
 public:
  void run(int num_items, int num_threads, Work work, void* context) {
    std::lock_guard<std::mutex> turn(turn_);
    const int helpers = num_threads - 1;
    while (static_cast<int>(threads_.size()) < helpers) {
      const int index = static_cast<int>(threads_.size());
      threads_.emplace_back([this, index, seen = call_.load()] { serve(index, seen); });
    }
    // No helper reads these between its last item and the next call.
    work_ = work;
    context_ = context;
    num_items_ = num_items;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(helpers);
    call_.store(((call_.load() >> kHelperBits) + 1) << kHelperBits | static_cast<uint64_t>(helpers));
    if (sleeping_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    take_items(0);
    if (watch([this] { return busy_.load() == 0; })) return;
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_.load() == 0; });
  }

 private:
  static constexpr int kHelperBits = 16;

  void serve(int index, uint64_t seen) {
    for (;;) {
      if (!watch([&] { return call_.load() != seen; })) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return call_.load() != seen; });
        sleeping_.fetch_sub(1);
      }
      seen = call_.load();
      if (index >= static_cast<int>(seen & ((1u << kHelperBits) - 1))) continue;
      take_items(index + 1);
      if (busy_.fetch_sub(1) == 1) {
        { std::lock_guard<std::mutex> lock(mutex_); }
        done_.notify_one();
      }
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
  std::atomic<int> next_{0};
  std::atomic<int> busy_{0};        // helpers of this call still at work; the next call waits for all of them
  std::atomic<int> sleeping_{0};    // helpers on wake_
  std::atomic<uint64_t> call_{0};   // number of the call, and in the lowest bits how many helpers take part
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

void set_watch(int microseconds) { watch_us.store(microseconds, std::memory_order_relaxed); }

void parallel_for(int num_items, int num_threads, Work work, void* context) {
  const int threads = std::max(1, std::min(num_threads, num_items));
  if (threads == 1) {
    for (int item = 0; item < num_items; ++item) work(context, item, 0);
    return;
  }
  pool().run(num_items, threads, work, context);
}

}  // namespace octavo
