#include "runtime/arenas.h"

#include <algorithm>
#include <utility>

namespace fmn {

Arenas::Arenas() { idle_.reserve(MAX_IDLE); }

bool Arenas::try_lock() const {
  for (int i = 0; i < 1000; ++i) {
    if (!lock_.test_and_set(std::memory_order_acquire)) return true;
  }
  return false;
}

std::unique_ptr<Region> Arenas::take(size_t bytes) {
  std::unique_ptr<Region> found;
  if (try_lock()) {
    needed_ = std::max(needed_, bytes);
    if (++runs_ == WINDOW) {
      needed_before_ = std::exchange(needed_, bytes);
      runs_ = 0;
    }
    // The smallest that is large enough; where none is, the largest, which the new one replaces.
    const auto better = [bytes](const auto& a, const auto& b) {
      const bool fits = a->bytes() >= bytes;
      return fits == (b->bytes() >= bytes) ? (a->bytes() < b->bytes()) == fits : fits;
    };
    const auto best = std::min_element(idle_.begin(), idle_.end(), better);
    if (best != idle_.end()) {
      std::swap(*best, idle_.back());
      found = std::move(idle_.back());
      idle_.pop_back();
    }
    unlock();
  }
  if (found && found->bytes() >= bytes) return found;
  found.reset();  // before the new one is there
  return std::make_unique<Region>(bytes);
}

void Arenas::give(std::unique_ptr<Region> region) {
  if (!try_lock()) return;
  const size_t needed = std::max(needed_, needed_before_);
  if (idle_.size() < MAX_IDLE && region->bytes() / 4 <= needed) idle_.push_back(std::move(region));
  unlock();
}

size_t Arenas::bytes() const {
  size_t sum = 0;
  if (try_lock()) {
    for (const auto& region : idle_) sum += region->bytes();
    unlock();
  }
  return sum;
}

}  // namespace fmn
