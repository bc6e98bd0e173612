#include "runtime/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(_WIN32) || defined(__GLIBC__)
#include <malloc.h>
#endif
#if !defined(_WIN32)
#include <sys/mman.h>
#endif

namespace fmn {

namespace {
constexpr size_t HUGE_PAGE = size_t{2} << 20;
constexpr size_t LINE = 64;
// Of a store: pages that nothing was written to take no memory, but the rest of a region that is full is lost.
#if defined(_WIN32)
constexpr size_t LEAST_REGION = HUGE_PAGE;  // there they do
#else
constexpr size_t LEAST_REGION = 8 * HUGE_PAGE;
#endif

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }
}  // namespace

Region::Region(size_t bytes, bool at_once) : bytes_(std::max(bytes, LINE)) {
  if (bytes_ > SIZE_MAX / 2) throw std::bad_alloc();
#if defined(_WIN32)
  static_cast<void>(at_once);
  map_bytes_ = round_up(bytes_, LINE);
  map_ = data_ = _aligned_malloc(map_bytes_, LINE);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, map_bytes_);
#else
  const bool huge = bytes_ >= HUGE_PAGE;
  const size_t align = huge ? HUGE_PAGE : 4096;
  map_bytes_ = round_up(bytes_, align) + (huge ? align : 0);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_POPULATE)
  if (at_once && !huge) flags |= MAP_POPULATE;  // huge pages are few
#endif
  map_ = mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (map_ == MAP_FAILED) throw std::bad_alloc();
  data_ = reinterpret_cast<void*>(round_up(reinterpret_cast<uintptr_t>(map_), align));
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, round_up(bytes_, HUGE_PAGE), MADV_HUGEPAGE);  // a wish: failure costs only speed
#endif
#endif
}

Region::~Region() {
#if defined(_WIN32)
  _aligned_free(map_);
#else
  munmap(map_, map_bytes_);
#endif
}

void release_free_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

float* WeightStore::allocate(size_t floats) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t bytes = round_up(floats * sizeof(float), LINE);
  if (regions_.empty() || used_ + bytes > regions_.back()->bytes()) {
    regions_.push_back(std::make_unique<Region>(round_up(std::max(bytes, LEAST_REGION), HUGE_PAGE)));
    used_ = 0;
  }
  float* p = regions_.back()->data() + used_ / sizeof(float);
  used_ += bytes;
  bytes_ += bytes;
  return p;
}

std::shared_ptr<float> WeightStore::separate(size_t floats) {
  auto region = std::make_unique<Region>(floats * sizeof(float), true);
  float* const data = region->data();
  *separate_bytes_ += region->bytes();
  return {data, [region = std::shared_ptr<Region>(std::move(region)), count = separate_bytes_](float*) mutable {
            *count -= region->bytes();
            region.reset();
          }};
}

size_t WeightStore::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_ + *separate_bytes_;
}

}  // namespace fmn
