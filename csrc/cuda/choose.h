// Which launches the quick kernels take, and with what scalars; General takes all others.
#pragma once
#include "cuda/pass.h"

namespace mergekern {

constexpr int kMost = 8;  // experts of a quick kernel

constexpr uint32_t kEveryCoin = UINT32_MAX;  // instead of a bound: no coin is thrown

struct QuickArgs {
  Pass pass;
  float coef[kMost], share[kMost];
  uint32_t index[kMost], keep_below[kMost];
  bool drops;
  bool mean;     // shares divide, not the divisor
  bool divides;  // by something other than 1
  float limit;   // outputs are finite below it
};

bool choose_quick(const Pass& pass, const std::vector<Scalars>& scalars, QuickArgs* args);

}  // namespace mergekern
