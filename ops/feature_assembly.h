// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Dispatch.h>

#include "checks.h"
#include "layout.h"

namespace sapa_mm {

inline void check_feature_assembly(const at::Tensor& feature, const at::Tensor& weights, int64_t kernel_size,
                                   int64_t groups, int64_t border) {
  check_kernel_size(kernel_size);
  check_map(feature, "feature", feature, "feature");
  check_map(feature, "feature", weights, "kernels");
  check_groups(feature.size(1), groups);
  check_border(feature, "feature", kernel_size, border);
  TORCH_CHECK_VALUE(weights.size(1) == groups * kernel_size * kernel_size,
                    "kernels must have groups * kernel_size**2 = ", groups * kernel_size * kernel_size,
                    " channels, got ", weights.size(1));
}

// The operators, of which a Backend computes forward<scalar_t> and backward<scalar_t>: of dense maps, into an output
// that has elements. What the public function calls `kernels` are weights here.
template <typename Backend>
struct FeatureAssembly {
  static at::Tensor forward(const at::Tensor& feature, const at::Tensor& weights, int64_t kernel_size, int64_t groups,
                            int64_t border) {
    check_feature_assembly(feature, weights, kernel_size, groups, border);
    const at::Tensor output =
        empty_following(feature, {feature.size(0), feature.size(1), weights.size(2), weights.size(3)});
    if (output.numel() == 0) return output;
    check_not_empty(feature, "feature", weights.size(2), weights.size(3));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feature.scalar_type(), "feature_assembly", [&] {
      Backend::template forward<scalar_t>(dense(feature), dense(weights), static_cast<int>(kernel_size), groups,
                                          static_cast<Border>(border), output);
    });
    return output;
  }

  static std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& feature,
                                                     const at::Tensor& weights, int64_t kernel_size, int64_t groups,
                                                     int64_t border, std::array<bool, 2> needs_grad) {
    check_feature_assembly(feature, weights, kernel_size, groups, border);
    check_tensor(feature, "feature", grad_output, "grad",
                 {feature.size(0), feature.size(1), weights.size(2), weights.size(3)}, feature.scalar_type());
    const Inputs<2> inputs{&feature, &weights};
    Gradients<2> grads = make_gradients(inputs, needs_grad);
    const bool computes = grad_output.numel() > 0;
    if (computes) {
      check_not_empty(feature, "feature", weights.size(2), weights.size(3));
      AT_DISPATCH_FLOATING_TYPES_AND2(
          at::kHalf, at::kBFloat16, feature.scalar_type(), "feature_assembly_backward", [&] {
            Backend::template backward<scalar_t>(dense(grad_output), dense(feature), dense(weights),
                                                 static_cast<int>(kernel_size), groups, static_cast<Border>(border),
                                                 grads[0], grads[1]);
          });
    }
    return as_tuple(grads, inputs, computes);
  }
};

}  // namespace sapa_mm
