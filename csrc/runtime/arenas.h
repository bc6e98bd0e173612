// Memory for the tensors of runs: the plans of all picture sizes of a network share it, since a run needs one piece and
// leaves nothing in it.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "runtime/memory.h"

namespace fmn {

class Arenas {
 public:
  Arenas();

  // An arena of `bytes` or more, for the time of a run: one that no run uses at the moment, or a new one. Its content
  // is whatever the last run left there.
  class Lease {
   public:
    Lease(Arenas& arenas, size_t bytes) : arenas_(arenas), region_(arenas.take(bytes)) {}
    ~Lease() { arenas_.give(std::move(region_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    float* data() const { return region_->data(); }

   private:
    Arenas& arenas_;
    std::unique_ptr<Region> region_;
  };

  // What lies idle.
  size_t bytes() const;

 private:
  static constexpr size_t MAX_IDLE = 16;  // more runs at once than that allocate anew
  static constexpr int WINDOW = 64;       // runs after which an arena that is far too large is given back

  std::unique_ptr<Region> take(size_t bytes);
  void give(std::unique_ptr<Region> region);
  bool try_lock() const;
  void unlock() const { lock_.clear(std::memory_order_release); }

  // The lock is a flag that is only tried, never waited for: in a child that was forked while another thread held it,
  // it stays taken, and runs must still work.
  mutable std::atomic_flag lock_ = ATOMIC_FLAG_INIT;
  std::vector<std::unique_ptr<Region>> idle_;
  size_t needed_ = 0, needed_before_ = 0;  // the most of this window of runs, and of the one before
  int runs_ = 0;                           // of this window
};

}  // namespace fmn
