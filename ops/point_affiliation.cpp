// SPDX-License-Identifier: Apache-2.0
// Schemas; the public function and the meaning of the arguments are in sapa_mm/ops/point_affiliation.py.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(sapa_mm, m) {
  // -> output (N, C, H, W), normalizer (N, H, W) in the dtype of the sums: what the backward rebuilds the weights with
  m.def(
      "point_affiliation(Tensor query, Tensor key, Tensor value, int kernel_size, int normalization, int border) -> "
      "(Tensor, "
      "Tensor)");
  // Gradients that are not needed come back empty.
  m.def(
      "_point_affiliation_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor normalizer, int "
      "kernel_size, int normalization, int border, bool[3] needs_grad) -> (Tensor, Tensor, Tensor)");
}
