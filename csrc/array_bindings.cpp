// What of the module _C works on plain arrays: adapters, systems of equations, packed masks, and
// elementary functions.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "cpu/loops.h"
#include "cpu/systems.h"

namespace mergekern {
namespace {

void bind_lowrank(py::module_& m) {
  py::class_<LowRank>(m, "LowRank")
      .def(py::init([](uintptr_t left, uintptr_t right, uintptr_t factor, bool by_column,
                       int64_t rows, int64_t columns, int32_t rank, float scale) {
             const float *l = pointer<float>(left), *r = pointer<float>(right);
             return LowRank{l, r, pointer<float>(factor), by_column, rows, columns, rank, scale};
           }),
           py::kw_only(), py::arg("left"), py::arg("right"), py::arg("factor"),
           py::arg("by_column"), py::arg("rows"), py::arg("columns"), py::arg("rank"),
           py::arg("scale"));
  released(m, "add_lowrank",
           [](const std::string& isa, const LowRank& x, uintptr_t weight, DType dtype,
              int64_t begin, int64_t end, uintptr_t out) {
             loops(isa.c_str())
                 .add_lowrank(x, pointer<void>(weight), dtype, begin, end, pointer<float>(out));
           });
  released(m, "sum_squares",
           [](const std::string& isa, uintptr_t x, int64_t rows, int64_t columns, bool by_column,
              uintptr_t sums) {
             loops(isa.c_str())
                 .sum_squares(pointer<float>(x), rows, columns, by_column, pointer<double>(sums));
           });
}

void bind_systems(py::module_& m) {
  py::class_<Factor>(m, "Factor")
      .def(py::init([](uintptr_t data, DType dtype, int64_t row_step, int64_t step,
                       double reduction, double weight, int64_t diagonal) {
             return Factor{pointer<void>(data), dtype, row_step, step, reduction, weight, diagonal};
           }),
           py::kw_only(), py::arg("data"), py::arg("dtype"), py::arg("row_step"), py::arg("step"),
           py::arg("reduction") = 1.0, py::arg("weight") = 1.0, py::arg("diagonal") = 0);
  released(m, "product",
           [](const std::string& isa, int threads, const Factor& a, int64_t rows, int64_t columns,
              int64_t k, uintptr_t b, uintptr_t c) {
             product(isa, threads, a, rows, columns, k, pointer<double>(b), columns,
                     pointer<double>(c), columns);
           });
  released(m, "factorise",
           [](const std::string& isa, int threads, uintptr_t a, int64_t n, double least) {
             return factorise(isa, threads, pointer<double>(a), n, least);
           });
  released(m, "solve",
           [](const std::string& isa, int threads, uintptr_t u, int64_t n, uintptr_t x,
              int64_t columns) {
             solve(isa, threads, pointer<double>(u), n, pointer<double>(x), columns);
           });
}

void bind_packed(py::module_& m) {
  released(m, "add_marked",
           [](const std::string& isa, bool wide, uintptr_t base, DType base_dtype, uintptr_t delta,
              DType delta_dtype, uintptr_t packed, int64_t first, double scale, int64_t n,
              uintptr_t out) {
             const Marked x{pointer<void>(base),
                            base_dtype,
                            pointer<void>(delta),
                            delta_dtype,
                            pointer<uint8_t>(packed),
                            first,
                            scale};
             loops(isa.c_str()).add_marked(x, wide, 0, n, pointer<void>(out));
           });
  released(
      m, "marked_ones",
      [](const std::string& isa, uintptr_t packed, int64_t first, int64_t n, uintptr_t out) {
        loops(isa.c_str()).marked_ones(pointer<uint8_t>(packed), first, n, pointer<uint16_t>(out));
      });
}

void bind_elementary(py::module_& m) {
  released(m, "exp", [](const std::string& isa, uintptr_t x, int64_t n, uintptr_t out) {
    loops(isa.c_str()).exp(pointer<double>(x), n, pointer<double>(out));
  });
  released(m, "log", [](const std::string& isa, uintptr_t x, int64_t n, uintptr_t out) {
    loops(isa.c_str()).log(pointer<double>(x), n, pointer<double>(out));
  });
  released(m, "total",
           [](const std::string& isa, uintptr_t x, int64_t rows, int64_t length, uintptr_t out) {
             std::vector<double> half(static_cast<size_t>(length / 2 + 1));
             loops(isa.c_str())
                 .total(pointer<double>(x), rows, length, half.data(), pointer<double>(out));
           });
}

}  // namespace

void bind_arrays(py::module_& m) {
  bind_lowrank(m);
  bind_systems(m);
  bind_packed(m);
  bind_elementary(m);
}

}  // namespace mergekern
