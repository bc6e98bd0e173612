// The parts of the Python module.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#include "runtime/program.h"

namespace fmn {

inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Runs f without the GIL. A daemon thread may be here while the interpreter ends: to take the GIL back would then
// unwind the thread from inside (before Python 3.14), through C++ that must not be unwound. It waits for the end
// instead.
template <class F>
void without_gil(F f) {
  PyThreadState* const state = PyEval_SaveThread();
  try {
    f();
  } catch (...) {
    PyEval_RestoreThread(state);
    throw;
  }
  while (interpreter_ends()) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  PyEval_RestoreThread(state);
}

void bind_u8(pybind11::module_& m, pybind11::class_<Program>& program);
void bind_detection(pybind11::module_& m, pybind11::class_<Program>& program);

}  // namespace fmn
