// SPDX-License-Identifier: Apache-2.0
// Schemas; the public function and the meaning of the arguments are in sapa_mm/ops/channel_norm.py.
#include <torch/library.h>

// Every backward takes (gradient, inputs, saved outputs, options, needs_grad).
TORCH_LIBRARY_FRAGMENT(sapa_mm, m) {
  // -> output like x; mean and rstd (N, H, W) in the dtype of the sums, for the backward
  m.def("channel_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)");
  // Gradients that are not needed come back empty.
  m.def(
      "_channel_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, float "
      "eps, "
      "bool[3] needs_grad) -> (Tensor, Tensor, Tensor)");
}
