// SPDX-License-Identifier: Apache-2.0
// Deformable sampling on the GPU; the kernels are in sampling_kernels.cuh.
#include "../deformable_sampling.h"

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include "../gradients.h"
#include "sampling_kernels.cuh"
#include "tensor_view.h"

namespace sapa_mm {
namespace {

template <typename scalar_t>
using SamplingOf = Sampling<scalar_t, at::opmath_type<scalar_t>, cudaStream_t>;

// The sums are kept in the type of the accumulation and rounded once.
template <typename scalar_t>
void spread(const SamplingOf<scalar_t>& sampling, const at::Tensor& weights, const at::Tensor& x, at::Tensor& grad) {
  using acc_t = at::opmath_type<scalar_t>;
  at::globalContext().alertNotDeterministic("gradient of what sapa_mm's deformable sampling reads");
  const at::Tensor sums = at::zeros_like(grad, grad.options().dtype(weights.scalar_type()));
  sampling.spread(view_of<acc_t>(weights), view_of<scalar_t>(x), mutable_view_of<acc_t>(sums));
  if (sums.scalar_type() == grad.scalar_type())
    grad = sums;
  else
    grad.copy_(sums);
}

at::Tensor deformable_scores_cuda(const at::Tensor& query, const at::Tensor& key, const at::Tensor& offset,
                                  int64_t groups) {
  check_deformable_scores(query, key, offset, groups);
  const c10::cuda::CUDAGuard guard(query.device());
  const at::Tensor scores = room_for_scores(offset);
  if (scores.numel() == 0) return scores;
  check_not_empty(key, "key", query.size(2), query.size(3));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "deformable_scores_cuda", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    SamplingOf<scalar_t>{view_of<scalar_t>(offset), groups, c10::cuda::getCurrentCUDAStream()}.correlate(
        view_of<scalar_t>(query), view_of<scalar_t>(key), mutable_view_of<acc_t>(scores), {}, {});
  });
  return scores;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> deformable_scores_backward_cuda(const at::Tensor& grad,
                                                                               const at::Tensor& query,
                                                                               const at::Tensor& key,
                                                                               const at::Tensor& offset, int64_t groups,
                                                                               std::array<bool, 3> needs_grad) {
  check_deformable_scores(query, key, offset, groups);
  check_point_map(grad, offset, "grad");
  const c10::cuda::CUDAGuard guard(query.device());
  const Inputs<3> inputs{&query, &key, &offset};
  Gradients<3> grads = make_gradients(inputs, needs_grad);
  if (grad.numel() == 0) {
    make_zero(grads);
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, query.scalar_type(), "deformable_scores_backward_cuda", [&] {
          using acc_t = at::opmath_type<scalar_t>;
          const SamplingOf<scalar_t> sampling{view_of<scalar_t>(offset), groups, c10::cuda::getCurrentCUDAStream()};
          if (needs_grad[0])
            sampling.assemble(view_of<acc_t>(grad), view_of<scalar_t>(key), mutable_view_of<scalar_t>(grads[0]));
          if (needs_grad[1]) spread<scalar_t>(sampling, grad, query, grads[1]);
          if (needs_grad[2])
            sampling.correlate(view_of<scalar_t>(query), view_of<scalar_t>(key), {}, view_of<acc_t>(grad),
                               mutable_view_of<scalar_t>(grads[2]));
        });
  }
  return as_tuple(grads, inputs);
}

at::Tensor deformable_assembly_cuda(const at::Tensor& feature, const at::Tensor& kernels, const at::Tensor& offset,
                                    int64_t groups) {
  check_deformable_assembly(feature, kernels, offset, groups);
  const c10::cuda::CUDAGuard guard(feature.device());
  const at::Tensor output = at::empty({feature.size(0), feature.size(1), offset.size(2), offset.size(3)},
                                      feature.options(), feature.suggest_memory_format());
  if (output.numel() == 0) return output;
  check_not_empty(feature, "feature", offset.size(2), offset.size(3));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feature.scalar_type(), "deformable_assembly_cuda", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    SamplingOf<scalar_t>{view_of<scalar_t>(offset), groups, c10::cuda::getCurrentCUDAStream()}.assemble(
        view_of<acc_t>(kernels), view_of<scalar_t>(feature), mutable_view_of<scalar_t>(output));
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> deformable_assembly_backward_cuda(
    const at::Tensor& grad, const at::Tensor& feature, const at::Tensor& kernels, const at::Tensor& offset,
    int64_t groups, std::array<bool, 3> needs_grad) {
  check_deformable_assembly(feature, kernels, offset, groups);
  check_map(feature, "feature", grad, "grad");
  check_size(offset, grad, "grad");
  const c10::cuda::CUDAGuard guard(feature.device());
  const Inputs<3> inputs{&feature, &kernels, &offset};
  Gradients<3> grads = make_gradients(inputs, needs_grad);
  if (grad.numel() == 0) {
    make_zero(grads);
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, feature.scalar_type(), "deformable_assembly_backward_cuda", [&] {
          using acc_t = at::opmath_type<scalar_t>;
          const SamplingOf<scalar_t> sampling{view_of<scalar_t>(offset), groups, c10::cuda::getCurrentCUDAStream()};
          if (needs_grad[0]) spread<scalar_t>(sampling, kernels, grad, grads[0]);
          if (needs_grad[1] || needs_grad[2])
            sampling.correlate(view_of<scalar_t>(grad), view_of<scalar_t>(feature), mutable_view_of<acc_t>(grads[1]),
                               view_of<acc_t>(kernels), mutable_view_of<scalar_t>(grads[2]));
        });
  }
  return as_tuple(grads, inputs);
}

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CUDA, m) {
  m.impl("deformable_scores", &deformable_scores_cuda);
  m.impl("_deformable_scores_backward", &deformable_scores_backward_cuda);
  m.impl("deformable_assembly", &deformable_assembly_cuda);
  m.impl("_deformable_assembly_backward", &deformable_assembly_backward_cuda);
}

}  // namespace sapa_mm
