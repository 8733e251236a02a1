// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

#include <cstdlib>
#include <cstring>

namespace sapa_mm {

namespace plain {
template <typename T>
const RowKernels<T>& kernels();
}
#if defined(__x86_64__)
namespace avx2 {
template <typename T>
const RowKernels<T>& kernels();
}
namespace avx512 {
template <typename T>
const RowKernels<T>& kernels();
}
#endif

// ATEN_CPU_CAPABILITY, torch's own variable ("default", "avx2", "avx512"), lowers the choice.
const char* cpu_capability() {
  static const char* const chosen = [] {
#if defined(__x86_64__)
    const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
    const bool only_plain = wanted && std::strcmp(wanted, "default") == 0;
    const bool at_most_avx2 = only_plain || (wanted && std::strcmp(wanted, "avx2") == 0);
    if (!at_most_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return "avx512";
    if (!only_plain && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "plain";
  }();
  return chosen;
}

template <typename T>
const RowKernels<T>& row_kernels() {
#if defined(__x86_64__)
  if (std::strcmp(cpu_capability(), "avx512") == 0) return avx512::kernels<T>();
  if (std::strcmp(cpu_capability(), "avx2") == 0) return avx2::kernels<T>();
#endif
  return plain::kernels<T>();
}

template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

}  // namespace sapa_mm
