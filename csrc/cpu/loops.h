// The CPU loops as a table of functions, one table per instruction set.
#pragma once
#include "fused_op.h"

namespace mergekern {

constexpr int64_t kBlock = 4096;   // elements of one partial sum (backends/__init__.py: BLOCK)
constexpr int64_t kChunk = 65536;  // elements of one piece of work, and of one in-range count

inline int64_t pieces_of(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

struct Findings {
  uint8_t* non_finite;  // [1 + K]: the base, then the experts
  bool overflow;
};

// Counts of one bracket: `above` and `histogram` add up over calls, `chunks` is indexed by chunk.
struct Counter {
  int64_t above;
  int64_t* histogram;
  int64_t* chunks;
};

// The factors of a product of two thin matrices, one pair for each slab of a tensor: its element
// (i, j) is left[i, 0] * right[0, j] + left[i, 1] * right[1, j] + ...
struct LowRank {
  const float* left;    // [slabs, rows, rank]
  const float* right;   // [slabs, rank, columns]
  const float* factor;  // what the result is multiplied by: [slabs * rows], or [columns]; or null
  bool by_column;       // which of the two
  int64_t rows, columns;
  int32_t rank;
  float scale;
};

// The left factor of a product: element (i, k) is data[i * row_step + k * step] * reduction *
// weight, without the reduction where k - i is `diagonal`, each product rounded.
struct Factor {
  const void* data;
  DType dtype;
  int64_t row_step, step;
  double reduction, weight;
  int64_t diagonal;
};

constexpr int64_t kDenseRows = 192;        // of a factor that are packed at once
constexpr int64_t kPanel = 128;            // rows of a triangle that are solved for at once
constexpr int64_t kDenseRoom = 56 * 1024;  // doubles: what is packed

// A method that is a function of each element; see cpu/elementwise.h.
enum class Formula : int32_t {
  near_swap,
  overlap_mean,
  importance,
  fusion,
  consensus,
  fisher,
  stitch
};
struct Elementwise {
  Formula formula;
  double t;  // near_swap: how far a difference is taken over whole; consensus, stitch: the scale
  double epsilon;  // near_swap: the least difference; overlap_mean: the largest that is no change;
                   // fusion: the least importance of one that is taken over; consensus: the least
                   // number of masks; fisher: what is added to every diagonal
  const double* rows;  // importance, fusion: a factor for each row of the tensor
  int64_t width;       // of a row
};

// A base and what is added to it where an element is marked; see cpu/packed.h.
struct Marked {
  const void* base;
  DType base_dtype;
  const void* delta;
  DType delta_dtype;
  const uint8_t* packed;
  int64_t first;  // bit of the first element
  double scale;
};

// What is made of the deltas of a tile; null where nobody asks. See cpu/unify.h.
struct Unify {
  void* out;  // the task vector that stands for all, in the dtype `stored`
  DType stored;
  uint8_t* const* masks;  // [K]: where each one agrees with it, a bit for each element
  double* sums;           // [chunks, K, 2]: sum |d| of each, and of what stands for it
};

// Every function handles the elements [begin, end) of the tile; `wide` computes in fp64. begin is a
// multiple of kChunk, so pieces may run in any order on any thread.
struct Loops {
  const char* name;
  void (*fuse)(const FusedOp&, const Tile&, bool wide, int64_t begin, int64_t end, void* out,
               DType out_dtype, Findings*);
  void (*elementwise)(const Elementwise&, const Tile&, bool wide, int64_t begin, int64_t end,
                      void* out, DType out_dtype, Findings*);
  // counts: [2, K], is added to: what several experts changed, and what each one alone
  void (*overlaps)(const Tile&, bool wide, double epsilon, int64_t begin, int64_t end,
                   int64_t* counts);
  // kept: [K, 2, 2], is added to; open: one bit per element; without out, counts and marks alone
  void (*speculate)(const FusedOp&, const Tile&, const Margin*, bool wide, int64_t begin,
                    int64_t end, void* out, DType out_dtype, Findings*, int64_t* kept,
                    uint8_t* open);
  // the exact windows of a whole tensor; see cpu/rank.h
  void (*rank)(const Tile&, bool wide, const int64_t* ranks, bool by_index, int64_t* windows);
  void (*count)(const Tile&, bool wide, int64_t begin, int64_t end, const Bracket*, int brackets,
                Counter*);
  // out: [blocks, K, 2]; masks: [K], take what was kept, null where nobody asks
  void (*masked_sums)(const FusedOp&, const Tile&, bool wide, int64_t begin, int64_t end,
                      double* out, uint8_t* const* masks);
  // out: [blocks, K]; masks: the same
  void (*energies)(const FusedOp&, const Tile&, bool wide, int64_t begin, int64_t end, double* out,
                   uint8_t* const* masks);
  void (*unify)(const Unify&, const Tile&, bool wide, int64_t begin, int64_t end, Findings*);
  // whole panels of rows, which need not be chunks; masks: [K], null where nothing is dropped
  void (*prune)(const Pruning&, const Odds*, const Tile&, bool wide, int64_t begin, int64_t end,
                uint8_t* const* masks);
  void (*gram)(const Tile&, bool wide, int64_t begin, int64_t end, double* out);  // [blocks, K, K]
  void (*magnitudes)(const Tile&, bool wide, int64_t begin, int64_t end, int expert, int64_t* out);
  bool (*all_finite)(const void* data, DType, int64_t begin, int64_t end);
  // see cpu/lowrank.h; these two go by the elements of a tensor, without a tile; so do those of
  // packed masks
  void (*add_lowrank)(const LowRank&, const void* weight, DType, int64_t begin, int64_t end,
                      float* out);
  void (*sum_squares)(const float* x, int64_t rows, int64_t columns, bool by_column, double* sums);
  // see cpu/dense.h; room: kDenseRoom
  void (*add_product)(const Factor& a, int64_t begin, int64_t end, int64_t n, int64_t k,
                      const double* b, int64_t b_row, double* c, int64_t c_row, double* room);
  void (*substitute)(const double* t, int64_t t_row, int64_t t_step, int64_t n, double* x,
                     int64_t x_row, int64_t columns, double* room);
  int64_t (*factor_panel)(double* a, int64_t row, int64_t n, const double* least);
  void (*add_marked)(const Marked&, bool wide, int64_t begin, int64_t end, void* out);
  // n elements from bit `first` on: 1 in bf16 where one is marked, 0 elsewhere
  void (*marked_ones)(const uint8_t* packed, int64_t first, int64_t n, uint16_t* out);
  // see cpu/elementary.h
  void (*exp)(const double* x, int64_t n, double* out);
  void (*log)(const double* x, int64_t n, double* out);
  void (*total)(const double* x, int64_t rows, int64_t length, double* half, double* out);
};

const Loops& loops(const char* name);      // "" takes the widest that this processor runs
int instruction_sets(const char** names);  // those this processor runs, widest last; the count

}  // namespace mergekern
