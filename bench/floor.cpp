// The floor of a fused pass: the same streams, nothing to compute. Built by bench/floor.py.
#include <stdint.h>

typedef uint64_t Words __attribute__((vector_size(64), aligned(1), may_alias));

// out = xor of all inputs; sizes in bytes, a multiple of 64
extern "C" void floor_pass(const char* const* inputs, int count, char* out, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) {
    Words sum = *reinterpret_cast<const Words*>(inputs[0] + at);
    for (int k = 1; k < count; ++k) sum ^= *reinterpret_cast<const Words*>(inputs[k] + at);
    *reinterpret_cast<Words*>(out + at) = sum;
  }
}
