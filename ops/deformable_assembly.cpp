// SPDX-License-Identifier: Apache-2.0
// Schemas; the public function and the meaning of the arguments are in sapa_mm/ops/deformable_assembly.py. Kernels have
// the dtype of the sums: float32 for half, bfloat16 and float32, else float64.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(sapa_mm, m) {
  m.def("deformable_assembly(Tensor feature, Tensor kernels, Tensor offset, int groups) -> Tensor");
  // Gradients that are not needed come back empty.
  m.def(
      "_deformable_assembly_backward(Tensor grad, Tensor feature, Tensor kernels, Tensor offset, int groups, bool[3] "
      "needs_grad) -> (Tensor, Tensor, Tensor)");
}
