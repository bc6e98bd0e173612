// The thread pool: one a process. A run hands the whole network to it once; layers are separated by barriers.
#pragma once

#include <functional>

namespace fmn {

// What one of the `count` threads of a run needs: who it is, and how to wait for the others.
class Team {
 public:
  Team(int count) : count_(count) {}
  virtual ~Team() = default;
  int count() const { return count_; }
  // Returns when all threads of the team have called it. What they wrote before is visible after.
  virtual void barrier() {}

 private:
  int count_;
};

// Calls job(team, index) for every index in 0 .. threads - 1, each on a thread of its own, 0 on the caller's.
// Uses fewer threads (team.count() says how many) if the pool is at work for another caller: then one.
// An exception in a job is not allowed. With threads = 1 no thread is ever made.
void run_parallel(int threads, const std::function<void(Team&, int)>& job);

// Threads that the pool has made so far in this process (0 before the first parallel run).
int pool_size();

// How long a worker keeps looking for the next run before it sleeps, in microseconds.
void set_spin_us(int us);

constexpr int MAX_THREADS = 256;

}  // namespace fmn
