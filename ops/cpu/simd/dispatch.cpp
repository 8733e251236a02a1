// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <cstdlib>
#include <string>

namespace sapa_mm {

Isa chosen_isa() {
  static const Isa isa = [] {
#if defined(__x86_64__)
    const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string wanted = variable ? variable : "avx512";
    if (wanted == "default") return Isa::kBaseline;
    if (wanted != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return Isa::kAvx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
    return Isa::kBaseline;
  }();
  return isa;
}

}  // namespace sapa_mm
