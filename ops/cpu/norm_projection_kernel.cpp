// SPDX-License-Identifier: Apache-2.0
// The norm over channels and the 1x1 convolution after it on the CPU: what the convolution reads is never written.
#include "../norm_projection.h"

#include <torch/library.h>

#include "norm_projection.h"
#include "planes/blocks.h"

namespace sapa_mm {
namespace {

// Element (row, k) of a matrix at [row / kPanel][k][row % kPanel]; rows beyond the last are zero.
template <typename T>
std::vector<T> to_panels(const T* matrix, int64_t rows, int64_t depth, int64_t row_stride, int64_t k_stride) {
  std::vector<T> panels(round_up(rows, kPanel) * depth, T(0));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < depth; ++k)
      panels[(row / kPanel * depth + k) * kPanel + row % kPanel] = matrix[row * row_stride + k * k_stride];
  return panels;
}

struct NormProjectionCpu {
  template <typename scalar_t>
  static void forward(const at::Tensor& x, const at::Tensor& matrix, const at::Tensor& shift, double eps,
                      const at::Tensor& output, const at::Tensor& mean, const at::Tensor& rstd) {
    using T = accumulate_t<scalar_t>;
    const ChannelLoops<T>& channel_loops = loops<ChannelLoops<T>>();
    const Blocks<scalar_t> blocks(output);
    const int64_t C = x.size(1), D = blocks.channels;
    const auto panels = to_panels(matrix.const_data_ptr<T>(), D, C, C, 1);
    const T* shifts = shift.const_data_ptr<T>();
    for_each_normalized_block<scalar_t>(x, eps, mean, rstd, [&] {
      return [&, buffer = Buffer<T>(round_up(D, kPanel) * kBlock)](const T* planes, int64_t block) {
        T* out = buffer.get();
        for (int64_t d = 0; d < D; d += kPanel)
          loops<MatrixLoops<T>>().multiply(panels.data() + d * C, C, planes, kBlock, kBlock, out + d * kBlock, kBlock,
                                           false);
        for (int64_t d = 0; d < D; ++d) channel_loops.affine(out + d * kBlock, T(1), shifts[d], out + d * kBlock);
        blocks.store(out, output, block);
      };
    });
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_output, const at::Tensor& x, const at::Tensor& matrix,
                       const at::Tensor& mean, const at::Tensor& rstd, const at::Tensor& grad_x,
                       const at::Tensor& grad_matrix, const at::Tensor& grad_shift) {
    using T = accumulate_t<scalar_t>;
    const ChannelLoops<T>& channel_loops = loops<ChannelLoops<T>>();
    const Blocks<scalar_t> blocks(x), grad_blocks(grad_output);
    const int64_t C = blocks.channels, D = grad_blocks.channels;
    const int64_t stride = round_up(C, kLanes), rows = round_up(D, kPanel);
    const auto panels = to_panels(matrix.const_data_ptr<T>(), C, D, 1, C);
    const std::vector<T> sums = sum_over_blocks<T>(blocks.count, rows * stride + D * kLanes, [&] {
      return [&, data = BackwardBlock<scalar_t>(blocks, D), of_planes = Buffer<T>(round_up(C, kPanel) * kBlock),
              vectors = Buffer<T>(kBlock * stride)](T* sums, int64_t block) mutable {
        data.load(block, x, grad_blocks, grad_output, mean, rstd);
        if (grad_shift.defined()) channel_loops.add_products(data.grads.get(), nullptr, D, sums + rows * stride);
        if (grad_matrix.defined()) {
          T* columns[kBlock];
          for (int64_t i = 0; i < kBlock; ++i) columns[i] = vectors.get() + i * stride;
          pack_loops<T>().scatter_columns(data.planes.get(), kBlock, kBlock, C, columns);
          const auto grad_panels = to_panels(data.grads.get(), D, kBlock, kBlock, 1);
          for (int64_t d = 0; d < D; d += kPanel)
            loops<MatrixLoops<T>>().multiply(grad_panels.data() + d * kBlock, kBlock, vectors.get(), stride, stride,
                                             sums + d * stride, stride, true);
        }
        if (!grad_x.defined()) return;
        for (int64_t c = 0; c < C; c += kPanel)
          loops<MatrixLoops<T>>().multiply(panels.data() + c * D, D, data.grads.get(), kBlock, kBlock,
                                           of_planes.get() + c * kBlock, kBlock, false);
        channel_loops.normalize_backward(data.planes.get(), of_planes.get(), C, data.rstd.get(), nullptr);
        blocks.store(of_planes.get(), grad_x, block);
      };
    });
    if (grad_matrix.defined())
      for (int64_t d = 0; d < D; ++d)
        std::copy_n(sums.data() + d * stride, C, grad_matrix.mutable_data_ptr<T>() + d * C);
    if (grad_shift.defined()) add_lanes(sums.data() + rows * stride, grad_shift);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("norm_projection", &NormProjection<NormProjectionCpu>::forward);
  m.impl("_norm_projection_backward", &NormProjection<NormProjectionCpu>::backward);
}

}  // namespace sapa_mm
