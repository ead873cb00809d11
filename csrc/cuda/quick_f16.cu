#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace mergekern {

std::string quick_f16(const QuickArgs& args, Queue queue) {
  return launch_quick<Float16>(args, queue);
}

}  // namespace mergekern
