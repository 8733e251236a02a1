// SPDX-License-Identifier: Apache-2.0
// Point affiliation on the GPU; the kernels are in point_affiliation.cuh.
#include "../point_affiliation.h"

#include <torch/library.h>

#include <algorithm>

#include "point_affiliation.cuh"
#include "tensor_view.h"

namespace sapa_mm {
namespace {

// Images whose weights and gradients of scores are kept at a time: 4 % of the gradient's memory, and at least so many
// that two waves of blocks run. A multiprocessor holds one block of the kernel for K = 5 at ratio 2, and 132 of them
// then keep 54 MB.
int64_t images_at_a_time(const at::Tensor& grad_output, int kernel_size, int64_t bytes_per_position) {
  int device = 0, multiprocessors = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t positions = grad_output.size(2) * grad_output.size(3);
  const int64_t by_memory = grad_output.numel() * grad_output.element_size() / 25 / (bytes_per_position * positions);
  const int64_t block_positions = kernel_size <= 7 ? 4 * kThreads : team_positions(0);
  const int64_t blocks = (positions + block_positions - 1) / block_positions;
  const int64_t by_waves = (2 * multiprocessors + blocks - 1) / blocks;
  return std::clamp<int64_t>(std::max(by_memory, by_waves), 1, grad_output.size(0));
}

struct PointAffiliationCuda {
  template <typename scalar_t>
  static void forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, int kernel_size,
                      Normalization normalization, Border border, const at::Tensor& output,
                      const at::Tensor& normalizer) {
    using acc_t = at::opmath_type<scalar_t>;
    const c10::cuda::CUDAGuard guard(query.device());
    AffiliationForward<scalar_t, acc_t, cudaStream_t>{view_of<scalar_t>(query),
                                                      view_of<scalar_t>(key),
                                                      view_of<scalar_t>(value),
                                                      kernel_size,
                                                      normalization,
                                                      border,
                                                      mutable_view_of<scalar_t>(output),
                                                      normalizer.mutable_data_ptr<acc_t>(),
                                                      c10::cuda::getCurrentCUDAStream()}();
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& value, const at::Tensor& normalizer, int kernel_size,
                       Normalization normalization, Border border, const at::Tensor& grad_query,
                       const at::Tensor& grad_key, const at::Tensor& grad_value) {
    if (!grad_query.defined() && !grad_key.defined() && !grad_value.defined()) return;
    using acc_t = at::opmath_type<scalar_t>;
    const c10::cuda::CUDAGuard guard(query.device());
    const int64_t taps = kernel_size * kernel_size, maps = 1 + grad_key.defined();
    const int64_t images = images_at_a_time(grad_output, kernel_size, maps * taps * sizeof(acc_t));
    const auto room = [&] { return empty_sums(query, {images, taps, query.size(2), query.size(3)}); };
    const at::Tensor weights = room(), grad_scores = grad_key.defined() ? room() : at::Tensor();
    AffiliationBackward<scalar_t, acc_t, cudaStream_t>{view_of<scalar_t>(grad_output),
                                                       view_of<scalar_t>(query),
                                                       view_of<scalar_t>(key),
                                                       view_of<scalar_t>(value),
                                                       normalizer.const_data_ptr<acc_t>(),
                                                       kernel_size,
                                                       normalization,
                                                       border,
                                                       mutable_view_of<scalar_t>(grad_query),
                                                       mutable_view_of<scalar_t>(grad_key),
                                                       mutable_view_of<scalar_t>(grad_value),
                                                       mutable_view_of<acc_t>(weights),
                                                       mutable_view_of<acc_t>(grad_scores),
                                                       images,
                                                       c10::cuda::getCurrentCUDAStream()}();
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CUDA, m) {
  m.impl("point_affiliation", &PointAffiliation<PointAffiliationCuda>::forward);
  m.impl("_point_affiliation_backward", &PointAffiliation<PointAffiliationCuda>::backward);
}

}  // namespace sapa_mm
