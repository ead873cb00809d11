// Whether a run of numbers holds neither NaN nor Inf, at the speed of reading it.
#pragma once
#include "cpu/blocks.h"

namespace mergekern {
namespace MK_ISA {
namespace {

template <typename M>
bool finite_words(const void* data, int64_t begin, int64_t end, M abs, M infinity) {
  const auto* x = at<M>(data, 0);
  for (int64_t i = begin; i < end;) {
    const int64_t stop = end - i < kStep ? end : i + kStep;
    M largest = 0;
    for (; i < stop; ++i) largest = most(largest, static_cast<M>(x[i].value & abs));
    if (largest >= infinity) return false;
  }
  return true;
}

bool all_finite(const void* data, DType dtype, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f64:
      return finite_words<uint64_t>(data, begin, end, Bits<double>::abs, Bits<double>::inf);
    case DType::f32:
      return finite_words<uint32_t>(data, begin, end, Bits<float>::abs, Bits<float>::inf);
    case DType::f16: return finite_words<uint16_t>(data, begin, end, 0x7fff, 0x7c00);
    case DType::bf16: return finite_words<uint16_t>(data, begin, end, 0x7fff, kInfinityBF16);
  }
  return false;
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
