// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

#include <cstdlib>
#include <cstring>

#include "norms.h"
#include "points.h"

namespace sapa_mm {

namespace plain {
template <typename T>
const RowKernels<T>& kernels();
template <typename T, typename Stored>
const PackKernels<T, Stored>& pack_kernels();
template <typename T>
const PointKernels<T>& point_kernels();
template <typename T>
const NormKernels<T>& norm_kernels();
}  // namespace plain
#if defined(__x86_64__)
namespace avx2 {
template <typename T>
const RowKernels<T>& kernels();
template <typename T, typename Stored>
const PackKernels<T, Stored>& pack_kernels();
template <typename T>
const PointKernels<T>& point_kernels();
template <typename T>
const NormKernels<T>& norm_kernels();
}  // namespace avx2
namespace avx512 {
template <typename T>
const RowKernels<T>& kernels();
template <typename T, typename Stored>
const PackKernels<T, Stored>& pack_kernels();
template <typename T>
const PointKernels<T>& point_kernels();
template <typename T>
const NormKernels<T>& norm_kernels();
}  // namespace avx512
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

#if defined(__x86_64__)
#define SAPA_MM_CHOOSE(FUNCTION)                                               \
  if (std::strcmp(cpu_capability(), "avx512") == 0) return avx512::FUNCTION(); \
  if (std::strcmp(cpu_capability(), "avx2") == 0) return avx2::FUNCTION();     \
  return plain::FUNCTION();
#else
#define SAPA_MM_CHOOSE(FUNCTION) return plain::FUNCTION();
#endif

template <typename T>
const RowKernels<T>& row_kernels() {
  SAPA_MM_CHOOSE(template kernels<T>)
}

template <typename T, typename Stored>
const PackKernels<T, Stored>& pack_kernels() {
#define SAPA_MM_PACK pack_kernels<T, Stored>
  SAPA_MM_CHOOSE(template SAPA_MM_PACK)
}

template <typename T>
const PointKernels<T>& point_kernels() {
  SAPA_MM_CHOOSE(template point_kernels<T>)
}

template <typename T>
const NormKernels<T>& norm_kernels() {
  SAPA_MM_CHOOSE(template norm_kernels<T>)
}

template const NormKernels<float>& norm_kernels<float>();
template const NormKernels<double>& norm_kernels<double>();
template const PointKernels<float>& point_kernels<float>();
template const PointKernels<double>& point_kernels<double>();
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();
template const PackKernels<float, float>& pack_kernels<float, float>();
template const PackKernels<double, double>& pack_kernels<double, double>();
template const PackKernels<float, HalfBits>& pack_kernels<float, HalfBits>();
template const PackKernels<float, BFloat16Bits>& pack_kernels<float, BFloat16Bits>();

}  // namespace sapa_mm
