// SPDX-License-Identifier: Apache-2.0
// What every operator asks of its inputs before memory is touched. The public Python functions ask first and in more
// words; these hold for callers of torch.ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "window.h"

namespace sapa_mm {

inline void check_kernel_size(int64_t kernel_size) {
  TORCH_CHECK_VALUE(kernel_size % 2 == 1 && kernel_size >= 1 && kernel_size <= kMaxKernelSize,
                    "kernel_size must be odd and between 1 and ", kMaxKernelSize, ", got ", kernel_size);
}

// `x`, a low-resolution map, has windows with this border.
inline void check_border(const at::Tensor& x, const char* name, int64_t kernel_size, int64_t border) {
  TORCH_CHECK_VALUE(border >= 0 && border < 3, "border must be 0 to 2, got ", border);
  TORCH_CHECK_VALUE(static_cast<Border>(border) == Border::kZero || std::min(x.size(2), x.size(3)) >= kernel_size, name,
                    " must have at least kernel_size = ", kernel_size, " rows and columns for border ", border,
                    ", got ", x.sizes());
}

inline void check_device(const at::Tensor& reference, const char* reference_name, const at::Tensor& x,
                         const char* name) {
  TORCH_CHECK_VALUE(x.device() == reference.device(), reference_name, " and ", name, " must be on one device, got ",
                    reference.device(), " and ", x.device());
}

// `x` is a map like `reference` in batch size, dtype and device.
inline void check_map(const at::Tensor& reference, const char* reference_name, const at::Tensor& x, const char* name) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, " must have 4 dimensions (N, C, H, W), got ", x.dim());
  TORCH_CHECK_TYPE(x.scalar_type() == reference.scalar_type(), reference_name, " and ", name,
                   " must have one dtype, got ", reference.scalar_type(), " and ", x.scalar_type());
  check_device(reference, reference_name, x, name);
  TORCH_CHECK_VALUE(x.size(0) == reference.size(0), reference_name, " and ", name, " must have one batch size, got ",
                    reference.size(0), " and ", x.size(0));
}

// `x`, a gradient, something saved or a parameter, has this shape and dtype and the device of `reference`.
inline void check_tensor(const at::Tensor& reference, const char* reference_name, const at::Tensor& x, const char* name,
                         at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(x.sizes() == shape, name, " must have shape ", shape, ", got ", x.sizes());
  TORCH_CHECK_TYPE(x.scalar_type() == dtype, name, " must have dtype ", dtype, " for ", reference_name, " of ",
                   reference.scalar_type(), ", got ", x.scalar_type());
  check_device(reference, reference_name, x, name);
}

inline void check_groups(int64_t channels, int64_t groups) {
  TORCH_CHECK_VALUE(groups >= 1 && channels % groups == 0, "groups must divide the number of channels, got ", groups,
                    " groups and ", channels, " channels");
}

inline void check_query_and_key(const at::Tensor& query, const at::Tensor& key) {
  check_map(query, "query", query, "query");
  check_map(query, "query", key, "key");
  TORCH_CHECK_VALUE(query.size(1) == key.size(1), "query and key must have the same number of channels, got ",
                    query.size(1), " and ", key.size(1));
}

// `x` has the height and width of `reference`.
inline void check_size(const at::Tensor& reference, const char* reference_name, const at::Tensor& x, const char* name) {
  TORCH_CHECK_VALUE(x.size(2) == reference.size(2) && x.size(3) == reference.size(3), reference_name, " and ", name,
                    " must have the same height and width, got ", reference.sizes(), " and ", x.sizes());
}

// Offsets of the points of every group; `x` tells batch size, dtype and device.
inline void check_offset(const at::Tensor& x, const char* name, const at::Tensor& offset, int64_t groups) {
  check_map(x, name, offset, "offset");
  check_groups(x.size(1), groups);
  TORCH_CHECK_VALUE(offset.size(1) > 0 && offset.size(1) % (2 * groups) == 0,
                    "offset must have 2 * groups * points channels, got ", offset.size(1), " for ", groups, " groups");
}

// A map without positions cannot fill an output that has some.
inline void check_not_empty(const at::Tensor& x, const char* name, int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(x.size(2) * x.size(3) > 0, name, " is empty, ", x.sizes(), ", where the output has size ", height,
                    " x ", width);
}

}  // namespace sapa_mm
