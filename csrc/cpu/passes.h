// One operation over a whole tile: its pieces on threads, and what they found brought together.
#pragma once
#include <string>
#include <vector>

#include "cpu/loops.h"

namespace mergekern {

struct How {
  std::string isa;
  int threads;
  bool wide;
};

struct Found {
  std::vector<int> non_finite;  // -1 the base, else the place of an expert
  bool overflow = false;
};

Found fuse(const How&, const FusedOp&, const Tile&, void* out, DType out_dtype);
Found elementwise(const How&, const Elementwise&, const Tile&, void* out, DType out_dtype);

Found unify(const How&, const Unify&, const Tile&);

// [2, K]: how many elements several experts changed by more than epsilon, and each one alone
std::vector<int64_t> overlaps(const How&, const Tile&, double epsilon);

// kept: [K, 2, 2], is added to; open: one bit per element; out may be null
Found speculate(const How&, const FusedOp&, const Tile&, const Margin*, void* out, DType out_dtype,
                int64_t* kept, uint8_t* open);

// The elements whose bit is set: starts[piece] tells how many come before those of a piece, and
// the last entry, behind all pieces, how many there are.
std::vector<int64_t> open_starts(int threads, const uint8_t* open, int64_t numel);

// Their places into `index`, their values into base and experts, at starts[piece] each.
void compact(int threads, const Tile&, const uint8_t* open, const int64_t* starts, int64_t* index,
             void* base, void* const* experts);

// to[index[i]] = from[i] for i below n; ascending
void put(int threads, DType, const void* from, const int64_t* index, int64_t n, void* to);

// Adds to the tallies, [threads, bins], and to the counts per chunk; returns the counts above.
std::vector<int64_t> count(const How&, const Tile&, const std::vector<Bracket>&,
                           const std::vector<int64_t*>& tallies,
                           const std::vector<int64_t*>& chunks);

// masks: [K], take what was kept by anything but windows on magnitudes; null where nobody asks
void masked_sums(const How&, const FusedOp&, const Tile&, double* out,
                 const std::vector<uint8_t*>& masks);
void energies(const How&, const FusedOp&, const Tile&, double* out,
              const std::vector<uint8_t*>& masks);
void gram(const How&, const Tile&, double* out);
void magnitudes(const How&, const Tile&, int expert, int64_t* out);

// masks: [K], null where an expert keeps all; the tile is whole panels
void prune(const How&, const Pruning&, const std::vector<Odds>&, const Tile&,
           const std::vector<uint8_t*>& masks);

bool all_finite(int threads, const void* data, DType, int64_t numel);

}  // namespace mergekern
