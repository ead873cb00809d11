// The fused op as plain data, shared by host and device. mergekern/fused.py gives the meaning.
#pragma once
#include <stdint.h>

namespace mergekern {

enum class DType : int32_t { f64, f32, f16, bf16 };
enum class Rule : int32_t { task_vector, linear_combination };
enum class Elect : int32_t { none, mass, count };
enum class Combine : int32_t { sum, mean, max };

// Magnitudes are the bits of |d|; the cuts move up by one behind their last index.
struct Window {
  uint64_t lo, hi;
  int64_t lo_last, hi_last;
};

inline bool trims(const Window& w) {
  return w.lo != 0 || w.lo_last != INT64_MAX || w.hi < INT64_MAX || w.hi_last != INT64_MAX;
}

struct Expert {
  const void* data;
  DType dtype;
  uint32_t index;  // place in the recipe, names the coin
  bool trim, drop;
  double coef, vote, share;
  Window window;
  uint32_t keep_below;
};

struct FusedOp {
  Rule rule;
  Elect elect;
  Combine combine;
  double scale, divisor;
  uint64_t seed;
  uint32_t name_hash;
  bool ballots_are_values;  // every vote equals its coef: the election looks at the values
};

// K experts and a base (null for linear_combination), from element `offset` of their tensor on.
struct Tile {
  const void* base;
  DType base_dtype;
  const Expert* experts;
  int32_t count;
  int64_t offset;
  int64_t numel;
};

struct Bracket {
  int32_t expert;
  uint64_t low;
  uint32_t shift;
  uint64_t bins;
};

}  // namespace mergekern
