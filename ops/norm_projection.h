// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "channel_norm.h"

namespace sapa_mm {

inline void check_norm_projection(const at::Tensor& x, const at::Tensor& matrix, const at::Tensor& shift) {
  check_map(x, "x", x, "x");
  TORCH_CHECK_VALUE(matrix.dim() == 2 && matrix.size(1) == x.size(1) && x.size(1) > 0, "matrix must have ", x.size(1),
                    " columns, at least one and one for each channel of x, got ", matrix.sizes());
  check_tensor(x, "x", matrix, "matrix", matrix.sizes(), at::toOpMathType(x.scalar_type()));
  check_tensor(x, "x", shift, "shift", {matrix.size(0)}, matrix.scalar_type());
}

// The operators, of which a Backend computes forward<scalar_t> and backward<scalar_t>: of contiguous maps that have
// elements; the matrix may have no rows.
template <typename Backend>
struct NormProjection {
  static std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& x, const at::Tensor& matrix,
                                                                const at::Tensor& shift, double eps) {
    check_norm_projection(x, matrix, shift);
    const at::Tensor output = at::empty({x.size(0), matrix.size(0), x.size(2), x.size(3)}, x.options());
    const at::Tensor mean = empty_sums(x, {x.size(0), x.size(2), x.size(3)}), rstd = at::empty_like(mean);
    if (x.numel() > 0)
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "norm_projection", [&] {
        Backend::template forward<scalar_t>(x.contiguous(), matrix.contiguous(), shift.contiguous(), eps, output, mean,
                                            rstd);
      });
    return {output, mean, rstd};
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& x,
                                                                 const at::Tensor& matrix, const at::Tensor& shift,
                                                                 const at::Tensor& mean, const at::Tensor& rstd,
                                                                 double /*eps*/, std::array<bool, 3> needs_grad) {
    check_norm_projection(x, matrix, shift);
    check_tensor(x, "x", grad_output, "grad", {x.size(0), matrix.size(0), x.size(2), x.size(3)}, x.scalar_type());
    check_moments(x, mean, rstd);
    const Inputs<3> inputs{&x, &matrix, &shift};
    Gradients<3> grads;
    for (int i = 0; i < 3; ++i)
      if (needs_grad[i]) grads[i] = at::zeros(inputs[i]->sizes(), inputs[i]->options());
    if (x.numel() > 0)
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "norm_projection_backward", [&] {
        Backend::template backward<scalar_t>(grad_output.contiguous(), x.contiguous(), matrix.contiguous(),
                                             mean.contiguous(), rstd.contiguous(), grads[0], grads[1], grads[2]);
      });
    return as_tuple(grads, inputs, true);
  }
};

}  // namespace sapa_mm
