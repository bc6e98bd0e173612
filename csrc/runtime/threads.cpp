#include "runtime/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/fpenv.h"

#if defined(_WIN32)
#include <process.h>
#else
#include <pthread.h>
#include <unistd.h>
#endif

namespace fmn {

namespace {

inline void pause_cpu() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// After this many looks a waiting thread gives its core away: there may be more threads than cores.
constexpr int SPINS_BEFORE_YIELD = 2000;

std::atomic<int> spin_us{100};

class Pool {
 public:
  // False if another caller has the pool.
  bool run(int threads, const std::function<void(Team&, int)>& job) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    grow(threads - 1);
    SpinTeam team(static_cast<int>(std::min<size_t>(workers_.size() + 1, static_cast<size_t>(threads))));
    const int helpers = team.count() - 1;
    if (helpers == 0) {
      job(team, 0);
      return true;
    }
    job_ = &job;
    team_ = &team;
    finished_.store(0, std::memory_order_relaxed);
    {
      // The mutex is only for workers that sleep; one that spins sees the new epoch at once.
      const std::lock_guard<std::mutex> lock(sleep_);
      epoch_.store(
          (epoch_.load(std::memory_order_relaxed) & ~COUNT_MASK) + COUNT_MASK + 1 + static_cast<uint64_t>(helpers),
          std::memory_order_release);
    }
    if (sleepers_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    job(team, 0);
    int spins = 0;
    while (finished_.load(std::memory_order_acquire) < helpers) wait_a_little(spins);
    return true;
  }

  int size() const { return size_.load(std::memory_order_relaxed); }

 private:
  class SpinTeam final : public Team {
   public:
    using Team::Team;
    void barrier() override {
      const unsigned generation = generation_.load(std::memory_order_relaxed);
      if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count()) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.store(generation + 1, std::memory_order_release);
        return;
      }
      int spins = 0;
      while (generation_.load(std::memory_order_acquire) == generation) wait_a_little(spins);
    }

   private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> generation_{0};
  };

  static void wait_a_little(int& spins) {
    if (++spins < SPINS_BEFORE_YIELD) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
  }

  void grow(int helpers) {
    while (static_cast<int>(workers_.size()) < helpers) {
      const int index = static_cast<int>(workers_.size()) + 1;
      try {
        workers_.emplace_back([this, index, seen = epoch_.load(std::memory_order_relaxed)] { work(index, seen); });
      } catch (const std::system_error&) {
        break;  // the system allows no more threads: the run goes on with those there are
      }
      size_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    }
  }

  void work(int index, uint64_t seen) {
    const FlushDenormals flush;
    for (;;) {
      const uint64_t epoch = wait_for_epoch(seen);
      seen = epoch;
      if (index <= static_cast<int>(epoch & COUNT_MASK)) {
        (*job_)(*team_, index);
        finished_.fetch_add(1, std::memory_order_release);
      }
    }
  }

  uint64_t wait_for_epoch(uint64_t seen) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::microseconds(spin_us.load(std::memory_order_relaxed));
    for (int i = 0;; ++i) {
      const uint64_t epoch = epoch_.load(std::memory_order_acquire);
      if (epoch != seen) return epoch;
      pause_cpu();
      if ((i & 31) == 31 && Clock::now() >= until) break;
    }
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_.fetch_add(1, std::memory_order_acq_rel);
    wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
    sleepers_.fetch_sub(1, std::memory_order_acq_rel);
    return epoch_.load(std::memory_order_acquire);
  }

  // epoch_: a counter of runs in the upper bits, the helpers of the newest run in the lower ones.
  static constexpr uint64_t COUNT_MASK = 0xffff;
  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<int> finished_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<int> size_{0};
  const std::function<void(Team&, int)>* job_ = nullptr;
  Team* team_ = nullptr;
  std::mutex busy_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// The pool of this process. A forked child has none of its parent's threads: it forgets the parent's pool
// (destroying it would wait for threads that are not there) and makes its own when it needs one. The pool is
// never destroyed: a thread of the interpreter may still be running a network while the process exits.
std::atomic<Pool*> the_pool{nullptr};
std::atomic<bool> fork_handler{false};

void forget_pool() { the_pool.store(nullptr, std::memory_order_relaxed); }

Pool& pool() {
  Pool* p = the_pool.load(std::memory_order_acquire);
  if (p != nullptr) return *p;
#if !defined(_WIN32)
  if (!fork_handler.exchange(true)) pthread_atfork(nullptr, nullptr, forget_pool);
#endif
  auto fresh = std::make_unique<Pool>();
  if (the_pool.compare_exchange_strong(p, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
  return *p;
}

}  // namespace

void run_parallel(int threads, const std::function<void(Team&, int)>& job) {
  threads = std::min(std::max(threads, 1), MAX_THREADS);
  if (threads > 1) {
    if (pool().run(threads, job)) return;
  }
  Team alone(1);
  job(alone, 0);
}

int pool_size() {
  Pool* p = the_pool.load(std::memory_order_acquire);
  return p == nullptr ? 0 : p->size();
}

void set_spin_us(int us) { spin_us.store(us, std::memory_order_relaxed); }

}  // namespace fmn
