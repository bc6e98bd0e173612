#include "runtime/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <system_error>
#include <thread>
#include <vector>

#include "runtime/fpenv.h"

#if defined(_WIN32)
#include <process.h>
#else
#include <pthread.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sched.h>
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

// Between two runs a caller spends 0.1 ms in Python where the caches are cold, and waking a thread takes as long.
std::atomic<int> spin_us{500};
// For so long without pause. After that everybody else comes first.
constexpr std::chrono::microseconds SPIN_ALONE{100};
std::atomic<int> worker_delay_us{0};

void wait_a_little(int& spins) {
  if (++spins < SPINS_BEFORE_YIELD) {
    pause_cpu();
  } else {
    std::this_thread::yield();
  }
}

void delay_worker() {
  const int most = worker_delay_us.load(std::memory_order_relaxed);
  if (most <= 0) return;
  thread_local std::minstd_rand random(std::random_device{}());
  std::this_thread::sleep_for(std::chrono::microseconds(std::uniform_int_distribution<int>(0, most)(random)));
}

int current_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

class Pool {
 public:
  // False if another caller has the pool.
  bool run(int threads, const std::function<void(Team&)>& job) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    grow(threads - 1);
    const int count = static_cast<int>(std::min<size_t>(workers_.size() + 1, static_cast<size_t>(threads)));
    if (count == 1) {
      Team alone;
      job(alone);
      return true;
    }
    crew_.reset(count);
    job_ = &job;
    caller_cpu_.store(current_cpu(), std::memory_order_relaxed);
    const uint64_t last = state_.load(std::memory_order_relaxed);
    state_.store((epoch(last) + 1) << EPOCH_SHIFT | OPEN | static_cast<uint64_t>(count - 1) << HELPERS_SHIFT,
                 std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      { const std::lock_guard<std::mutex> lock(sleep_); }  // who is about to sleep has seen the run, or will be woken
      wake_.notify_all();
    }
    Team team(crew_, 0);
    job(team);
    // All is done. Nobody may come any more; those who came see at their next look that nothing is left.
    state_.fetch_and(~OPEN, std::memory_order_acq_rel);
    int spins = 0;
    while ((state_.load(std::memory_order_acquire) & JOINED_MASK) != 0) wait_a_little(spins);
    return true;
  }

  int size() const { return size_.load(std::memory_order_relaxed); }

 private:
  void grow(int helpers) {
    while (static_cast<int>(workers_.size()) < helpers) {
      const int index = static_cast<int>(workers_.size()) + 1;
      try {
        workers_.emplace_back(
            [this, index, seen = epoch(state_.load(std::memory_order_relaxed))] { work(index, seen); });
      } catch (const std::system_error&) {
        break;  // the system allows no more threads: the run goes on with those there are
      }
      size_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    }
  }

  void work(int index, uint64_t seen) {
    const FlushDenormals flush;
    for (bool together = false;;) {
      uint64_t state = wait_for_epoch(seen, together);
      seen = epoch(state);
      delay_worker();
      if (index > helpers(state) || worker_delay_us.load(std::memory_order_relaxed) < 0) continue;
      while (epoch(state) == seen && (state & OPEN) != 0) {
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
          continue;
        }
        Team team(crew_, index);
        (*job_)(team);
        state_.fetch_sub(1, std::memory_order_release);
        break;
      }
      const int cpu = current_cpu();
      together = cpu >= 0 && cpu == caller_cpu_.load(std::memory_order_relaxed);
    }
  }

  // together: this thread and the caller stand on one CPU, as two that were woken at once may. While both look busy the
  // system takes tens of milliseconds to part them, many runs; a thread that sleeps is woken where there is room.
  uint64_t wait_for_epoch(uint64_t seen, bool together) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    const std::chrono::microseconds most(together ? 0 : spin_us.load(std::memory_order_relaxed));
    for (int i = 0;; ++i) {
      const uint64_t state = state_.load(std::memory_order_acquire);
      if (epoch(state) != seen) return state;
      pause_cpu();
      if ((i & 31) != 31) continue;
      const auto passed = Clock::now() - begin;
      if (passed >= most) break;
      if (passed >= SPIN_ALONE) std::this_thread::yield();
    }
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return epoch(state_.load(std::memory_order_seq_cst)) != seen; });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    return state_.load(std::memory_order_acquire);
  }

  // Of the newest run: its number, whether workers may join it, how many, and how many are in it.
  static constexpr uint64_t JOINED_MASK = 0xfff, OPEN = uint64_t{1} << 24;
  static constexpr int HELPERS_SHIFT = 12, EPOCH_SHIFT = 25;
  static uint64_t epoch(uint64_t state) { return state >> EPOCH_SHIFT; }
  static int helpers(uint64_t state) { return static_cast<int>(state >> HELPERS_SHIFT & 0xfff); }

  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<int> size_{0}, caller_cpu_{-1};
  const std::function<void(Team&)>* job_ = nullptr;  // like crew_, only for those who have joined
  Crew crew_;
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

