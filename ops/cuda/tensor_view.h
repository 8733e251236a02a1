// SPDX-License-Identifier: Apache-2.0
// From tensors to what the kernels take.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "view.cuh"

namespace sapa_mm {

template <typename scalar_t>
View<const scalar_t> view_of(const at::Tensor& x) {
  return {x.const_data_ptr<scalar_t>(),
          x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          x.stride(0),
          x.stride(1),
          x.stride(2),
          x.stride(3)};
}

// An undefined tensor gives a view without data.
template <typename scalar_t>
View<scalar_t> mutable_view_of(const at::Tensor& x) {
  if (!x.defined()) return {};
  return {x.mutable_data_ptr<scalar_t>(),
          x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          x.stride(0),
          x.stride(1),
          x.stride(2),
          x.stride(3)};
}

}  // namespace sapa_mm
