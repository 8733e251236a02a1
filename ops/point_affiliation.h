// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "checks.h"

namespace sapa_mm {

inline void check_point_affiliation(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                    int64_t kernel_size, int64_t normalization) {
  check_kernel_size(kernel_size);
  TORCH_CHECK_VALUE(normalization >= 0 && normalization < 4, "normalization must be 0 to 3, got ", normalization);
  check_query_and_key(query, key);
  check_map(query, "query", value, "value");
  TORCH_CHECK_VALUE(key.size(2) == value.size(2) && key.size(3) == value.size(3),
                    "key and value must have the same height and width, got ", key.sizes(), " and ", value.sizes());
}

}  // namespace sapa_mm