void Crew::reset(int count) {
  if (slots_.size() < static_cast<size_t>(count)) slots_ = std::vector<Slot>(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) slots_[static_cast<size_t>(i)].word.store(0, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  count_ = count;
}

int Crew::take(uint32_t op, int parts, int index) {
  for (int i = 0; i < count_; ++i) {
    const int whose = index + i < count_ ? index + i : index + i - count_;
    const int part = take_from(slots_[static_cast<size_t>(whose)], op, split(parts, count_, whose), i == 0);
    if (part >= 0) return part;
  }
  return -1;
}

int Crew::take_from(Slot& slot, uint32_t op, Range all, bool owner) {
  constexpr int OP_SHIFT = 33;
  constexpr uint64_t OWNED = uint64_t{1} << 32;
  constexpr uint32_t OP_MASK = 0x7fffffff;
  const uint64_t fresh = uint64_t{op & OP_MASK} << OP_SHIFT | static_cast<uint64_t>(all.end - all.begin);
  uint64_t word = slot.word.load(std::memory_order_relaxed);
  for (;;) {
    const uint32_t behind = ((op & OP_MASK) - static_cast<uint32_t>(word >> OP_SHIFT)) & OP_MASK;
    if (behind > OP_MASK / 2) return -1;  // the others are done with this op
    uint64_t now = behind != 0 ? fresh : word;
    const int begin = static_cast<int>(now >> 16 & 0xffff), end = static_cast<int>(now & 0xffff);
    if (begin == end) return -1;
    // An owner who has begun walks on from the front, and others take from the end; without one, the first who comes
    // takes its place: parts that follow each other share rows and weights.
    const bool front = owner || (now & OWNED) == 0;
    now = front ? now + (uint64_t{1} << 16) : now - 1;
    if (owner) now |= OWNED;
    // The parts themselves hold nothing that must be seen with the word: what they read is older than this op.
    if (slot.word.compare_exchange_weak(word, now, std::memory_order_relaxed)) {
      return static_cast<int>(all.begin) + (front ? begin : end - 1);
    }
  }
}

void Crew::wait(int64_t total) const {
  int spins = 0;
  while (!done(total)) wait_a_little(spins);
}

int Team::begin(ptrdiff_t n, ptrdiff_t grain) {
  constexpr ptrdiff_t MOST = 0xffff;  // parts of one thread
  if (index_ > 0) delay_worker();
  const ptrdiff_t each = (n + count_ - 1) / count_;
  grain = std::max<ptrdiff_t>(grain, 1);
  const ptrdiff_t parts = n <= grain ? 1 : count_ * std::min((each + grain - 1) / grain, MOST);
  ++op_;
  total_ += parts;
  return static_cast<int>(parts);
}

void run_parallel(int threads, const std::function<void(Team&)>& job) {
  threads = std::min(std::max(threads, 1), MAX_THREADS);
  if (threads > 1) {
    if (pool().run(threads, job)) return;
  }
  Team alone;
  job(alone);
}

int pool_size() {
  Pool* p = the_pool.load(std::memory_order_acquire);
  return p == nullptr ? 0 : p->size();
}

void set_spin_us(int us) { spin_us.store(std::max(us, 0), std::memory_order_relaxed); }

void set_worker_delay_us(int us) { worker_delay_us.store(us, std::memory_order_relaxed); }

}  // namespace fmn
