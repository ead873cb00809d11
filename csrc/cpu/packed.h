// Packed masks as they are stored: element i of a tensor is bit i mod 8 of byte i / 8. A stretch of
// them may begin at any bit.
#pragma once
#include <type_traits>

#include "cpu/thin.h"

namespace mergekern {
namespace MK_ISA {
namespace {

// bits = those from bit `first` of the packed ones on; n bits, and nothing behind their last byte
inline void shifted_bits(const uint8_t* packed, int first, uint8_t* bits, int n) {
  const int bytes = (n + 7) / 8, held = (first + n + 7) / 8;
  for (int i = 0; i + 1 < held; ++i) {
    bits[i] = static_cast<uint8_t>((packed[i] | packed[i + 1] << 8) >> first);
  }
  if (bytes == held) bits[bytes - 1] = static_cast<uint8_t>(packed[bytes - 1] >> first);
}

// d = 0 where an element is not kept; kept: as of unpack_block
template <typename Work>
void keep_marked(const uint16_t* __restrict__ kept, Work* __restrict__ d, int n) {
  using M = typename Bits<Work>::type;
  using Signed = std::make_signed_t<M>;
  for (int i = 0; i < n; ++i) {
    const M all = static_cast<M>(Signed{static_cast<int16_t>(kept[i])});
    d[i] = bit_cast<Work>(static_cast<M>(bit_cast<M>(d[i]) & all));
  }
}

// out = base + scale d where an element is marked, base elsewhere
template <typename Work>
void add_marked(const Marked& x, int64_t begin, int64_t end, Work* out) {
  const Scratch<Work> scratch(2);
  Work *base = scratch[0], *d = scratch[1];
  const Work scale = static_cast<Work>(x.scale);
  alignas(64) uint16_t kept[kStep + kLanesOf16];
  uint8_t bits[kStep / 8];
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    widen_block(x.base, x.base_dtype, at, base, n);
    widen_block(x.delta, x.delta_dtype, at, d, n);
    shifted_bits(x.packed + (x.first + at) / 8, static_cast<int>((x.first + at) % 8), bits, n);
    unpack_block(bits, kept, n);
    keep_marked(kept, d, n);
    for (int i = 0; i < n; ++i) out[at + i] = base[i] + d[i] * scale;
  }
}

void marked_ones(const uint8_t* packed, int64_t first, int64_t n, uint16_t* out) {
  constexpr uint16_t kOne = 0x3f80;  // 1 in bf16
  alignas(64) uint16_t kept[kStep + kLanesOf16];
  uint8_t bits[kStep / 8];
  for (int64_t at = 0; at < n; at += kStep) {
    const int some = static_cast<int>(n - at < kStep ? n - at : kStep);
    shifted_bits(packed + (first + at) / 8, static_cast<int>((first + at) % 8), bits, some);
    unpack_block(bits, kept, some);
    for (int i = 0; i < some; ++i) out[at + i] = kept[i] & kOne;
  }
}

void add_marked(const Marked& x, bool wide, int64_t begin, int64_t end, void* out) {
  wide ? add_marked(x, begin, end, static_cast<double*>(out))
       : add_marked(x, begin, end, static_cast<float*>(out));
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
