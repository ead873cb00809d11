// The floor of a fused pass: the same streams, nothing to compute. Built by bench/floor.py.
#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

typedef uint64_t Words __attribute__((vector_size(32), aligned(1), may_alias));

void stream(char* to, Words v) {
#if defined(__AVX__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
#else
  *reinterpret_cast<Words*>(to) = v;
#endif
}

using Pass = void (*)(const char* const*, int, char*, int64_t);

// out = xor of all inputs; sizes in bytes, a multiple of 64; out aligned to 64
template <bool kStream, int kAhead>
void pass(const char* const* inputs, int count, char* out, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) {
    Words low{}, high{};
    for (int k = 0; k < count; ++k) {
      low ^= *reinterpret_cast<const Words*>(inputs[k] + at);
      high ^= *reinterpret_cast<const Words*>(inputs[k] + at + 32);
      if (kAhead) __builtin_prefetch(inputs[k] + at + kAhead);
    }
    if (kStream) {
      stream(out + at, low);
      stream(out + at + 32, high);
    } else {
      *reinterpret_cast<Words*>(out + at) = low;
      *reinterpret_cast<Words*>(out + at + 32) = high;
    }
  }
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Which is fastest differs between machines, so all are tried.
const Pass kPasses[] = {
    pass<false, 0>,  pass<false, 512>, pass<false, 1024>, pass<true, 0>,
    pass<true, 256>, pass<true, 512>,  pass<true, 1024>,
};

}  // namespace

extern "C" int floor_spellings() { return sizeof(kPasses) / sizeof(kPasses[0]); }

extern "C" void floor_pass(int spelling, const char* const* inputs, int count, char* out,
                           int64_t bytes) {
  kPasses[spelling](inputs, count, out, bytes);
}
