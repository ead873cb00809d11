// What knows Python, here and in the files that include this: plain structs and raw addresses in,
// the GIL released, no torch. Callers have checked dtypes, lengths and lifetimes (backends/cpu.py,
// packed.py, systems.py, checkpoint/lowrank.py, elementary.py).
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace mergekern {

namespace py = pybind11;

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
std::vector<T*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<T*> list;
  for (uintptr_t address : addresses) list.push_back(pointer<T>(address));
  return list;
}

// A function of the module that lets other threads run Python meanwhile.
template <typename F>
void released(py::module_& m, const char* name, F&& f) {
  m.def(name, std::forward<F>(f), py::call_guard<py::gil_scoped_release>());
}

void bind_arrays(py::module_& m);  // what works on plain arrays

}  // namespace mergekern
