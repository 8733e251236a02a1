// SPDX-License-Identifier: Apache-2.0
// What the two operators of deformable sampling share on the host.
#pragma once

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>

#include "samples.cuh"
#include "tensor_view.h"

namespace sapa_mm {

template <typename scalar_t>
using SamplingOf = Sampling<scalar_t, at::opmath_type<scalar_t>, cudaStream_t>;

template <typename scalar_t>
SamplingOf<scalar_t> sampling_of(const at::Tensor& offset, int64_t groups) {
  return {view_of<scalar_t>(offset), groups, c10::cuda::getCurrentCUDAStream()};
}

// The sums are kept in the type of the accumulation and rounded once.
template <typename scalar_t>
void spread_samples(const SamplingOf<scalar_t>& sampling, const at::Tensor& weights, const at::Tensor& x,
                    const at::Tensor& grad) {
  using acc_t = at::opmath_type<scalar_t>;
  at::globalContext().alertNotDeterministic("gradient of what sapa_mm's deformable sampling reads");
  const bool is_rounded = weights.scalar_type() != grad.scalar_type();
  const at::Tensor sums = is_rounded ? at::zeros_like(grad, grad.options().dtype(weights.scalar_type())) : grad.zero_();
  sampling.spread(view_of<acc_t>(weights), view_of<scalar_t>(x), mutable_view_of<acc_t>(sums));
  if (is_rounded) grad.copy_(sums);
}

}  // namespace sapa_mm
