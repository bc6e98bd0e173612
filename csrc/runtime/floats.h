// Weights as floats, which may be given up where something else can make them again.
#pragma once

#include <functional>
#include <memory>
#include <mutex>

#include "runtime/memory.h"

namespace fmn {

// Thread-safe.
class Floats {
 public:
  void keep(std::shared_ptr<const float> floats) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_ = std::move(floats);
  }
  // From now on `write` makes them, `count` of them, in zeroed memory of `store` that lives as long as somebody has
  // them.
  void give_up(const std::shared_ptr<WeightStore>& store, size_t count, std::function<void(float*)> write) {
    const std::lock_guard<std::mutex> lock(mutex_);
    make_ = [store, count, write = std::move(write)] {
      std::shared_ptr<float> floats = store->separate(count);
      write(floats.get());
      return floats;
    };
    kept_.reset();
  }
  std::shared_ptr<const float> get() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (kept_ || !make_) return kept_;
    std::shared_ptr<const float> floats = made_.lock();
    if (!floats) made_ = floats = make_();
    return floats;
  }

 private:
  std::mutex mutex_;
  std::shared_ptr<const float> kept_;
  std::weak_ptr<const float> made_;
  std::function<std::shared_ptr<float>()> make_;
};

}  // namespace fmn
