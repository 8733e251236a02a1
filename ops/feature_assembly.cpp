// SPDX-License-Identifier: Apache-2.0
// Schemas; the public function and the meaning of the arguments are in sapa_mm/ops/feature_assembly.py.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(sapa_mm, m) {
  m.def("feature_assembly(Tensor feature, Tensor kernels, int kernel_size, int groups, int border) -> Tensor");
  // Gradients that are not needed come back empty.
  m.def(
      "_feature_assembly_backward(Tensor grad, Tensor feature, Tensor kernels, int kernel_size, int groups, int "
      "border, bool[2] "
      "needs_grad) -> (Tensor, Tensor)");
}
