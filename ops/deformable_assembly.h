// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Dispatch.h>

#include "checks.h"
#include "layout.h"

namespace sapa_mm {

inline void check_deformable_assembly(const at::Tensor& feature, const at::Tensor& weights, const at::Tensor& offset,
                                      int64_t groups) {
  check_map(feature, "feature", feature, "feature");
  check_offset(feature, "feature", offset, groups);
  check_tensor(offset, "offset", weights, "kernels",
               {offset.size(0), offset.size(1) / 2, offset.size(2), offset.size(3)},
               at::toOpMathType(offset.scalar_type()));
}

// The operators, of which a Backend computes forward<scalar_t> and backward<scalar_t>: of dense maps and contiguous
// weights, into results that have elements. What the public function calls `kernels` are weights here.
template <typename Backend>
struct DeformableAssembly {
  static at::Tensor forward(const at::Tensor& feature, const at::Tensor& weights, const at::Tensor& offset,
                            int64_t groups) {
    check_deformable_assembly(feature, weights, offset, groups);
    const at::Tensor output =
        empty_following(feature, {feature.size(0), feature.size(1), offset.size(2), offset.size(3)});
    if (output.numel() == 0) return output;
    check_not_empty(feature, "feature", offset.size(2), offset.size(3));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feature.scalar_type(), "deformable_assembly", [&] {
      Backend::template forward<scalar_t>(dense(feature), weights.contiguous(), dense(offset), groups, output);
    });
    return output;
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_output,
                                                                 const at::Tensor& feature, const at::Tensor& weights,
                                                                 const at::Tensor& offset, int64_t groups,
                                                                 std::array<bool, 3> needs_grad) {
    check_deformable_assembly(feature, weights, offset, groups);
    check_tensor(feature, "feature", grad_output, "grad",
                 {feature.size(0), feature.size(1), offset.size(2), offset.size(3)}, feature.scalar_type());
    const Inputs<3> inputs{&feature, &weights, &offset};
    Gradients<3> grads = make_gradients(inputs, needs_grad);
    const bool computes = grad_output.numel() > 0;
    if (computes) {
      check_not_empty(feature, "feature", offset.size(2), offset.size(3));
      // The backends write the gradient of the weights contiguous; it may have to follow weights that are not.
      const at::Tensor grad_weights = needs_grad[1] ? empty_sums(offset, weights.sizes()) : at::Tensor();
      AT_DISPATCH_FLOATING_TYPES_AND2(
          at::kHalf, at::kBFloat16, feature.scalar_type(), "deformable_assembly_backward", [&] {
            Backend::template backward<scalar_t>(dense(grad_output), dense(feature), weights.contiguous(),
                                                 dense(offset), groups, grads[0], grad_weights, grads[2]);
          });
      if (needs_grad[1]) grads[1] = grad_weights.contiguous(layout_of(weights));
    }
    return as_tuple(grads, inputs, computes);
  }
};

}  // namespace sapa_mm
