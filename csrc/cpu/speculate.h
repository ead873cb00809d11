// The two passes as the table of loops has them: each piece goes the fast way where there is one.
#pragma once
#include "cpu/fuse.h"
#include "cpu/guess.h"
#include "cpu/phased.h"

namespace mergekern {
namespace MK_ISA {
namespace {

template <typename Work>
void fuse(const FusedOp& op, const Tile& t, int64_t begin, int64_t end, void* out, DType out_dtype,
          Findings* found) {
  if (sizeof(Work) == sizeof(float) &&
      phased(op, t, nullptr, begin, end, out, out_dtype, found, nullptr, nullptr)) {
    return;
  }
  merge<Work>(op, t, begin, end, out, out_dtype, found);
}

template <typename Work>
void speculate(const FusedOp& op, const Tile& t, const Margin* margins, int64_t begin, int64_t end,
               void* out, DType out_dtype, Findings* found, int64_t* kept, uint8_t* open) {
  if (sizeof(Work) == sizeof(float) &&
      phased(op, t, margins, begin, end, out, out_dtype, found, kept, open)) {
    return;
  }
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t stop = end - at < kBlock ? end : at + kBlock;
    guess<Work>(t, margins, at, stop, kept, open);
    if (out) fuse<Work>(op, t, at, stop, out, out_dtype, found);
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
