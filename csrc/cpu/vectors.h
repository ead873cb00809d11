// One register full of numbers, as wide as the instruction set has them, and the few things done
// with it that C++ has no operator for. GCC and Clang turn arithmetic on these types, comparisons
// (0 or -1 per lane) and ?: into the instructions at hand.
#pragma once
#include <stdint.h>

#include "element.h"
#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in gcc 12's own header (its bug 105593)
#endif
#include <immintrin.h>
#endif

namespace mergekern {
namespace MK_ISA {

#if defined(__AVX512F__)
#define MK_WIDTH 64
#elif defined(__AVX2__)
#define MK_WIDTH 32
#else
#define MK_WIDTH 16
#endif

typedef float Floats __attribute__((vector_size(MK_WIDTH)));
typedef int32_t Ints __attribute__((vector_size(MK_WIDTH)));
typedef uint32_t Words __attribute__((vector_size(MK_WIDTH)));
typedef int16_t Shorts __attribute__((vector_size(MK_WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(MK_WIDTH)));

constexpr int kLanesOf32 = MK_WIDTH / 4;
constexpr int kLanesOf16 = MK_WIDTH / 2;

// Memory may lie at any byte.
MK_HD Words load(const void* from) {
  Words v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <typename V>
MK_HD void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

// Past the caches, for what nobody reads soon; `to` is aligned to the width.
MK_HD void stream(void* to, Words v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
#elif defined(__SSE2__)
  _mm_stream_si128(static_cast<__m128i*>(to), reinterpret_cast<__m128i>(v));
#else
  store(to, v);
#endif
}

MK_HD void put(void* to, Words v, bool streamed) {
  if (streamed) {
    stream(to, v);
  } else {
    store(to, v);
  }
}

// Streamed stores are not ordered with others: fence before another thread may look.
MK_HD void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// bf16 pairs: on a little-endian machine element 2j is the low half of word j. Working on the even
// and the odd elements apart takes one operation each to widen, and no lane ever moves.
MK_HD Floats widen_even(Words v) { return reinterpret_cast<Floats>(v << 16); }
MK_HD Floats widen_odd(Words v) { return reinterpret_cast<Floats>(v & 0xffff0000u); }

// The lower halves of the words of one, the upper halves of the other.
MK_HD Words blend_halves(Words lower, Words upper) {
#if defined(__AVX512BW__)
  return reinterpret_cast<Words>(_mm512_mask_blend_epi16(
      0xAAAAAAAAu, reinterpret_cast<__m512i>(lower), reinterpret_cast<__m512i>(upper)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(
      _mm256_blend_epi16(reinterpret_cast<__m256i>(lower), reinterpret_cast<__m256i>(upper), 0xAA));
#else
  return (lower & 0xffffu) | (upper & 0xffff0000u);
#endif
}

// The upper halves of `even` and `odd`, in the order of the elements.
MK_HD Words join_upper(Words even, Words odd) { return blend_halves(even >> 16, odd); }

// A NaN of an fp32 input may have all bits set, which rounding would carry over into a number.
MK_HD Floats plain_nan(Floats x) { return x == x ? x : Floats{} + __builtin_nanf(""); }

// As round_to(float, BFloat16&), but for NaN, in the upper halves.
MK_HD Words round_upper(Floats x) {
  const Words u = reinterpret_cast<Words>(x);
  return u + 0x7fffu + ((u >> 16) & 1u);
}

MK_HD Words magnitude_words(Floats x) { return reinterpret_cast<Words>(x) & 0x7fffffffu; }

MK_HD Floats only(Ints mask, Floats x) { return mask ? x : Floats{}; }

// A bit for every lane of a mask, in which a lane is all ones or all zeros.
#if MK_WIDTH == 64
using MaskBits = uint32_t;  // of a register of 16-bit lanes
#elif MK_WIDTH == 32
using MaskBits = uint16_t;
#else
using MaskBits = uint8_t;
#endif

MK_HD MaskBits bits_of_16(Words mask) {
#if defined(__AVX512BW__)
  return _mm512_movepi16_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  const auto bytes = static_cast<uint32_t>(_mm256_movemask_epi8(reinterpret_cast<__m256i>(mask)));
  return static_cast<MaskBits>(_pext_u32(bytes, 0x55555555u));
#else
  const Halves halves = reinterpret_cast<Halves>(mask);
  MaskBits bits = 0;
  for (int i = 0; i < kLanesOf16; ++i) bits |= static_cast<MaskBits>((halves[i] & 1u) << i);
  return bits;
#endif
}

// The other way round: a mask of 16-bit lanes from its bits in memory.
MK_HD Words words_of_16(const uint8_t* from) {
  MaskBits bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
#if defined(__AVX512BW__)
  return reinterpret_cast<Words>(_mm512_movm_epi16(bits));
#else
  Halves lane;
  for (int i = 0; i < kLanesOf16; ++i) lane[i] = static_cast<uint16_t>(1u << i);
  return reinterpret_cast<Words>(((Halves{} + bits) & lane) == lane);
#endif
}

MK_HD uint32_t bits_of_32(Ints mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanesOf32; ++i) bits |= (static_cast<uint32_t>(mask[i]) & 1u) << i;
  return bits;
#endif
}

MK_HD void add_bits(MaskBits bits, uint8_t* to) {
  MaskBits before;
  __builtin_memcpy(&before, to, sizeof(bits));
  bits = static_cast<MaskBits>(bits | before);
  __builtin_memcpy(to, &bits, sizeof(bits));
}

// The larger magnitudes of 16-bit numbers.
MK_HD Halves larger_of(Halves largest, Words v) {
  const Halves m = reinterpret_cast<Halves>(v & 0x7fff7fffu);
  return m > largest ? m : largest;
}

MK_HD int64_t sum_of(Ints v) {
  int64_t sum = 0;
  for (int i = 0; i < kLanesOf32; ++i) sum += v[i];
  return sum;
}

}  // namespace MK_ISA
}  // namespace mergekern
