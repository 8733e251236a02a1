// SPDX-License-Identifier: Apache-2.0
// LayerNorm over the channels of an NCHW map on the CPU.
#include "../channel_norm.h"

#include <torch/library.h>

#include "planes/blocks.h"

namespace sapa_mm {
namespace {

template <typename T>
std::vector<T> to_vector(const OptionalTensor& parameter, int64_t size, T otherwise) {
  if (!parameter) return std::vector<T>(size, otherwise);
  const at::Tensor x = parameter->to(c10::CppTypeToScalarType<T>::value).contiguous();
  return std::vector<T>(x.const_data_ptr<T>(), x.const_data_ptr<T>() + size);
}

struct ChannelNormCpu {
  template <typename scalar_t>
  static void forward(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                      const at::Tensor& output, const at::Tensor& mean, const at::Tensor& rstd) {
    using T = accumulate_t<scalar_t>;
    const ChannelLoops<T>& channel_loops = loops<ChannelLoops<T>>();
    const Blocks<scalar_t> blocks(output);
    const auto scales = to_vector<T>(weight, blocks.channels, T(1)), shifts = to_vector<T>(bias, blocks.channels, T(0));
    for_each_normalized_block<scalar_t>(x, eps, mean, rstd, [&] {
      return [&](T* planes, int64_t block) {
        if (weight || bias)
          for (int64_t c = 0; c < blocks.channels; ++c)
            channel_loops.affine(planes + c * kBlock, scales[c], shifts[c], planes + c * kBlock);
        blocks.store(planes, output, block);
      };
    });
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_output, const at::Tensor& x, const OptionalTensor& weight,
                       const at::Tensor& mean, const at::Tensor& rstd, const at::Tensor& grad_x,
                       const at::Tensor& grad_weight, const at::Tensor& grad_bias) {
    using T = accumulate_t<scalar_t>;
    const ChannelLoops<T>& channel_loops = loops<ChannelLoops<T>>();
    const Blocks<scalar_t> blocks(x);
    const auto scales = to_vector<T>(weight, blocks.channels, T(1));
    const int64_t half = blocks.channels * kLanes;
    const std::vector<T> sums = sum_over_blocks<T>(blocks.count, 2 * half, [&] {
      return [&, data = BackwardBlock<scalar_t>(blocks, blocks.channels)](T* sums, int64_t block) mutable {
        data.load(block, x, blocks, grad_output, mean, rstd);
        if (grad_weight.defined())
          channel_loops.add_products(data.grads.get(), data.planes.get(), blocks.channels, sums);
        if (grad_bias.defined()) channel_loops.add_products(data.grads.get(), nullptr, blocks.channels, sums + half);
        if (!grad_x.defined()) return;
        channel_loops.normalize_backward(data.planes.get(), data.grads.get(), blocks.channels, data.rstd.get(),
                                         weight ? scales.data() : nullptr);
        blocks.store(data.grads.get(), grad_x, block);
      };
    });
    if (grad_weight.defined()) add_lanes(sums.data(), grad_weight);
    if (grad_bias.defined()) add_lanes(sums.data() + half, grad_bias);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("channel_norm", &ChannelNorm<ChannelNormCpu>::forward);
  m.impl("_channel_norm_backward", &ChannelNorm<ChannelNormCpu>::backward);
}

}  // namespace sapa_mm
