// Memory for weights and activations: 64-byte aligned, on huge pages where the system offers them.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace fmn {

// One zeroed mapping, aligned to 2 MB if it is that large. MobileNets have 10 to 20 MB of weights: 4 KB pages
// would need more entries than a second-level TLB has.
class Region {
 public:
  // `at_once`: all of it will be written; the system gives its pages together then, which is faster than one by one.
  explicit Region(size_t bytes, bool at_once = false);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  float* data() const { return static_cast<float*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void* map_ = nullptr;
  size_t map_bytes_ = 0;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Hands out pieces of large regions; they live as long as the store. Thread-safe.
class WeightStore {
 public:
  float* allocate(size_t floats);
  // A piece of its own, which is given back with its last owner.
  std::shared_ptr<float> separate(size_t floats);
  size_t bytes() const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Region>> regions_;
  size_t used_ = 0;   // bytes of the last region
  size_t bytes_ = 0;  // that were handed out
  // By pieces of their own.
  std::shared_ptr<std::atomic<size_t>> separate_bytes_ = std::make_shared<std::atomic<size_t>>(0);
};

// Gives freed memory back to the system, where the C library keeps it for itself (glibc does, up to 32 MB a piece).
void release_free_memory();

}  // namespace fmn
