// Elements here and there of many tiles, to lie behind one another; and outputs back to where they
// belong.
#pragma once
#include "cuda/tables.cuh"

namespace mergekern {

struct GatherArgs {
  Pass pass;
  const int64_t* index;   // [count]: places in their tiles, tile after tile; none where below 0
  const int64_t* starts;  // [tiles + 1]: where each tile's begin
  const int64_t* lines;   // addresses: of base and experts to be filled; of outputs to be read
  int64_t count;
};

MK_DEVICE int64_t size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

MK_DEVICE void copy_element(const void* from, int64_t i, void* to, int64_t j, DType dtype) {
  switch (size_of(dtype)) {
    case 2: return store_bytes(load_bytes<uint16_t>(from, i), to, j);
    case 4: return store_bytes(load_bytes<uint32_t>(from, i), to, j);
    default: return store_bytes(load_bytes<uint64_t>(from, i), to, j);
  }
}

// The tile that number i of the index belongs to; empty ones have none.
MK_DEVICE int64_t tile_of_index(const GatherArgs& a, int64_t i) {
  int64_t low = 0, high = a.pass.tiles;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (a.starts[middle] <= i) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <bool kBack>
struct Gather {
  static constexpr int kResident = 2;
  static constexpr int kEach = 4;  // elements of a thread
  using Args = GatherArgs;
  struct Shared {};

  static int64_t blocks_of(const Args& a) {
    return (a.count + kThreads * kEach - 1) / (kThreads * kEach);
  }

  MK_MEMBER void before(const Args&, int64_t, int, Shared*) {}

  MK_MEMBER void main(const Args& a, int64_t block, int thread, Shared*) {
    for (int turn = 0; turn < kEach; ++turn) {
      const int64_t i = (block * kEach + turn) * kThreads + thread;
      if (i >= a.count) return;
      const int64_t place = a.index[i];
      if (place < 0) continue;
      move(a, row_of(a.pass, tile_of_index(a, i)), i, place);
    }
  }

  MK_MEMBER void after(const Args&, int64_t, int, Shared*) {}

 private:
  MK_MEMBER void move(const Args& a, const int64_t* row, int64_t i, int64_t place) {
    if (kBack) {
      copy_element(address(a.lines[0]), i, address(row[kOut]), place, a.pass.out);
      return;
    }
    copy_element(address(row[kBase]), place, address(a.lines[0]), i, a.pass.base);
    for (int k = 0; k < a.pass.experts; ++k) {
      copy_element(address(row[kExperts + k]), place, address(a.lines[1 + k]), i,
                   dtype_of(a.pass, k));
    }
  }
};

}  // namespace mergekern
