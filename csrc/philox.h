// Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC11), and the coin
// that random drop throws with it.
#pragma once
#include "element.h"

namespace mergekern {

struct Words4 {
  uint32_t w[4];
};

// The keys of the ten rounds, which a seed gives.
struct PhiloxKeys {
  uint32_t w[10][2];
};

MK_HD PhiloxKeys philox_keys(uint64_t seed) {
  PhiloxKeys keys{};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    keys.w[round][0] = k0;
    keys.w[round][1] = k1;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return keys;
}

MK_HD Words4 philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                           const PhiloxKeys& keys) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ keys.w[round][0];
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ keys.w[round][1];
    c3 = static_cast<uint32_t>(p0);
  }
  return Words4{{c0, c1, c2, c3}};
}

// Half of the coins of elements 8 * block … 8 * block + 7 of one expert: lane j, 16 bits each, in
// word j / 2, low half first. half = 0 gives the high 16 bits of the eight numbers, 1 the low ones.
MK_HD Words4 coin_half(uint64_t block, uint32_t expert, uint32_t half, uint32_t name_hash,
                       const PhiloxKeys& keys) {
  return philox4x32_10(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                       2 * expert + half, name_hash, keys);
}

MK_HD Words4 coin_half(uint64_t block, uint32_t expert, uint32_t half, uint32_t name_hash,
                       uint64_t seed) {
  return coin_half(block, expert, half, name_hash, philox_keys(seed));
}

MK_HD uint32_t coin_lane(const Words4& words, int lane) {
  return (words.w[lane / 2] >> (16 * (lane % 2))) & 0xffffu;
}

}  // namespace mergekern
