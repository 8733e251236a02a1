// SPDX-License-Identifier: Apache-2.0
// Deformable assembly on the GPU; the kernels are in samples.cuh.
#include "../deformable_assembly.h"

#include <torch/library.h>

#include "sampling.h"

namespace sapa_mm {
namespace {

struct DeformableAssemblyCuda {
  template <typename scalar_t>
  static void forward(const at::Tensor& feature, const at::Tensor& weights, const at::Tensor& offset, int64_t groups,
                      const at::Tensor& output) {
    const c10::cuda::CUDAGuard guard(feature.device());
    sampling_of<scalar_t>(offset, groups)
        .assemble(view_of<at::opmath_type<scalar_t>>(weights), view_of<scalar_t>(feature),
                  mutable_view_of<scalar_t>(output));
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_output, const at::Tensor& feature, const at::Tensor& weights,
                       const at::Tensor& offset, int64_t groups, const at::Tensor& grad_feature,
                       const at::Tensor& grad_weights, const at::Tensor& grad_offset) {
    using acc_t = at::opmath_type<scalar_t>;
    const c10::cuda::CUDAGuard guard(feature.device());
    const auto sampling = sampling_of<scalar_t>(offset, groups);
    if (grad_feature.defined()) spread_samples<scalar_t>(sampling, weights, grad_output, grad_feature);
    if (grad_weights.defined() || grad_offset.defined())
      sampling.correlate(view_of<scalar_t>(grad_output), view_of<scalar_t>(feature),
                         mutable_view_of<acc_t>(grad_weights), view_of<acc_t>(weights),
                         mutable_view_of<scalar_t>(grad_offset));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CUDA, m) {
  m.impl("deformable_assembly", &DeformableAssembly<DeformableAssemblyCuda>::forward);
  m.impl("_deformable_assembly_backward", &DeformableAssembly<DeformableAssemblyCuda>::backward);
}

}  // namespace sapa_mm
