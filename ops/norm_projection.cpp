// SPDX-License-Identifier: Apache-2.0
// Schemas; the public function and the meaning of the arguments are in sapa_mm/ops/norm_projection.py.
#include <torch/library.h>

// Every backward takes (gradient, inputs, saved outputs, options, needs_grad).
TORCH_LIBRARY_FRAGMENT(sapa_mm, m) {
  // -> output (N, rows of matrix, H, W) in the dtype of x; mean and rstd (N, H, W) in the dtype of the sums, for the
  // backward
  // matrix and shift in the dtype of the sums
  m.def("norm_projection(Tensor x, Tensor matrix, Tensor shift, float eps) -> (Tensor, Tensor, Tensor)");
  // Gradients that are not needed come back empty.
  m.def(
      "_norm_projection_backward(Tensor grad, Tensor x, Tensor matrix, Tensor shift, Tensor mean, Tensor rstd, float "
      "eps, bool[3] needs_grad) -> (Tensor, Tensor, Tensor)");
}
