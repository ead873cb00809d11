// One launch of a quick kernel: the case that it is compiled for, by number of experts and op.
#pragma once
#include "cuda/choose.h"
#include "cuda/quick.cuh"

namespace mergekern {

template <typename In, Mix kMix, bool kDrops, bool kGuesses, int K = kMost>
std::string launch_count(const QuickArgs& a, Queue queue) {
  if (a.pass.experts == K) {
    return run_blocks<Quick<Case<In, K, kMix, kDrops, kGuesses>>>("fuse", a, a.pass.blocks, queue);
  }
  if constexpr (K > 1) return launch_count<In, kMix, kDrops, kGuesses, K - 1>(a, queue);
  return "fuse: no kernel for that many experts";
}

template <typename In>
std::string launch_quick(const QuickArgs& a, Queue queue) {
  if (a.pass.rule == Rule::linear_combination) {
    return launch_count<In, Mix::linear, false, false>(a, queue);
  }
  if (a.pass.per_expert == 3) return launch_count<In, Mix::elected, false, true>(a, queue);
  if (a.pass.elect == Elect::none) {
    return a.drops ? launch_count<In, Mix::sum, true, false>(a, queue)
                   : launch_count<In, Mix::sum, false, false>(a, queue);
  }
  return a.drops ? launch_count<In, Mix::elected, true, false>(a, queue)
                 : launch_count<In, Mix::elected, false, false>(a, queue);
}

}  // namespace mergekern
