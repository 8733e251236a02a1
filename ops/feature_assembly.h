// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "checks.h"

namespace sapa_mm {

inline void check_feature_assembly(const at::Tensor& feature, const at::Tensor& kernels, int64_t kernel_size,
                                   int64_t groups) {
  check_kernel_size(kernel_size);
  check_map(feature, "feature", feature, "feature");
  check_map(feature, "feature", kernels, "kernels");
  check_groups(feature.size(1), groups);
  TORCH_CHECK_VALUE(kernels.size(1) == groups * kernel_size * kernel_size,
                    "kernels must have groups * kernel_size**2 = ", groups * kernel_size * kernel_size,
                    " channels, got ", kernels.size(1));
}

}  // namespace sapa_mm
