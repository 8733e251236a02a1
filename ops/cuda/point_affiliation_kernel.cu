// SPDX-License-Identifier: Apache-2.0
// Point affiliation on the GPU; the kernels are in window_kernels.cuh.
#include "../point_affiliation.h"

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <algorithm>

#include "../gradients.h"
#include "tensor_view.h"
#include "window_kernels.cuh"

namespace sapa_mm {
namespace {

std::tuple<at::Tensor, at::Tensor> point_affiliation_cuda(const at::Tensor& query, const at::Tensor& key,
                                                          const at::Tensor& value, int64_t kernel_size,
                                                          int64_t normalization) {
  check_point_affiliation(query, key, value, kernel_size, normalization);
  const c10::cuda::CUDAGuard guard(query.device());
  const int64_t N = query.size(0), H = query.size(2), W = query.size(3);
  at::Tensor output = at::empty({N, value.size(1), H, W}, value.options(), value.suggest_memory_format());
  at::Tensor normalizer = at::empty({N, H, W}, query.options().dtype(at::toOpMathType(query.scalar_type())));
  if (N * H * W == 0) return {output, normalizer};
  check_not_empty(key, "key", H, W);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "point_affiliation_cuda", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    AffiliationForward<scalar_t, acc_t, cudaStream_t>{view_of<scalar_t>(query),
                                                      view_of<scalar_t>(key),
                                                      view_of<scalar_t>(value),
                                                      kernel_size,
                                                      static_cast<Normalization>(normalization),
                                                      mutable_view_of<scalar_t>(output),
                                                      normalizer.mutable_data_ptr<acc_t>(),
                                                      c10::cuda::getCurrentCUDAStream()}();
  });
  return {output, normalizer};
}

// Images whose weights and gradients of scores are kept at a time: 4 % of the gradient's memory, one image at least.
int64_t images_at_a_time(const at::Tensor& grad, int64_t bytes_per_position) {
  const int64_t images = grad.numel() * grad.element_size() / 25 / (bytes_per_position * grad.size(2) * grad.size(3));
  return std::clamp<int64_t>(images, 1, grad.size(0));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> point_affiliation_backward_cuda(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& normalizer, int64_t kernel_size, int64_t normalization, std::array<bool, 3> needs_grad) {
  check_point_affiliation(query, key, value, kernel_size, normalization);
  check_map(query, "query", grad, "grad");
  const c10::cuda::CUDAGuard guard(query.device());
  const Inputs<3> inputs{&query, &key, &value};
  Gradients<3> grads = make_gradients(inputs, needs_grad);
  const int64_t H = query.size(2), W = query.size(3);
  if (query.size(0) * H * W == 0) {
    make_zero(grads);
  } else if (needs_grad[0] || needs_grad[1] || needs_grad[2]) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, query.scalar_type(), "point_affiliation_backward_cuda", [&] {
          using acc_t = at::opmath_type<scalar_t>;
          const int64_t taps = kernel_size * kernel_size, maps = needs_grad[1] + needs_grad[2];
          const int64_t images = images_at_a_time(grad, std::max<int64_t>(maps, 1) * taps * sizeof(acc_t));
          const auto room = [&](bool needed) {
            return needed ? at::empty({images, taps, H, W}, normalizer.options()) : at::Tensor();
          };
          const at::Tensor weights = room(needs_grad[2]), grad_scores = room(needs_grad[1]);
          AffiliationBackward<scalar_t, acc_t, cudaStream_t> backward{view_of<scalar_t>(grad),
                                                                      view_of<scalar_t>(query),
                                                                      view_of<scalar_t>(key),
                                                                      view_of<scalar_t>(value),
                                                                      normalizer.const_data_ptr<acc_t>(),
                                                                      kernel_size,
                                                                      static_cast<Normalization>(normalization),
                                                                      mutable_view_of<scalar_t>(grads[0]),
                                                                      mutable_view_of<scalar_t>(grads[1]),
                                                                      mutable_view_of<scalar_t>(grads[2]),
                                                                      mutable_view_of<acc_t>(weights),
                                                                      mutable_view_of<acc_t>(grad_scores),
                                                                      images,
                                                                      c10::cuda::getCurrentCUDAStream()};
          backward();
        });
  }
  return as_tuple(grads, inputs);
}

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CUDA, m) {
  m.impl("point_affiliation", &point_affiliation_cuda);
  m.impl("_point_affiliation_backward", &point_affiliation_backward_cuda);
}

}  // namespace sapa_mm
