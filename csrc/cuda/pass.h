// One launch over many tiles as plain data: mergekern/backends/device.py (Pass) gives the meaning.
// Every address is one of the device's.
#pragma once
#include <string>
#include <vector>

#include "fused_op.h"
#include "philox.h"

namespace mergekern {

constexpr int kThreads = 256;  // of a block
constexpr int kTurns = 4;      // how often each thread of a fused block takes eight elements
constexpr int64_t kEight = 8;  // elements: one block of Philox, one byte of marks
constexpr int64_t kSpan = kThreads * kTurns * kEight;  // elements of a fused block
constexpr int64_t kSumBlock = 4096;                    // of one partial sum (BLOCK)
constexpr int64_t kCountChunk = 65536;                 // of one in-range count (CHUNK)

// of a row of `segments`; the addresses of the experts follow
enum Column { kBase, kOut, kMarks, kOffset, kNumel, kNameHash, kFirst, kExperts };

struct Pass {
  Rule rule;
  Elect elect;
  Combine combine;
  double scale, divisor;
  PhiloxKeys keys;
  bool has_base, merges;    // without base no deltas are taken, without output nothing is merged
  bool wide;                // computed in fp64
  DType base, expert, out;  // dtypes; `expert` where all are of one
  int32_t experts;          // K
  int64_t tiles, blocks;
  const uint8_t* dtypes;    // [K] of DType; null where all are of one
  const int64_t* segments;  // [tiles, kExperts + K]
  const double* scalars;    // [K, 3]: coef, vote, share
  const int64_t* coins;     // [K, 2]: index, keep_below
  const int64_t* windows;   // [tiles, K, per_expert, 4]: lo, lo_last, hi, hi_last; null: no trim
  int32_t per_expert;       // windows: 1, or 3: given, strict and wide; 0 without
  int32_t* found;           // [tiles, 2 + K]
  int64_t* kept;            // [tiles, K, 2, 2]
  uint32_t* doubts;         // [blocks]: scratch, not 0 where a block is to be done over again
};

// What the host knows of an expert's scalars, to choose kernels by.
struct Scalars {
  double coef, vote, share;
  uint32_t index;
  int64_t keep_below;
};

struct BracketRow {
  int64_t expert, low, shift, bins, first;  // first: its first bin in tallies, or -1
};

// Where launches go; plain numbers, so that callers need no CUDA header.
struct Queue {
  int device;
  void* stream;
};

// Each returns what went wrong with the launch, or an empty string. None waits.
std::string fuse(const Pass& pass, const std::vector<Scalars>& scalars, Queue queue);
// `chunks` and `blocks` are those of the one tile.
std::string count(const Pass& pass, int64_t chunks, const BracketRow* brackets, int32_t count,
                  int64_t* above, int64_t* inside, int64_t* tallies, Queue queue);
std::string masked_sums(const Pass& pass, int64_t blocks, double* out, Queue queue);
std::string gram(const Pass& pass, int64_t blocks, double* out, Queue queue);
// back: from lines[0] to the tiles' outputs; otherwise from base and experts to a line each.
std::string gather(const Pass& pass, const int64_t* index, const int64_t* starts,
                   const int64_t* lines, int64_t count, bool back, Queue queue);

}  // namespace mergekern
