// Coins by the block: Philox in the 64-bit lanes of a vector register. The compiler cannot see that
// a product of two 32-bit halves is one instruction (it takes the 64-bit multiply, three times as
// dear), so this one loop is written with intrinsics.
#pragma once
#include "cpu/vectors.h"
#include "fused_op.h"
#include "philox.h"

namespace mergekern {
namespace MK_ISA {

#if defined(__AVX512F__)
struct Lanes {
  static constexpr int count = 8;
  __m512i v;
  static Lanes all(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
  static Lanes from(uint64_t x) {
    return {_mm512_add_epi64(all(x).v, _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0))};
  }
  Lanes operator*(Lanes o) const { return {_mm512_mul_epu32(v, o.v)}; }
  Lanes operator^(Lanes o) const { return {_mm512_xor_si512(v, o.v)}; }
  Lanes high() const { return {_mm512_srli_epi64(v, 32)}; }
  // The low halves of a and b as one 64-bit word per lane.
  static __m512i join(Lanes a, Lanes b) {
    return _mm512_mask_blend_epi32(0xAAAA, a.v, _mm512_slli_epi64(b.v, 32));
  }
  static void store(Lanes a, Lanes b, Lanes c, Lanes d, uint32_t* out) {
    const __m512i low = join(a, b), high = join(c, d);
    const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i last = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi64(low, last, high));
  }
};
#elif defined(__AVX2__)
struct Lanes {
  static constexpr int count = 4;
  __m256i v;
  static Lanes all(uint64_t x) { return {_mm256_set1_epi64x(static_cast<int64_t>(x))}; }
  static Lanes from(uint64_t x) {
    return {_mm256_add_epi64(all(x).v, _mm256_set_epi64x(3, 2, 1, 0))};
  }
  Lanes operator*(Lanes o) const { return {_mm256_mul_epu32(v, o.v)}; }
  Lanes operator^(Lanes o) const { return {_mm256_xor_si256(v, o.v)}; }
  Lanes high() const { return {_mm256_srli_epi64(v, 32)}; }
  static __m256i join(Lanes a, Lanes b) {
    return _mm256_blend_epi32(a.v, _mm256_slli_epi64(b.v, 32), 0xAA);
  }
  static void store(Lanes a, Lanes b, Lanes c, Lanes d, uint32_t* out) {
    const __m256i low = join(a, b), high = join(c, d);
    const __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);
    auto* to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
};
#endif

#if defined(__AVX2__)
// What the blocks of one expert have in common. Two words of the counter are the same for all of
// them, and so are two of those that the first two rounds make of it.
struct CoinRun {
  static constexpr int kRounds = 10;
  uint32_t high;  // upper half of the blocks' numbers
  Lanes m0 = Lanes::all(0xD2511F53u), m1 = Lanes::all(0xCD9E8D57u);
  Lanes key0[kRounds], key1[kRounds];
  Lanes first_c2, second_c0, second_c2, third_c3;

  CoinRun(uint32_t upper, uint32_t expert, const FusedOp& op) : high(upper) {
    uint32_t k0 = static_cast<uint32_t>(op.seed), k1 = static_cast<uint32_t>(op.seed >> 32);
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * (2 * expert);
    const uint64_t p0 = uint64_t{0xD2511F53u} * (static_cast<uint32_t>(p1 >> 32) ^ high ^ k0);
    first_c2 = Lanes::all(op.name_hash ^ k1);
    for (int round = 0; round < kRounds; ++round) {
      key0[round] = Lanes::all(k0), key1[round] = Lanes::all(k1);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    second_c0 = Lanes::all(static_cast<uint32_t>(p1)) ^ key0[1];
    second_c2 = Lanes::all(p0 >> 32) ^ key1[1];
    third_c3 = Lanes::all(static_cast<uint32_t>(p0));
  }

  static constexpr int kChains = 4;  // hide the latency of the multiplies
  static constexpr int kBlocks = kChains * Lanes::count;

  // The high halves of blocks first … first + kBlocks - 1. The upper halves of the lanes hold
  // rubbish that no product and no store looks at.
  void words(uint64_t first, uint32_t* out) const {
    Lanes c0[kChains], c1[kChains], c2[kChains], c3[kChains];
    for (int j = 0; j < kChains; ++j) {
      const Lanes p0 = m0 * Lanes::from(first + j * Lanes::count);
      const Lanes p1 = m1 * (p0.high() ^ first_c2);
      c0[j] = p1.high() ^ second_c0;
      c1[j] = p1;
      c2[j] = second_c2 ^ p0;
      c3[j] = third_c3;
    }
#pragma GCC unroll 8
    for (int round = 2; round < kRounds; ++round) {
      for (int j = 0; j < kChains; ++j) {
        const Lanes p0 = m0 * c0[j], p1 = m1 * c2[j];
        c0[j] = p1.high() ^ c1[j] ^ key0[round];
        c1[j] = p1;
        c2[j] = p0.high() ^ c3[j] ^ key1[round];
        c3[j] = p0;
      }
    }
    for (int j = 0; j < kChains; ++j) {
      Lanes::store(c0[j], c1[j], c2[j], c3[j], out + 4 * j * Lanes::count);
    }
  }
};
#endif

// The coins of one expert, by the block: the high halves of their numbers.
class Coins {
 public:
#if defined(__AVX2__)
  Coins(uint32_t expert, const FusedOp& op) : expert_(expert), op_(&op), run_(0, expert, op) {}
#else
  Coins(uint32_t expert, const FusedOp& op) : expert_(expert), op_(&op) {}
#endif

  // out[4 * j + w] = word w of block first + j
  void words(uint64_t first, int64_t blocks, uint32_t* out) {
    int64_t j = 0;
#if defined(__AVX2__)
    for (; j + CoinRun::kBlocks <= blocks; j += CoinRun::kBlocks) {
      const uint64_t from = first + static_cast<uint64_t>(j), last = from + CoinRun::kBlocks - 1;
      if (from >> 32 != last >> 32) break;
      if (from >> 32 != run_.high) run_ = CoinRun(static_cast<uint32_t>(from >> 32), expert_, *op_);
      run_.words(from, out + 4 * j);
    }
#endif
    for (; j < blocks; ++j) {
      const uint64_t block = first + static_cast<uint64_t>(j);
      const Words4 words = coin_half(block, expert_, 0, op_->name_hash, op_->seed);
      for (int w = 0; w < 4; ++w) out[4 * j + w] = words.w[w];
    }
  }

 private:
  uint32_t expert_;
  const FusedOp* op_;
#if defined(__AVX2__)
  CoinRun run_;
#endif
};

}  // namespace MK_ISA
}  // namespace mergekern
