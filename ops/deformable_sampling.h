// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Functions.h>
#include <ATen/OpMathType.h>

#include "checks.h"

namespace sapa_mm {

inline void check_offset(const at::Tensor& offset, int64_t groups) {
  TORCH_CHECK_VALUE(groups >= 1 && offset.size(1) > 0 && offset.size(1) % (2 * groups) == 0,
                    "offset must have 2 * groups * points channels, got ", offset.size(1), " for ", groups, " groups");
}

// `x` has the height and width of `offset`.
inline void check_size(const at::Tensor& offset, const at::Tensor& x, const char* name) {
  TORCH_CHECK_VALUE(x.size(2) == offset.size(2) && x.size(3) == offset.size(3), name,
                    " and offset must have the same height and width, got ", x.sizes(), " and ", offset.sizes());
}

inline void check_deformable_scores(const at::Tensor& query, const at::Tensor& key, const at::Tensor& offset,
                                    int64_t groups) {
  check_query_and_key(query, key);
  check_map(query, "query", offset, "offset");
  check_groups(query.size(1), groups);
  check_offset(offset, groups);
  check_size(offset, query, "query");
}

// `kernels`, and the gradient of the scores: one number for each point, in the dtype of the sums.
inline void check_point_map(const at::Tensor& kernels, const at::Tensor& offset, const char* name) {
  TORCH_CHECK_VALUE(kernels.dim() == 4, name, " must have 4 dimensions (N, groups * points, H, W), got ",
                    kernels.dim());
  TORCH_CHECK_TYPE(kernels.scalar_type() == at::toOpMathType(offset.scalar_type()), name, " must have dtype ",
                   at::toOpMathType(offset.scalar_type()), " for offset of ", offset.scalar_type(), ", got ",
                   kernels.scalar_type());
  TORCH_CHECK_VALUE(kernels.device() == offset.device(), name, " and offset must be on one device, got ",
                    kernels.device(), " and ", offset.device());
  TORCH_CHECK_VALUE(kernels.size(0) == offset.size(0) && 2 * kernels.size(1) == offset.size(1), name,
                    " must have the batch size and half the channels of offset, got ", kernels.sizes(), " and ",
                    offset.sizes());
  check_size(offset, kernels, name);
}

inline void check_deformable_assembly(const at::Tensor& feature, const at::Tensor& kernels, const at::Tensor& offset,
                                      int64_t groups) {
  check_map(feature, "feature", feature, "feature");
  check_map(feature, "feature", offset, "offset");
  check_groups(feature.size(1), groups);
  check_offset(offset, groups);
  check_point_map(kernels, offset, "kernels");
}

// For one number of each point, in the dtype of the sums.
inline at::Tensor room_for_scores(const at::Tensor& offset) {
  return at::empty({offset.size(0), offset.size(1) / 2, offset.size(2), offset.size(3)},
                   offset.options().dtype(at::toOpMathType(offset.scalar_type())));
}

}  // namespace sapa_mm
