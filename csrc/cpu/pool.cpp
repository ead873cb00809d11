#include "cpu/pool.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace mergekern {
namespace {

// IEEE arithmetic whatever the caller has set: nearest even, denormals kept.
class IeeeScope {
 public:
#if defined(__x86_64__)
  IeeeScope() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~IeeeScope() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  IeeeScope() {
    uint64_t zero = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(zero));
  }
  ~IeeeScope() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

struct Job {
  const std::function<void(int, int64_t)>* work = nullptr;
  int64_t pieces = 0;
  int threads = 0;
  std::atomic<int64_t> next{0};

  void run(int thread) {
    IeeeScope ieee;
    for (int64_t piece = next++; piece < pieces; piece = next++) (*work)(thread, piece);
  }
};

class Pool {
 public:
  void run(int threads, int64_t pieces, const std::function<void(int, int64_t)>& work) {
    std::lock_guard<std::mutex> turn(turn_);
    job_.work = &work;
    job_.pieces = pieces;
    job_.threads = threads;
    job_.next = 0;
    if (threads > 1) start(threads - 1);
    job_.run(0);
    if (threads > 1) wait();
  }

 private:
  void start(int helpers) {
    while (static_cast<int>(helpers_.size()) < helpers) {
      const int thread = static_cast<int>(helpers_.size()) + 1;
      helpers_.emplace_back([this, thread, seen = round_] { serve(thread, seen); });
      helpers_.back().detach();  // they live as long as the process
    }
    std::lock_guard<std::mutex> lock(mutex_);
    ++round_;
    busy_ = static_cast<int>(helpers_.size());
    wake_.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return busy_ == 0; });
  }

  void serve(int thread, int64_t seen) {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      lock.unlock();
      if (thread < job_.threads) job_.run(thread);
      lock.lock();
      if (--busy_ == 0) idle_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, idle_;
  std::vector<std::thread> helpers_;
  Job job_;
  int64_t round_ = 0;
  int busy_ = 0;
};

// A forked child has the pool's memory but none of its threads: it gets a pool of its own. Pools
// are never destroyed, since their threads may still be waking while the process exits.
Pool& pool() {
  static std::mutex mutex;
  static Pool* current = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (owner != getpid()) {
    current = new Pool;
    owner = getpid();
  }
  return *current;
}

}  // namespace

void parallel_for(int threads, int64_t pieces, const std::function<void(int, int64_t)>& work) {
  const int useful = static_cast<int>(pieces < threads ? pieces : threads);
  if (useful > 0) pool().run(useful, pieces, work);
}

}  // namespace mergekern
