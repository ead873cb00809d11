// Products of matrices and systems of equations on threads: a factor, and what is solved with it.
#pragma once
#include <string>
#include <utility>

#include "cpu/loops.h"

namespace mergekern {

// c += a b: [m, n] += [m, k] [k, n]
void product(const std::string& isa, int threads, const Factor& a, int64_t m, int64_t n, int64_t k,
             const double* b, int64_t b_row, double* c, int64_t c_row);

// The upper triangle of a, [n, n], becomes U with U^T U = a; what lies below it is lost. Returns
// n and 0, or the first row of which no more than `least` of its diagonal element is left, and what
// is left of it.
std::pair<int64_t, double> factorise(const std::string& isa, int threads, double* a, int64_t n,
                                     double least);

// x = (U^T U)^-1 x, of so many columns
void solve(const std::string& isa, int threads, const double* u, int64_t n, double* x,
           int64_t columns);

}  // namespace mergekern
