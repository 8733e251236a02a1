// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Dispatch.h>
#include <c10/util/Optional.h>

#include "checks.h"
#include "layout.h"

namespace sapa_mm {

using OptionalTensor = c10::optional<at::Tensor>;  // std::optional from torch 2.4 on

inline void check_channel_norm(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias) {
  check_map(x, "x", x, "x");
  for (const auto& [parameter, name] : {std::pair(&weight, "weight"), std::pair(&bias, "bias")})
    if (*parameter) check_tensor(x, "x", **parameter, name, {x.size(1)}, (*parameter)->scalar_type());
}

// What the forward of a norm over the channels of x saves.
inline void check_moments(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& rstd) {
  check_tensor(x, "x", mean, "mean", {x.size(0), x.size(2), x.size(3)}, at::toOpMathType(x.scalar_type()));
  check_tensor(x, "x", rstd, "rstd", mean.sizes(), mean.scalar_type());
}

// The operators, of which a Backend computes forward<scalar_t> and backward<scalar_t>: of contiguous maps that have
// elements. The gradients of the parameters are computed in the dtype of the sums.
template <typename Backend>
struct ChannelNorm {
  static std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& x, const OptionalTensor& weight,
                                                                const OptionalTensor& bias, double eps) {
    check_channel_norm(x, weight, bias);
    const at::Tensor output = at::empty(x.sizes(), x.options());
    const at::Tensor mean = empty_sums(x, {x.size(0), x.size(2), x.size(3)}), rstd = at::empty_like(mean);
    if (x.numel() > 0)
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "channel_norm", [&] {
        Backend::template forward<scalar_t>(x.contiguous(), weight, bias, eps, output, mean, rstd);
      });
    return {output, mean, rstd};
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& x,
                                                                 const OptionalTensor& weight,
                                                                 const OptionalTensor& bias, const at::Tensor& mean,
                                                                 const at::Tensor& rstd, double /*eps*/,
                                                                 std::array<bool, 3> needs_grad) {
    check_channel_norm(x, weight, bias);
    check_tensor(x, "x", grad_output, "grad", x.sizes(), x.scalar_type());
    check_moments(x, mean, rstd);
    at::Tensor grads[3];
    if (needs_grad[0]) grads[0] = at::empty(x.sizes(), x.options());
    if (needs_grad[1] && weight) grads[1] = at::zeros({x.size(1)}, mean.options());
    if (needs_grad[2] && bias) grads[2] = at::zeros({x.size(1)}, mean.options());
    if (x.numel() > 0)
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "channel_norm_backward", [&] {
        Backend::template backward<scalar_t>(grad_output.contiguous(), x.contiguous(), weight, mean.contiguous(),
                                             rstd.contiguous(), grads[0], grads[1], grads[2]);
      });
    const auto result = [&](const at::Tensor& grad, const at::Tensor& input) {
      return grad.defined() ? grad.to(input.scalar_type()) : at::empty({0}, input.options());
    };
    return {result(grads[0], x), result(grads[1], weight ? *weight : x), result(grads[2], bias ? *bias : x)};
  }
};

}  // namespace sapa_mm
