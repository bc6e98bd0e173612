// The thread pool, one a process, and how the threads of a run share its work.
//
// A run hands the whole network to the pool once. Every thread walks the same list of ops, and every op cuts its work
// into parts that any thread may do: a thread begins with its own parts, the same region of every op, and then takes
// what is left of the others'. A thread that the system has put aside, or that still sleeps, so costs the run only
// the part that it is in the middle of; the caller finishes a run alone if nobody else comes.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace fmn {

constexpr int MAX_THREADS = 256;

struct Range {
  ptrdiff_t begin, end;
};

// Part `index` of `count` nearly equal parts of 0 .. n - 1; the first ones are the larger.
inline Range split(ptrdiff_t n, int count, int index) {
  return {(n * index + count - 1) / count, (n * (index + 1) + count - 1) / count};
}

// What the threads of one run have in common: which parts of the present op are taken, and how many are done.
//
// Ops are counted, and the number of the op stands in each word beside what is taken of it: a word of an older op
// means that nobody has begun with these parts. So nothing has to be reset between ops.
class Crew {
 public:
  // Before a run; no other thread may be in it. Allocates only when there are more threads than ever before.
  void reset(int count);
  int count() const { return count_; }
  bool done(int64_t total) const { return done_.load(std::memory_order_acquire) >= total; }
  void add_done(int parts) { done_.fetch_add(parts, std::memory_order_acq_rel); }
  // A part of op number `op`, which has `parts`, that nobody has taken, for thread `index`; -1 if there is none.
  int take(uint32_t op, int parts, int index);
  void wait(int64_t total) const;

 private:
  // op number (31 bits), whether the owner has begun, first part that is left, end of them (16 bits each)
  struct alignas(64) Slot {
    std::atomic<uint64_t> word{0};
  };
  int take_from(Slot& slot, uint32_t op, Range all, bool owner);

  int count_ = 0;
  std::vector<Slot> slots_;                   // one a thread
  alignas(64) std::atomic<int64_t> done_{0};  // parts of all ops of this run
};

// A run as one of its threads sees it.
class Team {
 public:
  Team() = default;  // of one thread
  Team(Crew& crew, int index) : crew_(&crew), index_(index), count_(crew.count()) {}
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  int count() const { return count_; }
  int index() const { return index_; }

  // Does 0 .. n - 1 together with the other threads, all of which must call it with the same n and grain. f(Range) is
  // called for parts of about `grain` units, f({0, n}) if there is one thread. Returns when all of it is done, no
  // matter by whom; what was written is visible then. Nothing may depend on who does what.
  template <class F>
  void share(ptrdiff_t n, ptrdiff_t grain, F&& f) {
    if (n <= 0) return;
    if (crew_ == nullptr) return f(Range{0, n});
    const int parts = begin(n, grain);
    if (crew_->done(total_)) return;  // this thread comes late
    int mine = 0;
    for (int part; (part = crew_->take(op_, parts, index_)) >= 0; ++mine) f(split(n, parts, part));
    if (mine > 0) crew_->add_done(mine);
    crew_->wait(total_);
  }

 private:
  // Counts the op; returns its number of parts.
  int begin(ptrdiff_t n, ptrdiff_t grain);

  Crew* crew_ = nullptr;
  int index_ = 0, count_ = 1;
  uint32_t op_ = 0;
  int64_t total_ = 0;  // parts of the ops so far
};

// Calls job(team) on the caller's thread and on up to threads - 1 of the pool, as they come; returns when all that
// came have left it. Uses fewer threads (team.count() says how many at most) if the pool is at work for another caller:
// then one. An exception in a job is not allowed. With threads = 1 no thread is ever made.
void run_parallel(int threads, const std::function<void(Team&)>& job);

// Threads that the pool has made so far in this process (0 before the first parallel run).
int pool_size();

// How long a worker keeps looking for the next run before it sleeps, in microseconds.
void set_spin_us(int us);

// For tests: threads of the pool wait up to `us` microseconds, at random, before they join a run and before each op;
// with -1 they never join.
void set_worker_delay_us(int us);

}  // namespace fmn
