#include "cuda/general.cuh"
#include "cuda/kernels.h"

namespace mergekern {
namespace {

template <typename Work>
std::string general(const Pass& pass, bool doubted, Queue queue) {
  const typename General<Work>::Args args{pass, doubted};
  return run_blocks<General<Work>>("fuse", args, General<Work>::blocks_of(args), queue);
}

}  // namespace

std::string general_f32(const Pass& pass, bool doubted, Queue queue) {
  return general<float>(pass, doubted, queue);
}

std::string general_f64(const Pass& pass, bool doubted, Queue queue) {
  return general<double>(pass, doubted, queue);
}

}  // namespace mergekern
