// Runs the blocks of a launch: threads on a device; loops, where these files are compiled as C++.
//
// A body has three phases, between which a block's threads wait for each other: before(), main()
// and after(), each given (args, block, thread, shared).
#pragma once
#include <string>

#include "cuda/pass.h"
#include "element.h"

#if defined(__CUDACC__)
#define MK_DEVICE static __device__ __forceinline__
#define MK_MEMBER static __device__ __forceinline__
#define MK_COLD static __device__ __noinline__
#define MK_UNROLL _Pragma("unroll")
#define MK_ROLLED _Pragma("unroll 1")
#else
#include <vector>
#define MK_DEVICE static inline __attribute__((always_inline))
#define MK_MEMBER static inline
#define MK_COLD static __attribute__((noinline, unused))
#define MK_UNROLL
#define MK_ROLLED
#endif

namespace mergekern {

#if defined(__CUDACC__)

template <typename Body>
__global__ void __launch_bounds__(kThreads, Body::kResident)
    run_block(const __grid_constant__ typename Body::Args args) {
  __shared__ typename Body::Shared shared;
  const int thread = static_cast<int>(threadIdx.x);
  Body::before(args, blockIdx.x, thread, &shared);
  __syncthreads();
  Body::main(args, blockIdx.x, thread, &shared);
  __syncthreads();
  Body::after(args, blockIdx.x, thread, &shared);
}

// Makes a device current for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    cudaGetDevice(&before_);
    cudaSetDevice(device);
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

template <typename Body>
std::string run_blocks(const char* name, const typename Body::Args& args, int64_t blocks,
                       Queue queue) {
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return std::string(name) + ": too many blocks for one launch";
  const OnDevice current(queue.device);
  run_block<Body>
      <<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(queue.stream)>>>(
          args);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? std::string()
                              : std::string(name) + ": " + cudaGetErrorString(error);
}

#else

template <typename Body>
std::string run_blocks(const char*, const typename Body::Args& args, int64_t blocks, Queue) {
  for (int64_t block = 0; block < blocks; ++block) {
    typename Body::Shared shared;
    for (int thread = 0; thread < kThreads; ++thread) Body::before(args, block, thread, &shared);
    for (int thread = 0; thread < kThreads; ++thread) Body::main(args, block, thread, &shared);
    for (int thread = 0; thread < kThreads; ++thread) Body::after(args, block, thread, &shared);
  }
  return {};
}

#endif

}  // namespace mergekern
