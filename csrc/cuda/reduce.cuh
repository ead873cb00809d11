// Sums in fp64 over fixed blocks, as the reference adds them: lane i mod 16 takes its elements in
// order, then the lanes are added in order. Each thread is a lane.
#pragma once
#include "cuda/general.cuh"

namespace mergekern {

constexpr int kLanes = 16;
constexpr int kUnits = kThreads / kLanes;  // sums that a block of threads adds up at once

struct SumArgs {
  Pass pass;
  int64_t units;  // sums: blocks of the tile times experts, or times pairs of them
  double* out;
};

MK_DEVICE double add_lanes(const double* lane) {
  double sum = 0;
  for (int j = 0; j < kLanes; ++j) sum = sum + lane[j];
  return sum;
}

template <typename Work>
MK_DEVICE Work load1(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::bf16: return static_cast<Work>(widen(load_bytes<BFloat16>(data, i)));
    case DType::f16: return static_cast<Work>(widen(load_bytes<Float16>(data, i)));
    case DType::f32: return static_cast<Work>(widen(load_bytes<float>(data, i)));
    case DType::f64: return static_cast<Work>(widen(load_bytes<double>(data, i)));
  }
  return 0;
}

template <typename Work>
MK_DEVICE Work delta1(const Pass& p, const int64_t* row, int k, int64_t i) {
  const Work x = load1<Work>(address(row[kExperts + k]), dtype_of(p, k), i);
  return p.has_base ? x - load1<Work>(address(row[kBase]), p.base, i) : x;
}

template <typename Work>
MK_DEVICE Work masked1(const Pass& p, const int64_t* row, int k, int64_t i, Work d) {
  using U = typename Bits<Work>::type;
  const int64_t element = row[kOffset] + i, keep_below = p.coins[2 * k + 1];
  if (p.windows) {
    const int64_t* w = window_of(p, 0, k, 0);
    d = trim(d, cut_at<U>(w[0], w[1], element), cut_at<U>(w[2], w[3], element));
  }
  if (keep_below > UINT32_MAX) return d;
  const uint64_t block = static_cast<uint64_t>(element / kEight);
  const uint32_t index = static_cast<uint32_t>(p.coins[2 * k]);
  const uint32_t name = static_cast<uint32_t>(row[kNameHash]);
  const int lane = static_cast<int>(element % kEight);
  const uint32_t coin = coin_lane(coin_half(block, index, 0, name, p.keys), lane) << 16 |
                        coin_lane(coin_half(block, index, 1, name, p.keys), lane);
  return coin < static_cast<uint32_t>(keep_below) ? d : Work(0);
}

// unit = block * K + expert
template <typename Work>
struct MaskedSums {
  static constexpr int kResident = 1;
  using Args = SumArgs;
  struct Shared {
    double lane[kUnits][2][kLanes];
  };

  MK_MEMBER void before(const Args&, int64_t, int, Shared*) {}

  MK_MEMBER void main(const Args& a, int64_t block, int thread, Shared* shared) {
    const int64_t unit = block * kUnits + thread / kLanes;
    if (unit >= a.units) return;
    const Pass& p = a.pass;
    const int64_t* row = row_of(p, 0);
    const int k = static_cast<int>(unit % p.experts);
    const int64_t begin = unit / p.experts * kSumBlock, numel = row[kNumel];
    const int64_t end = numel - begin < kSumBlock ? numel : begin + kSumBlock;
    double before = 0, after = 0;
    MK_ROLLED for (int64_t i = begin + thread % kLanes; i < end; i += kLanes) {
      const Work d = delta1<Work>(p, row, k, i);
      const Work kept = masked1(p, row, k, i, d);
      before = before + static_cast<double>(bit_cast<Work>(magnitude(d)));
      after = after + static_cast<double>(bit_cast<Work>(magnitude(kept)));
    }
    shared->lane[thread / kLanes][0][thread % kLanes] = before;
    shared->lane[thread / kLanes][1][thread % kLanes] = after;
  }

  MK_MEMBER void after(const Args& a, int64_t block, int thread, Shared* shared) {
    const int64_t unit = block * kUnits + thread / 2;
    if (thread >= 2 * kUnits || unit >= a.units) return;
    a.out[unit * 2 + thread % 2] = add_lanes(shared->lane[thread / 2][thread % 2]);
  }
};

// unit = block * pairs + pair; pair (x, y), y <= x, is number x (x + 1) / 2 + y
template <typename Work>
struct Gram {
  static constexpr int kResident = 1;
  using Args = SumArgs;
  struct Shared {
    double lane[kUnits][kLanes];
  };
  struct Unit {
    int64_t block;
    int x, y;
  };

  MK_MEMBER Unit unit_of(const Args& a, int64_t unit) {
    const int64_t pairs = static_cast<int64_t>(a.pass.experts) * (a.pass.experts + 1) / 2;
    int64_t pair = unit % pairs;
    int x = 0;
    while (pair > x) pair -= ++x;
    return Unit{unit / pairs, x, static_cast<int>(pair)};
  }

  MK_MEMBER void before(const Args&, int64_t, int, Shared*) {}

  MK_MEMBER void main(const Args& a, int64_t block, int thread, Shared* shared) {
    const int64_t unit = block * kUnits + thread / kLanes;
    if (unit >= a.units) return;
    const Unit u = unit_of(a, unit);
    const int64_t* row = row_of(a.pass, 0);
    const int64_t begin = u.block * kSumBlock, numel = row[kNumel];
    const int64_t end = numel - begin < kSumBlock ? numel : begin + kSumBlock;
    double sum = 0;
    MK_ROLLED for (int64_t i = begin + thread % kLanes; i < end; i += kLanes) {
      const double x = static_cast<double>(delta1<Work>(a.pass, row, u.x, i));
      const double product = x * static_cast<double>(delta1<Work>(a.pass, row, u.y, i));
      sum = sum + product;
    }
    shared->lane[thread / kLanes][thread % kLanes] = sum;
  }

  MK_MEMBER void after(const Args& a, int64_t block, int thread, Shared* shared) {
    const int64_t unit = block * kUnits + thread;
    if (thread >= kUnits || unit >= a.units) return;
    const Unit u = unit_of(a, unit);
    double* matrix = a.out + u.block * a.pass.experts * a.pass.experts;
    const double sum = add_lanes(shared->lane[thread]);
    matrix[u.x * a.pass.experts + u.y] = matrix[u.y * a.pass.experts + u.x] = sum;
  }
};

}  // namespace mergekern
