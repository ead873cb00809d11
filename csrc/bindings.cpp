// The module _C, and in it what works on tiles; array_bindings.cpp binds the rest.
#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "batch.h"
#include "cpu/loops.h"
#include "cpu/order.h"
#include "cpu/passes.h"
#include "philox.h"

using namespace mergekern;

namespace {

// Experts and their tile; the tile points into the vector.
struct Inputs {
  std::vector<Expert> experts;
  Tile tile;

  Inputs(uintptr_t base, DType base_dtype, std::vector<Expert> list, int64_t offset, int64_t numel,
         bool spread)
      : experts(std::move(list)) {
    const auto count = static_cast<int32_t>(experts.size());
    tile = {pointer<void>(base), base_dtype, experts.data(), count, offset, numel, spread};
  }
  Inputs(const Inputs&) = delete;
};

using Cuts = std::tuple<uint64_t, int64_t, uint64_t, int64_t>;

Window make_window(const Cuts& cuts) {
  const auto [lo, lo_last, hi, hi_last] = cuts;
  return Window{lo, hi, lo_last, hi_last};
}

// (tile, non-finite inputs, overflow) for every tile with findings; -1 is the base.
std::vector<std::tuple<int64_t, std::vector<int>, bool>> run_batch(
    const How& how, const FusedOp& op, const std::vector<Expert>& experts, DType base_dtype,
    DType out_dtype, int64_t count, const std::array<uintptr_t, 7>& columns, bool by_index) {
  const Batch batch{count,
                    pointer<uint64_t>(columns[0]),
                    pointer<uint64_t>(columns[1]),
                    pointer<int64_t>(columns[2]),
                    pointer<int64_t>(columns[3]),
                    pointer<uint32_t>(columns[4]),
                    pointer<int64_t>(columns[5]),
                    pointer<int64_t>(columns[6]),
                    by_index};
  const std::vector<TileFindings> found = [&] {
    py::gil_scoped_release release;
    return fuse_batch(loops(how.isa.c_str()), how.threads, how.wide, op, experts, base_dtype,
                      out_dtype, batch);
  }();
  std::vector<std::tuple<int64_t, std::vector<int>, bool>> listed;
  for (const TileFindings& one : found) {
    std::vector<int> inputs;
    for (size_t i = 0; i < one.non_finite.size(); ++i) {
      if (one.non_finite[i]) inputs.push_back(static_cast<int>(i) - 1);
    }
    listed.emplace_back(one.tile, inputs, one.overflow);
  }
  return listed;
}

std::vector<std::string> names_of_instruction_sets() {
  const char* names[8];
  return {names, names + instruction_sets(names)};
}

Expert make_expert(uintptr_t data, DType dtype, uint32_t index, double coef, double vote,
                   double share, const Cuts& window, uint64_t keep_below, uintptr_t mask) {
  Expert e{};
  e.data = pointer<void>(data);
  e.dtype = dtype;
  e.index = index;
  e.coef = coef;
  e.vote = vote;
  e.share = share;
  e.window = make_window(window);
  e.trim = trims(e.window);
  e.drop = keep_below <= UINT32_MAX;
  e.keep_below = static_cast<uint32_t>(keep_below);
  e.mask = pointer<uint8_t>(mask);
  return e;
}

void bind_enums(py::module_& m) {
  py::enum_<DType>(m, "DType")
      .value("f64", DType::f64)
      .value("f32", DType::f32)
      .value("f16", DType::f16)
      .value("bf16", DType::bf16);
  py::enum_<Rule>(m, "Rule")
      .value("task_vector", Rule::task_vector)
      .value("linear_combination", Rule::linear_combination);
  py::enum_<Elect>(m, "Elect")
      .value("none", Elect::none)
      .value("any", Elect::any)
      .value("mass", Elect::mass)
      .value("count", Elect::count);
  py::enum_<TrimBy>(m, "TrimBy")
      .value("magnitude", TrimBy::magnitude)
      .value("variance", TrimBy::variance);
  py::enum_<Combine>(m, "Combine")
      .value("sum", Combine::sum)
      .value("mean", Combine::mean)
      .value("max", Combine::max);
  py::enum_<Formula>(m, "Formula")
      .value("near_swap", Formula::near_swap)
      .value("overlap_mean", Formula::overlap_mean)
      .value("consensus", Formula::consensus)
      .value("fisher", Formula::fisher)
      .value("stitch", Formula::stitch)
      .value("importance", Formula::importance)
      .value("fusion", Formula::fusion);
}

// The constructor of a plain struct from its fields, in order.
template <typename T, typename... Fields>
auto fields() {
  return py::init([](Fields... values) { return T{std::move(values)...}; });
}

void bind_structs(py::module_& m) {
  py::class_<Expert>(m, "Expert")
      .def(py::init(&make_expert), py::kw_only(), py::arg("data"), py::arg("dtype"),
           py::arg("index"), py::arg("coef"), py::arg("vote"), py::arg("share"), py::arg("window"),
           py::arg("keep_below"), py::arg("mask") = 0);
  py::class_<FusedOp>(m, "FusedOp")
      .def(fields<FusedOp, Rule, Elect, Combine, double, double, uint64_t, uint32_t, bool, TrimBy,
                  double>(),
           py::kw_only(), py::arg("rule"), py::arg("elect"), py::arg("combine"), py::arg("scale"),
           py::arg("divisor"), py::arg("seed"), py::arg("name_hash"), py::arg("ballots_are_values"),
           py::arg("trim_by") = TrimBy::magnitude, py::arg("least") = 0.0);
  py::class_<Elementwise>(m, "Elementwise")
      .def(py::init([](Formula formula, double t, double epsilon, uintptr_t rows, int64_t width) {
             return Elementwise{formula, t, epsilon, pointer<double>(rows), width};
           }),
           py::kw_only(), py::arg("formula"), py::arg("t") = 0.0, py::arg("epsilon") = 0.0,
           py::arg("rows") = 0, py::arg("width") = 0);
  py::class_<Odds>(m, "Odds").def(fields<Odds, uint32_t, uint64_t, uint64_t>(), py::kw_only(),
                                  py::arg("index"), py::arg("smallest"), py::arg("largest"));
  py::class_<Pruning>(m, "Pruning")
      .def(fields<Pruning, int64_t, int64_t, uint64_t, uint32_t>(), py::kw_only(),
           py::arg("length"), py::arg("stride"), py::arg("seed"), py::arg("name_hash"));
  py::class_<Bracket>(m, "Bracket")
      .def(fields<Bracket, int32_t, uint64_t, uint32_t, uint64_t>(), py::kw_only(),
           py::arg("expert"), py::arg("low"), py::arg("shift"), py::arg("bins"));
  py::class_<How>(m, "How").def(fields<How, std::string, int, bool>(), py::kw_only(),
                                py::arg("isa"), py::arg("threads"), py::arg("wide"));
  py::class_<Inputs>(m, "Inputs")
      .def(py::init<uintptr_t, DType, std::vector<Expert>, int64_t, int64_t, bool>(), py::kw_only(),
           py::arg("base"), py::arg("base_dtype"), py::arg("experts"), py::arg("offset"),
           py::arg("numel"), py::arg("spread") = false);
  py::class_<Found>(m, "Found")
      .def_readonly("non_finite", &Found::non_finite)
      .def_readonly("overflow", &Found::overflow);
}

void bind_operations(py::module_& m) {
  released(m, "fuse",
           [](const How& how, const FusedOp& op, const Inputs& inputs, uintptr_t out, DType dtype) {
             return fuse(how, op, inputs.tile, pointer<void>(out), dtype);
           });
  released(m, "elementwise",
           [](const How& how, const Elementwise& f, const Inputs& inputs, uintptr_t out,
              DType dtype) { return elementwise(how, f, inputs.tile, pointer<void>(out), dtype); });
  released(m, "unify",
           [](const How& how, const Inputs& inputs, uintptr_t out, DType stored,
              const std::vector<uintptr_t>& masks, uintptr_t sums) {
             const std::vector<uint8_t*> taken = pointers<uint8_t>(masks);
             const Unify u{pointer<void>(out), stored, taken.data(), pointer<double>(sums)};
             return unify(how, u, inputs.tile);
           });
  released(m, "overlaps", [](const How& how, const Inputs& inputs, double epsilon) {
    return overlaps(how, inputs.tile, epsilon);
  });
  released(m, "speculate",
           [](const How& how, const FusedOp& op, const Inputs& inputs,
              const std::vector<std::pair<Cuts, Cuts>>& strict_and_wide, uintptr_t out, DType dtype,
              uintptr_t kept, uintptr_t open) {
             std::vector<Margin> margins;
             for (const auto& [strict, wide] : strict_and_wide) {
               margins.push_back(Margin{make_window(strict), make_window(wide)});
             }
             return speculate(how, op, inputs.tile, margins.data(), pointer<void>(out), dtype,
                              pointer<int64_t>(kept), pointer<uint8_t>(open));
           });
  released(m, "open_starts", [](int threads, uintptr_t open, int64_t numel) {
    return open_starts(threads, pointer<uint8_t>(open), numel);
  });
  released(m, "compact",
           [](int threads, const Inputs& inputs, uintptr_t open, const std::vector<int64_t>& starts,
              uintptr_t index, uintptr_t base, const std::vector<uintptr_t>& experts) {
             compact(threads, inputs.tile, pointer<uint8_t>(open), starts.data(),
                     pointer<int64_t>(index), pointer<void>(base), pointers<void>(experts).data());
           });
  released(m, "put",
           [](int threads, DType dtype, uintptr_t from, uintptr_t index, int64_t n, uintptr_t to) {
             put(threads, dtype, pointer<void>(from), pointer<int64_t>(index), n,
                 pointer<void>(to));
           });
  released(m, "order_statistics",
           [](int threads,
              const std::vector<std::tuple<uintptr_t, int64_t, std::vector<int64_t>>>& arrays) {
             std::vector<Unordered> all;
             for (const auto& [m, n, ranks] : arrays) {
               all.push_back(Unordered{pointer<int64_t>(m), n, ranks});
             }
             return order_statistics(threads, all);
           });
  released(m, "count",
           [](const How& how, const Inputs& inputs, const std::vector<Bracket>& brackets,
              const std::vector<uintptr_t>& tallies, const std::vector<uintptr_t>& chunks) {
             return count(how, inputs.tile, brackets, pointers<int64_t>(tallies),
                          pointers<int64_t>(chunks));
           });
  released(m, "masked_sums",
           [](const How& how, const FusedOp& op, const Inputs& inputs, uintptr_t out,
              const std::vector<uintptr_t>& masks) {
             masked_sums(how, op, inputs.tile, pointer<double>(out), pointers<uint8_t>(masks));
           });
  released(m, "energies",
           [](const How& how, const FusedOp& op, const Inputs& inputs, uintptr_t out,
              const std::vector<uintptr_t>& masks) {
             energies(how, op, inputs.tile, pointer<double>(out), pointers<uint8_t>(masks));
           });
  released(m, "prune",
           [](const How& how, const Pruning& rows, const std::vector<Odds>& odds,
              const Inputs& inputs, const std::vector<uintptr_t>& masks) {
             prune(how, rows, odds, inputs.tile, pointers<uint8_t>(masks));
           });
  released(m, "gram", [](const How& how, const Inputs& inputs, uintptr_t out) {
    gram(how, inputs.tile, pointer<double>(out));
  });
  released(m, "magnitudes", [](const How& how, const Inputs& inputs, int expert, uintptr_t out) {
    magnitudes(how, inputs.tile, expert, pointer<int64_t>(out));
  });
  released(m, "all_finite", [](uintptr_t data, DType dtype, int64_t numel, int threads) {
    return all_finite(threads, pointer<void>(data), dtype, numel);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled kernels; mergekern.backends.cpu is their face.";
  m.attr("BLOCK") = kBlock;
  m.attr("CHUNK") = kChunk;
  bind_enums(m);
  bind_structs(m);
  bind_operations(m);
  bind_arrays(m);
  m.def("fuse_batch", &run_batch);
  m.def("instruction_sets", &names_of_instruction_sets);
  m.def("philox", [](std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> counter, uint64_t seed) {
    const auto [c0, c1, c2, c3] = counter;
    const Words4 out = philox4x32_10(c0, c1, c2, c3, philox_keys(seed));
    return std::make_tuple(out.w[0], out.w[1], out.w[2], out.w[3]);
  });
}
