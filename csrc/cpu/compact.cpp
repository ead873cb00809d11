// Compact: the open elements of a tile, side by side. Put: back to where they were.
#include <vector>

#include "cpu/passes.h"
#include "cpu/pool.h"

namespace mergekern {
namespace {

// Calls f(word, bits) for the words of a piece that are not zero; bits behind numel do not count.
template <typename F>
void each_word(const uint8_t* open, int64_t numel, int64_t piece, F&& f) {
  const int64_t begin = piece * kChunk;
  const int64_t end = numel - begin < kChunk ? numel : begin + kChunk;
  for (int64_t at = begin; at < end; at += 64) {
    const int64_t left = end - at < 64 ? end - at : 64;
    uint64_t bits = 0;
    __builtin_memcpy(&bits, open + at / 8, static_cast<size_t>((left + 7) / 8));
    if (left < 64) bits &= (uint64_t{1} << left) - 1;
    if (bits) f(at, bits);
  }
}

// Where the processor need not have an instruction for it, compilers count by a table in memory.
int ones(uint64_t bits) {
  bits -= bits >> 1 & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
  bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int>(bits * 0x0101010101010101u >> 56);
}

template <typename T>
void gather(const void* from, const int64_t* index, int64_t n, void* to) {
  const auto* x = static_cast<const char*>(from);
  auto* y = static_cast<char*>(to);
  for (int64_t i = 0; i < n; ++i) {
    __builtin_memcpy(y + i * sizeof(T), x + index[i] * sizeof(T), sizeof(T));
  }
}

void gather(DType dtype, const void* from, const int64_t* index, int64_t n, void* to,
            int64_t start) {
  auto* y = static_cast<char*>(to);
  switch (dtype) {
    case DType::f64: return gather<uint64_t>(from, index, n, y + 8 * start);
    case DType::f32: return gather<uint32_t>(from, index, n, y + 4 * start);
    case DType::f16:
    case DType::bf16: return gather<uint16_t>(from, index, n, y + 2 * start);
  }
}

template <typename T>
void put(const void* from, const int64_t* index, int64_t begin, int64_t end, void* to) {
  const auto* x = static_cast<const char*>(from);
  auto* y = static_cast<char*>(to);
  for (int64_t i = begin; i < end; ++i) {
    __builtin_memcpy(y + index[i] * sizeof(T), x + i * sizeof(T), sizeof(T));
  }
}

}  // namespace

std::vector<int64_t> open_starts(int threads, const uint8_t* open, int64_t numel) {
  const int64_t pieces = pieces_of(numel);
  std::vector<int64_t> starts(static_cast<size_t>(pieces) + 1, 0);
  parallel_for(threads, pieces, [&](int, int64_t piece) {
    int64_t sum = 0;
    each_word(open, numel, piece, [&](int64_t, uint64_t bits) { sum += ones(bits); });
    starts[piece + 1] = sum;
  });
  for (int64_t piece = 0; piece < pieces; ++piece) starts[piece + 1] += starts[piece];
  return starts;
}

void compact(int threads, const Tile& t, const uint8_t* open, const int64_t* starts, int64_t* index,
             void* base, void* const* experts) {
  parallel_for(threads, pieces_of(t.numel), [&](int, int64_t piece) {
    int64_t* const mine = index + starts[piece];
    int64_t n = 0;
    each_word(open, t.numel, piece, [&](int64_t at, uint64_t bits) {
      for (; bits; bits &= bits - 1) mine[n++] = at + __builtin_ctzll(bits);
    });
    if (t.base) gather(t.base_dtype, t.base, mine, n, base, starts[piece]);
    for (int k = 0; k < t.count; ++k) {
      gather(t.experts[k].dtype, t.experts[k].data, mine, n, experts[k], starts[piece]);
    }
  });
}

void put(int threads, DType dtype, const void* from, const int64_t* index, int64_t n, void* to) {
  parallel_for(threads, pieces_of(n), [&](int, int64_t piece) {
    const int64_t begin = piece * kChunk, end = begin + kChunk < n ? begin + kChunk : n;
    switch (dtype) {
      case DType::f64: return put<uint64_t>(from, index, begin, end, to);
      case DType::f32: return put<uint32_t>(from, index, begin, end, to);
      case DType::f16:
      case DType::bf16: return put<uint16_t>(from, index, begin, end, to);
    }
  });
}

}  // namespace mergekern
