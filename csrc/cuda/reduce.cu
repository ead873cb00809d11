#include "cuda/count.cuh"
#include "cuda/gather.cuh"
#include "cuda/reduce.cuh"

namespace mergekern {
namespace {

int64_t parts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

template <template <typename> class Sum>
std::string sum(const char* name, const SumArgs& a, Queue queue) {
  const int64_t blocks = parts(a.units, kUnits);
  return a.pass.wide ? run_blocks<Sum<double>>(name, a, blocks, queue)
                     : run_blocks<Sum<float>>(name, a, blocks, queue);
}

}  // namespace

std::string count(const Pass& pass, int64_t chunks, const BracketRow* brackets, int32_t count,
                  int64_t* above, int64_t* inside, int64_t* tallies, Queue queue) {
  const CountArgs a{pass, brackets, count, above, inside, tallies};
  const int64_t blocks = chunks * parts(count, kBrackets);
  return pass.wide ? run_blocks<Count<double>>("count", a, blocks, queue)
                   : run_blocks<Count<float>>("count", a, blocks, queue);
}

std::string gather(const Pass& pass, const int64_t* index, const int64_t* starts,
                   const int64_t* lines, int64_t count, bool back, Queue queue) {
  const GatherArgs a{pass, index, starts, lines, count};
  const int64_t blocks = Gather<true>::blocks_of(a);
  return back ? run_blocks<Gather<true>>("scatter", a, blocks, queue)
              : run_blocks<Gather<false>>("gather", a, blocks, queue);
}

std::string masked_sums(const Pass& pass, int64_t blocks, double* out, Queue queue) {
  const SumArgs a{pass, blocks * pass.experts, out};
  return sum<MaskedSums>("masked_sums", a, queue);
}

std::string gram(const Pass& pass, int64_t blocks, double* out, Queue queue) {
  const int64_t pairs = static_cast<int64_t>(pass.experts) * (pass.experts + 1) / 2;
  const SumArgs a{pass, blocks * pairs, out};
  return sum<Gram>("gram", a, queue);
}

}  // namespace mergekern
