// SPDX-License-Identifier: Apache-2.0
// Feature assembly on the GPU; the kernels are in feature_assembly.cuh.
#include "../feature_assembly.h"

#include <torch/library.h>

#include "feature_assembly.cuh"
#include "tensor_view.h"

namespace sapa_mm {
namespace {

struct FeatureAssemblyCuda {
  template <typename scalar_t>
  static void forward(const at::Tensor& feature, const at::Tensor& weights, int kernel_size, int64_t groups,
                      Border border, const at::Tensor& output) {
    const c10::cuda::CUDAGuard guard(feature.device());
    AssemblyForward<scalar_t, at::opmath_type<scalar_t>, cudaStream_t>{
        view_of<scalar_t>(feature),        view_of<scalar_t>(weights),       kernel_size, groups, border,
        mutable_view_of<scalar_t>(output), c10::cuda::getCurrentCUDAStream()}();
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_output, const at::Tensor& feature, const at::Tensor& weights,
                       int kernel_size, int64_t groups, Border border, const at::Tensor& grad_feature,
                       const at::Tensor& grad_weights) {
    const c10::cuda::CUDAGuard guard(feature.device());
    AssemblyBackward<scalar_t, at::opmath_type<scalar_t>, cudaStream_t>{view_of<scalar_t>(grad_output),
                                                                        view_of<scalar_t>(feature),
                                                                        view_of<scalar_t>(weights),
                                                                        kernel_size,
                                                                        groups,
                                                                        border,
                                                                        mutable_view_of<scalar_t>(grad_feature),
                                                                        mutable_view_of<scalar_t>(grad_weights),
                                                                        c10::cuda::getCurrentCUDAStream()}();
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CUDA, m) {
  m.impl("feature_assembly", &FeatureAssembly<FeatureAssemblyCuda>::forward);
  m.impl("_feature_assembly_backward", &FeatureAssembly<FeatureAssemblyCuda>::backward);
}

}  // namespace sapa_mm
