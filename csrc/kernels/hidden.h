// Keeps the compiler from loading constants long before they are used, where registers are few.
#pragma once

namespace fmn::FMN_ISA {
namespace {

// The same pointer, but the compiler does not know.
template <class T>
inline const T* hidden(const T* p) {
#if defined(__GNUC__)
  asm volatile("" : "+r"(p));
#endif
  return p;
}

}  // namespace
}  // namespace fmn::FMN_ISA
