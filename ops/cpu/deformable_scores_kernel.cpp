// SPDX-License-Identifier: Apache-2.0
// Deformable scores on the CPU: queries correlated with samples of the keys.
#include "../deformable_scores.h"

#include <torch/library.h>

#include "planes/sampling.h"

namespace sapa_mm {
namespace {

struct DeformableScoresCpu {
  template <typename scalar_t>
  static void forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& offset, int64_t groups,
                      const at::Tensor& scores) {
    correlate_samples<scalar_t>(query, key, offset, groups, scores, {}, {});
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_scores, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& offset, int64_t groups, const at::Tensor& grad_query,
                       const at::Tensor& grad_key, const at::Tensor& grad_offset) {
    if (grad_query.defined()) assemble_samples<scalar_t>(grad_scores, key, offset, groups, grad_query);
    if (grad_key.defined()) spread_samples<scalar_t>(grad_scores, query, offset, groups, grad_key);
    if (grad_offset.defined()) correlate_samples<scalar_t>(query, key, offset, groups, {}, grad_scores, grad_offset);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("deformable_scores", &DeformableScores<DeformableScoresCpu>::forward);
  m.impl("_deformable_scores_backward", &DeformableScores<DeformableScoresCpu>::backward);
}

}  // namespace sapa_mm
