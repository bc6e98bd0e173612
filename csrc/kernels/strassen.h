// What Strassen's product in Winograd's form adds besides its GEMMs (runtime/strassen.h). Any number of blocks.
//
// Before them, on the side of the pixels:   s1 = a21 + a22    s2 = s1 - a11    s3 = a11 - a21    s4 = a12 - s2
// and before the last of them:              c = act(w + y)    x = w + x2
//
// Each in one walk: these are bound by loads and stores.
#pragma once

#include "kernels/activation.h"

namespace fmn::FMN_ISA {
namespace {

void strassen_sums(const StrassenSumsArgs& s) {
  for (ptrdiff_t i = 0; i < s.n; i += LANES) {
    const Vec a11 = load(s.a11 + i), a21 = load(s.a21 + i);
    const Vec s1 = plus(a21, load(s.a22 + i));
    const Vec s2 = minus(s1, a11);
    store(s.s1 + i, s1);
    store(s.s2 + i, s2);
    store(s.s3 + i, minus(a11, a21));
    store(s.s4 + i, minus(load(s.a12 + i), s2));
  }
}

void strassen_last(const StrassenLastArgs& s) {
  const Finish finish(s.act);
  for (ptrdiff_t i = 0; i < s.n; i += LANES) {
    const Vec w = load(s.w + i);
    const Vec c[1][1] = {{plus(w, load(s.y + i))}};
    store(s.x + i, plus(w, load(s.x2 + i)));
    finish_tile(c, finish, [&](int, int, Vec v) { store(s.c + i, v); });
  }
}

}  // namespace
}  // namespace fmn::FMN_ISA
