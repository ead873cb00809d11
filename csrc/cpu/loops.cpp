// Compiled once per instruction set, MK_ISA naming it: the loops over element.h.
#include "cpu/loops.h"

#include "cpu/dense.h"
#include "cpu/elementary.h"
#include "cpu/elementwise.h"
#include "cpu/finite.h"
#include "cpu/lowrank.h"
#include "cpu/packed.h"
#include "cpu/prune.h"
#include "cpu/rank.h"
#include "cpu/reduce.h"
#include "cpu/select.h"
#include "cpu/speculate.h"
#include "cpu/unify.h"

#define MK_STRING_(x) #x
#define MK_STRING(x) MK_STRING_(x)

namespace mergekern {
namespace MK_ISA {
extern const Loops table;
const Loops table = {
    MK_STRING(MK_ISA),
    [](const FusedOp& op, const Tile& t, bool wide, int64_t begin, int64_t end, void* out,
       DType out_dtype, Findings* found) {
      (wide ? fuse<double> : fuse<float>)(op, t, begin, end, out, out_dtype, found);
    },
    [](const Elementwise& f, const Tile& t, bool wide, int64_t begin, int64_t end, void* out,
       DType out_dtype, Findings* found) {
      (wide ? elementwise<double> : elementwise<float>)(f, t, begin, end, out, out_dtype, found);
    },
    [](const Tile& t, bool wide, double epsilon, int64_t begin, int64_t end, int64_t* counts) {
      (wide ? overlaps<double> : overlaps<float>)(t, epsilon, begin, end, counts);
    },
    [](const FusedOp& op, const Tile& t, const Margin* margins, bool wide, int64_t begin,
       int64_t end, void* out, DType out_dtype, Findings* found, int64_t* kept, uint8_t* open) {
      (wide ? speculate<double> : speculate<float>)(op, t, margins, begin, end, out, out_dtype,
                                                    found, kept, open);
    },
    [](const Tile& t, bool wide, const int64_t* ranks, bool by_index, int64_t* windows) {
      (wide ? rank<double> : rank<float>)(t, ranks, by_index, windows);
    },
    [](const Tile& t, bool wide, int64_t begin, int64_t end, const Bracket* brackets, int n,
       Counter* counters) {
      (wide ? count<double> : count<float>)(t, begin, end, brackets, n, counters);
    },
    [](const FusedOp& op, const Tile& t, bool wide, int64_t begin, int64_t end, double* out,
       uint8_t* const* masks) {
      (wide ? masked_sums<double> : masked_sums<float>)(op, t, begin, end, out, masks);
    },
    [](const FusedOp& op, const Tile& t, bool wide, int64_t begin, int64_t end, double* out,
       uint8_t* const* masks) {
      (wide ? energies<double> : energies<float>)(op, t, begin, end, out, masks);
    },
    [](const Unify& u, const Tile& t, bool wide, int64_t begin, int64_t end, Findings* found) {
      (wide ? unify<double> : unify<float>)(u, t, begin, end, found);
    },
    [](const Pruning& rows, const Odds* odds, const Tile& t, bool wide, int64_t begin, int64_t end,
       uint8_t* const* masks) {
      (wide ? prune<double> : prune<float>)(rows, odds, t, begin, end, masks);
    },
    [](const Tile& t, bool wide, int64_t begin, int64_t end, double* out) {
      (wide ? gram<double> : gram<float>)(t, begin, end, out);
    },
    [](const Tile& t, bool wide, int64_t begin, int64_t end, int expert, int64_t* out) {
      (wide ? magnitudes<double> : magnitudes<float>)(t, begin, end, expert, out);
    },
    all_finite,
    add_lowrank,
    sum_squares,
    add_product,
    substitute,
    factor_panel,
    add_marked,
    marked_ones,
    exp,
    log,
    total,
};

}  // namespace MK_ISA
}  // namespace mergekern
