// What the tables of a launch say: which tile a block handles, cuts at an element, coins.
#pragma once
#include "cuda/eight.cuh"
#include "philox.h"

namespace mergekern {

// The last tile whose first block is not behind this one; empty tiles have no block.
MK_DEVICE int64_t tile_of(const Pass& p, int64_t block) {
  const int64_t width = kExperts + p.experts;
  int64_t low = 0, high = p.tiles;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (p.segments[middle * width + kFirst] <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

MK_DEVICE const int64_t* row_of(const Pass& p, int64_t tile) {
  return p.segments + tile * (kExperts + p.experts);
}

MK_DEVICE void* address(int64_t column) { return reinterpret_cast<void*>(column); }

MK_DEVICE DType dtype_of(const Pass& p, int k) {
  return p.dtypes ? static_cast<DType>(p.dtypes[k]) : p.expert;
}

// A cut moves up by one behind its last index. No magnitude reaches the largest number.
template <typename U>
MK_DEVICE U cut_at(int64_t cut, int64_t last, int64_t index) {
  const uint64_t moved = static_cast<uint64_t>(cut) + (index > last ? 1 : 0);
  return moved > static_cast<uint64_t>(static_cast<U>(-1)) ? static_cast<U>(-1)
                                                           : static_cast<U>(moved);
}

// lo, lo_last, hi, hi_last; which: 0 given, 1 strict, 2 wide
MK_DEVICE const int64_t* window_of(const Pass& p, int64_t tile, int k, int which) {
  return p.windows + ((tile * p.experts + k) * p.per_expert + which) * 4;
}

// The numbers below 2**32 of eight elements, of which `element` is the first.
MK_DEVICE void coins8(const Pass& p, const int64_t* row, int k, int64_t element, uint32_t* coins) {
  const uint64_t block = static_cast<uint64_t>(element / kEight);
  const uint32_t index = static_cast<uint32_t>(p.coins[2 * k]);
  const uint32_t name = static_cast<uint32_t>(row[kNameHash]);
  const Words4 high = coin_half(block, index, 0, name, p.keys);
  const Words4 low = coin_half(block, index, 1, name, p.keys);
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    coins[j] = coin_lane(high, j) << 16 | coin_lane(low, j);
  }
}

}  // namespace mergekern
