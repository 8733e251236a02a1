// SPDX-License-Identifier: Apache-2.0
// Deformable scores on the GPU; the kernels are in samples.cuh.
#include "../deformable_scores.h"

#include <torch/library.h>

#include "sampling.h"

namespace sapa_mm {
namespace {

struct DeformableScoresCuda {
  template <typename scalar_t>
  static void forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& offset, int64_t groups,
                      const at::Tensor& scores) {
    const c10::cuda::CUDAGuard guard(query.device());
    sampling_of<scalar_t>(offset, groups)
        .correlate(view_of<scalar_t>(query), view_of<scalar_t>(key), mutable_view_of<at::opmath_type<scalar_t>>(scores),
                   {}, {});
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_scores, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& offset, int64_t groups, const at::Tensor& grad_query,
                       const at::Tensor& grad_key, const at::Tensor& grad_offset) {
    using acc_t = at::opmath_type<scalar_t>;
    const c10::cuda::CUDAGuard guard(query.device());
    const auto sampling = sampling_of<scalar_t>(offset, groups);
    if (grad_query.defined())
      sampling.assemble(view_of<acc_t>(grad_scores), view_of<scalar_t>(key), mutable_view_of<scalar_t>(grad_query));
    if (grad_key.defined()) spread_samples<scalar_t>(sampling, grad_scores, query, grad_key);
    if (grad_offset.defined())
      sampling.correlate(view_of<scalar_t>(query), view_of<scalar_t>(key), {}, view_of<acc_t>(grad_scores),
                         mutable_view_of<scalar_t>(grad_offset));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CUDA, m) {
  m.impl("deformable_scores", &DeformableScores<DeformableScoresCuda>::forward);
  m.impl("_deformable_scores_backward", &DeformableScores<DeformableScoresCuda>::backward);
}

}  // namespace sapa_mm
