// Coins by the block: Philox in the 64-bit lanes of a vector register. The compiler cannot see that
// a product of two 32-bit halves is one instruction (it takes the 64-bit multiply, three times as
// dear), so this one loop is written with intrinsics.
#pragma once
#include "fused_op.h"
#include "philox.h"
#if defined(__AVX2__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in gcc 12's own header (its bug 105593)
#endif
#include <immintrin.h>
#endif

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
// Blocks first … first + 4 * Lanes::count - 1; four chains hide the latency of the multiplies. The
// upper halves of the lanes hold rubbish that no product and no store looks at.
static inline void coin_lanes(uint64_t first, uint32_t expert, uint32_t half, const FusedOp& op,
                              uint32_t* out) {
  constexpr int kChains = 4;
  Lanes c0[kChains], c1[kChains], c2[kChains], c3[kChains];
  for (int j = 0; j < kChains; ++j) {
    c0[j] = Lanes::from(first + j * Lanes::count);
    c1[j] = c0[j].high();
    c2[j] = Lanes::all(2 * expert + half);
    c3[j] = Lanes::all(op.name_hash);
  }
  const Lanes m0 = Lanes::all(0xD2511F53u), m1 = Lanes::all(0xCD9E8D57u);
  uint32_t key0 = static_cast<uint32_t>(op.seed), key1 = static_cast<uint32_t>(op.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Lanes k0 = Lanes::all(key0), k1 = Lanes::all(key1);
    for (int j = 0; j < kChains; ++j) {
      const Lanes p0 = m0 * c0[j], p1 = m1 * c2[j];
      c0[j] = p1.high() ^ c1[j] ^ k0;
      c1[j] = p1;
      c2[j] = p0.high() ^ c3[j] ^ k1;
      c3[j] = p0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int j = 0; j < kChains; ++j) {
    Lanes::store(c0[j], c1[j], c2[j], c3[j], out + 4 * j * Lanes::count);
  }
}
#endif

// out[4 * j + w] = word w of the coins of block first + j, for one half of the numbers
static inline void coin_words(uint64_t first, int blocks, uint32_t expert, uint32_t half,
                              const FusedOp& op, uint32_t* out) {
  int j = 0;
#if defined(__AVX2__)
  for (; j + 4 * Lanes::count <= blocks; j += 4 * Lanes::count) {
    coin_lanes(first + j, expert, half, op, out + 4 * j);
  }
#endif
  for (; j < blocks; ++j) {
    const Words4 words = coin_half(first + j, expert, half, op.name_hash, op.seed);
    for (int w = 0; w < 4; ++w) out[4 * j + w] = words.w[w];
  }
}

}  // namespace MK_ISA
}  // namespace mergekern
