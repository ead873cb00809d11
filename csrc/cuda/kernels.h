// The launches that fuse() chooses from; each stands in a file of its own, to be compiled at once.
#pragma once
#include "cuda/choose.h"

namespace mergekern {

std::string quick_bf16(const QuickArgs& args, Queue queue);
std::string quick_f16(const QuickArgs& args, Queue queue);
std::string quick_f32(const QuickArgs& args, Queue queue);

// doubted: only blocks that a quick kernel left
std::string general_f32(const Pass& pass, bool doubted, Queue queue);
std::string general_f64(const Pass& pass, bool doubted, Queue queue);

}  // namespace mergekern
