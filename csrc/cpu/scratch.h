// A few blocks of memory for one piece of work.
#pragma once
#include <stdlib.h>

#include "cpu/blocks.h"

namespace mergekern {
namespace MK_ISA {
namespace {

template <typename Work>
struct Scratch {
  explicit Scratch(int arrays)
      : data(static_cast<Work*>(aligned_alloc(64, sizeof(Work) * kStep * arrays))) {}
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
  Work* operator[](int array) const { return data + static_cast<int64_t>(kStep) * array; }
  Work* data;
};

template <typename Work>
void clear(Work* array, int n) {
  for (int i = 0; i < n; ++i) array[i] = 0;
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
