// SPDX-License-Identifier: Apache-2.0
// Schemas; the public function and the meaning of the arguments are in sapa_mm/ops/deformable_scores.py. Scores have
// the dtype of the sums: float32 for half, bfloat16 and float32, else float64.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(sapa_mm, m) {
  m.def("deformable_scores(Tensor query, Tensor key, Tensor offset, int groups) -> Tensor");
  // Gradients that are not needed come back empty.
  m.def(
      "_deformable_scores_backward(Tensor grad, Tensor query, Tensor key, Tensor offset, int groups, bool[3] "
      "needs_grad) -> (Tensor, Tensor, Tensor)");
}
