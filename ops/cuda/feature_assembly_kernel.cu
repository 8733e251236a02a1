// SPDX-License-Identifier: Apache-2.0
// Feature assembly on the GPU; the kernels are in window_kernels.cuh.
#include "../feature_assembly.h"

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include "../gradients.h"
#include "tensor_view.h"
#include "window_kernels.cuh"

namespace sapa_mm {
namespace {

at::Tensor feature_assembly_cuda(const at::Tensor& feature, const at::Tensor& kernels, int64_t kernel_size,
                                 int64_t groups) {
  check_feature_assembly(feature, kernels, kernel_size, groups);
  const c10::cuda::CUDAGuard guard(feature.device());
  at::Tensor output = at::empty({feature.size(0), feature.size(1), kernels.size(2), kernels.size(3)}, feature.options(),
                                feature.suggest_memory_format());
  if (output.numel() == 0) return output;
  check_not_empty(feature, "feature", kernels.size(2), kernels.size(3));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feature.scalar_type(), "feature_assembly_cuda", [&] {
    AssemblyForward<scalar_t, at::opmath_type<scalar_t>, cudaStream_t>{
        view_of<scalar_t>(feature),        view_of<scalar_t>(kernels),       kernel_size, groups,
        mutable_view_of<scalar_t>(output), c10::cuda::getCurrentCUDAStream()}();
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor> feature_assembly_backward_cuda(const at::Tensor& grad, const at::Tensor& feature,
                                                                  const at::Tensor& kernels, int64_t kernel_size,
                                                                  int64_t groups, std::array<bool, 2> needs_grad) {
  check_feature_assembly(feature, kernels, kernel_size, groups);
  check_map(feature, "feature", grad, "grad");
  const c10::cuda::CUDAGuard guard(feature.device());
  const Inputs<2> inputs{&feature, &kernels};
  Gradients<2> grads = make_gradients(inputs, needs_grad);
  if (grad.numel() == 0) {
    make_zero(grads);
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, feature.scalar_type(), "feature_assembly_backward_cuda", [&] {
          AssemblyBackward<scalar_t, at::opmath_type<scalar_t>, cudaStream_t>{view_of<scalar_t>(grad),
                                                                              view_of<scalar_t>(feature),
                                                                              view_of<scalar_t>(kernels),
                                                                              kernel_size,
                                                                              groups,
                                                                              mutable_view_of<scalar_t>(grads[0]),
                                                                              mutable_view_of<scalar_t>(grads[1]),
                                                                              c10::cuda::getCurrentCUDAStream()}();
        });
  }
  return as_tuple(grads, inputs);
}

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CUDA, m) {
  m.impl("feature_assembly", &feature_assembly_cuda);
  m.impl("_feature_assembly_backward", &feature_assembly_backward_cuda);
}

}  // namespace sapa_mm
