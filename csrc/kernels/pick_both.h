// PickTwo of the ISAs that have no permutation of two vectors: one Pick behind the other.
#pragma once

namespace fmn::FMN_ISA {
namespace {

template <class Pick>
struct PickBoth {
  Pick first, second;
  PickBoth(const int* lanes, const int* others) : first(lanes), second(others) {}
  void replace(float* dst, const float* src, const float* other) const {
    first.replace(dst, src);
    second.merge(dst, other);
  }
  void merge(float* dst, const float* src, const float* other) const {
    first.merge(dst, src);
    second.merge(dst, other);
  }
};

}  // namespace
}  // namespace fmn::FMN_ISA
