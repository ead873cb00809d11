#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace mergekern {

std::string quick_f32(const QuickArgs& args, Queue queue) {
  return launch_quick<float>(args, queue);
}

}  // namespace mergekern
