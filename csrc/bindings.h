// The parts of the Python module.
#pragma once

#include <pybind11/pybind11.h>

#include "runtime/program.h"

namespace fmn {

void bind_u8(pybind11::module_& m, pybind11::class_<Program>& program);

}  // namespace fmn
