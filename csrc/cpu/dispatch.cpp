// Chooses the table of loops for the processor at hand.
#include <string.h>

#include <stdexcept>
#include <string>

#include "cpu/loops.h"

namespace mergekern {

namespace generic {
extern const Loops table;
}
#ifdef MK_HAS_avx2
namespace avx2 {
extern const Loops table;
}
#endif
#ifdef MK_HAS_avx512
namespace avx512 {
extern const Loops table;
}
#endif

namespace {

int runnable(const Loops** tables) {
  int n = 0;
  tables[n++] = &generic::table;
#ifdef MK_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) tables[n++] = &avx2::table;
#endif
#ifdef MK_HAS_avx512
  if (n == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    tables[n++] = &avx512::table;
  }
#endif
  return n;
}

}  // namespace

int instruction_sets(const char** names) {
  const Loops* tables[3];
  const int n = runnable(tables);
  for (int i = 0; i < n; ++i) names[i] = tables[i]->name;
  return n;
}

const Loops& loops(const char* name) {
  const Loops* tables[3];
  const int n = runnable(tables);
  if (*name == 0) return *tables[n - 1];
  for (int i = 0; i < n; ++i) {
    if (strcmp(tables[i]->name, name) == 0) return *tables[i];
  }
  throw std::invalid_argument(std::string("no loops named ") + name + " run on this processor");
}

}  // namespace mergekern
