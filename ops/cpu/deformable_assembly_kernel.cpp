// SPDX-License-Identifier: Apache-2.0
// Deformable assembly on the CPU: samples of the feature mixed by weights that are given.
#include "../deformable_assembly.h"

#include <torch/library.h>

#include "planes/sampling.h"

namespace sapa_mm {
namespace {

struct DeformableAssemblyCpu {
  template <typename scalar_t>
  static void forward(const at::Tensor& feature, const at::Tensor& weights, const at::Tensor& offset, int64_t groups,
                      const at::Tensor& output) {
    assemble_samples<scalar_t>(weights, feature, offset, groups, output);
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_output, const at::Tensor& feature, const at::Tensor& weights,
                       const at::Tensor& offset, int64_t groups, const at::Tensor& grad_feature,
                       const at::Tensor& grad_weights, const at::Tensor& grad_offset) {
    if (grad_feature.defined()) spread_samples<scalar_t>(weights, grad_output, offset, groups, grad_feature);
    if (grad_weights.defined() || grad_offset.defined())
      correlate_samples<scalar_t>(grad_output, feature, offset, groups, grad_weights, weights, grad_offset);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("deformable_assembly", &DeformableAssembly<DeformableAssemblyCpu>::forward);
  m.impl("_deformable_assembly_backward", &DeformableAssembly<DeformableAssemblyCpu>::backward);
}

}  // namespace sapa_mm
