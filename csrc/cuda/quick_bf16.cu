#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace mergekern {

std::string quick_bf16(const QuickArgs& args, Queue queue) {
  return launch_quick<BFloat16>(args, queue);
}

}  // namespace mergekern
