// SPDX-License-Identifier: Apache-2.0
// LayerNorm over the channels of an NCHW map, and the 1x1 convolution after it, on the CPU, without moving the
// channels: a thread takes blocks of positions, all channels of which stay in its cache. What the projection reads is
// never written.
#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <torch/library.h>

#include "../checks.h"
#include "norms.h"
#include "packing.h"

namespace sapa_mm {
namespace {

using OptionalTensor = c10::optional<at::Tensor>;  // std::optional from torch 2.5 on

constexpr int64_t kParts = 32;  // of the sums over positions, whatever the number of threads

void check_parameter(const at::Tensor& x, const OptionalTensor& parameter, const char* name) {
  if (!parameter) return;
  TORCH_CHECK_VALUE(parameter->dim() == 1 && parameter->size(0) == x.size(1), name, " must have ", x.size(1),
                    " elements, one for each channel of x, got ", parameter->sizes());
  TORCH_CHECK_VALUE(parameter->device() == x.device(), "x and ", name, " must be on one device, got ", x.device(),
                    " and ", parameter->device());
}

template <typename T>
std::vector<T> to_vector(const OptionalTensor& parameter, int64_t size, T otherwise) {
  if (!parameter) return std::vector<T>(size, otherwise);
  const at::Tensor x = parameter->to(c10::CppTypeToScalarType<T>::value).contiguous();
  return std::vector<T>(x.const_data_ptr<T>(), x.const_data_ptr<T>() + size);
}

// Blocks of positions of a contiguous NCHW map, and the moves between it and planes.
template <typename scalar_t, typename T>
struct Blocks {
  using Stored = typename StoredAs<scalar_t>::type;

  explicit Blocks(const at::Tensor& x)
      : channels(x.size(1)),
        area(x.size(2) * x.size(3)),
        per_image((area + kBlock - 1) / kBlock),
        count(x.size(0) * per_image) {}

  int64_t first(int64_t block) const { return block % per_image * kBlock; }
  int64_t size(int64_t block) const { return std::min(kBlock, area - first(block)); }
  int64_t offset(int64_t block, int64_t channel) const {
    return (block / per_image * channels + channel) * area + first(block);
  }
  // Of a map (N, H, W).
  int64_t position(int64_t block) const { return block / per_image * area + first(block); }

  static Stored* data(const at::Tensor& x) {
    return reinterpret_cast<Stored*>(const_cast<scalar_t*>(x.const_data_ptr<scalar_t>()));
  }
  void load(const at::Tensor& x, int64_t block, T* planes) const {
    const auto& kernels = pack_kernels<T, Stored>();
    for (int64_t c = 0; c < channels; ++c) kernels.widen(data(x) + offset(block, c), planes + c * kBlock, size(block));
  }

  void store(const T* planes, const at::Tensor& x, int64_t block) const {
    const auto& kernels = pack_kernels<T, Stored>();
    for (int64_t c = 0; c < channels; ++c) kernels.narrow(planes + c * kBlock, data(x) + offset(block, c), size(block));
  }

  int64_t channels, area, per_image, count;
};

// Calls work(planes, block) for every block of x, normalised, and writes the moments of its positions. `make_work`
// gives each thread its own.
template <typename scalar_t, typename T, typename MakeWork>
void for_each_normalized_block(const at::Tensor& x, double eps, const at::Tensor& mean, const at::Tensor& rstd,
                               const MakeWork& make_work) {
  const Blocks<scalar_t, T> blocks(x);
  at::parallel_for(0, blocks.count, 1, [&](int64_t begin, int64_t end) {
    Buffer<T> planes(blocks.channels * kBlock), means(kBlock), rstds(kBlock);
    auto work = make_work();
    for (int64_t block = begin; block < end; ++block) {
      const int64_t size = blocks.size(block), at = blocks.position(block);
      blocks.load(x, block, planes.get());
      norm_kernels<T>().normalize(planes.get(), blocks.channels, static_cast<T>(eps), means.get(), rstds.get());
      std::copy_n(means.get(), size, mean.mutable_data_ptr<T>() + at);
      std::copy_n(rstds.get(), size, rstd.mutable_data_ptr<T>() + at);
      work(planes.get(), block);
    }
  });
}

template <typename scalar_t>
void forward(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
             const at::Tensor& output, const at::Tensor& mean, const at::Tensor& rstd) {
  using T = accumulate_t<scalar_t>;
  const NormKernels<T>& kernels = norm_kernels<T>();
  const Blocks<scalar_t, T> blocks(output);
  const auto scales = to_vector<T>(weight, blocks.channels, T(1)), shifts = to_vector<T>(bias, blocks.channels, T(0));
  for_each_normalized_block<scalar_t, T>(x, eps, mean, rstd, [&] {
    return [&](T* planes, int64_t block) {
      if (weight || bias)
        for (int64_t c = 0; c < blocks.channels; ++c)
          kernels.affine(planes + c * kBlock, scales[c], shifts[c], planes + c * kBlock);
      blocks.store(planes, output, block);
    };
  });
}

// A block of x as the forward normalised it, a block of gradients, and the moments of its positions. Beyond the
// positions of a short block all is zero, so that nothing of the block before reaches a sum.
template <typename scalar_t, typename T>
struct BackwardBlock {
  BackwardBlock(const Blocks<scalar_t, T>& blocks, int64_t grad_channels)
      : blocks(blocks), planes(blocks.channels * kBlock), grads(grad_channels * kBlock), mean(kBlock), rstd(kBlock) {}

  void load(int64_t block, const at::Tensor& x, const Blocks<scalar_t, T>& grad_blocks, const at::Tensor& grad,
            const at::Tensor& means, const at::Tensor& rstds) {
    const int64_t size = blocks.size(block), at = blocks.position(block);
    if (size < kBlock) {
      std::memset(planes.get(), 0, blocks.channels * kBlock * sizeof(T));
      std::memset(grads.get(), 0, grad_blocks.channels * kBlock * sizeof(T));
      std::memset(mean.get(), 0, kBlock * sizeof(T));
      std::memset(rstd.get(), 0, kBlock * sizeof(T));
    }
    blocks.load(x, block, planes.get());
    grad_blocks.load(grad, block, grads.get());
    std::copy_n(means.const_data_ptr<T>() + at, size, mean.get());
    std::copy_n(rstds.const_data_ptr<T>() + at, size, rstd.get());
    norm_kernels<T>().normalize_again(planes.get(), blocks.channels, mean.get(), rstd.get());
  }

  const Blocks<scalar_t, T>& blocks;
  Buffer<T> planes, grads, mean, rstd;
};

// Sums over positions, the same for any number of threads: `work(sums, block)` for the blocks of a part in turn, then
// the parts in turn. Returns the sums of all.
template <typename T, typename MakeWork>
std::vector<T> sum_over_blocks(int64_t blocks, int64_t size, const MakeWork& make_work) {
  const int64_t parts = std::min(kParts, blocks);
  Buffer<T> sums(parts * size);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    auto work = make_work();
    for (int64_t part = begin; part < end; ++part)
      for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; ++block)
        work(sums.get() + part * size, block);
  });
  std::vector<T> total(sums.get(), sums.get() + size);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) total[i] += sums.get()[part * size + i];
  return total;
}

// From kLanes sums of each channel to one.
template <typename T>
void add_lanes(const T* sums, const at::Tensor& out) {
  T* to = out.mutable_data_ptr<T>();
  for (int64_t c = 0; c < out.numel(); ++c) {
    to[c] = 0;
    for (int lane = 0; lane < kLanes; ++lane) to[c] += sums[c * kLanes + lane];
  }
}

template <typename scalar_t>
void backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& rstd,
              const OptionalTensor& weight, const at::Tensor& grad_x, const at::Tensor& grad_weight,
              const at::Tensor& grad_bias) {
  using T = accumulate_t<scalar_t>;
  const NormKernels<T>& kernels = norm_kernels<T>();
  const Blocks<scalar_t, T> blocks(x);
  const auto scales = to_vector<T>(weight, blocks.channels, T(1));
  const int64_t half = blocks.channels * kLanes;
  const std::vector<T> sums = sum_over_blocks<T>(blocks.count, 2 * half, [&] {
    return [&, data = BackwardBlock<scalar_t, T>(blocks, blocks.channels)](T* sums, int64_t block) mutable {
      data.load(block, x, blocks, grad, mean, rstd);
      if (grad_weight.defined()) kernels.add_products(data.grads.get(), data.planes.get(), blocks.channels, sums);
      if (grad_bias.defined()) kernels.add_products(data.grads.get(), nullptr, blocks.channels, sums + half);
      if (!grad_x.defined()) return;
      kernels.backward(data.planes.get(), data.grads.get(), blocks.channels, data.rstd.get(),
                       weight ? scales.data() : nullptr);
      blocks.store(data.grads.get(), grad_x, block);
    };
  });
  if (grad_weight.defined()) add_lanes(sums.data(), grad_weight);
  if (grad_bias.defined()) add_lanes(sums.data() + half, grad_bias);
}

// Element (row, k) of a matrix at [row / kPanel][k][row % kPanel]; rows beyond the last are zero.
template <typename T>
std::vector<T> to_panels(const T* matrix, int64_t rows, int64_t depth, int64_t row_stride, int64_t k_stride) {
  std::vector<T> panels(round_up(rows, kPanel) * depth, T(0));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < depth; ++k)
      panels[(row / kPanel * depth + k) * kPanel + row % kPanel] = matrix[row * row_stride + k * k_stride];
  return panels;
}

template <typename scalar_t>
void project(const at::Tensor& x, const at::Tensor& matrix, const at::Tensor& shift, double eps,
             const at::Tensor& output, const at::Tensor& mean, const at::Tensor& rstd) {
  using T = accumulate_t<scalar_t>;
  const NormKernels<T>& kernels = norm_kernels<T>();
  const Blocks<scalar_t, T> blocks(output);
  const int64_t C = x.size(1), D = blocks.channels;
  const auto panels = to_panels(matrix.const_data_ptr<T>(), D, C, C, 1);
  const T* shifts = shift.const_data_ptr<T>();
  for_each_normalized_block<scalar_t, T>(x, eps, mean, rstd, [&] {
    return [&, buffer = Buffer<T>(round_up(D, kPanel) * kBlock)](const T* planes, int64_t block) {
      T* out = buffer.get();
      for (int64_t d = 0; d < D; d += kPanel)
        kernels.multiply(panels.data() + d * C, C, planes, kBlock, kBlock, out + d * kBlock, kBlock, false);
      for (int64_t d = 0; d < D; ++d) kernels.affine(out + d * kBlock, T(1), shifts[d], out + d * kBlock);
      blocks.store(out, output, block);
    };
  });
}

template <typename scalar_t>
void project_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& rstd,
                      const at::Tensor& matrix, const at::Tensor& grad_x, const at::Tensor& grad_matrix,
                      const at::Tensor& grad_shift) {
  using T = accumulate_t<scalar_t>;
  const NormKernels<T>& kernels = norm_kernels<T>();
  const Blocks<scalar_t, T> blocks(x), grad_blocks(grad);
  const int64_t C = blocks.channels, D = grad_blocks.channels;
  const int64_t stride = round_up(C, kLanes), rows = round_up(D, kPanel);
  const auto panels = to_panels(matrix.const_data_ptr<T>(), C, D, 1, C);
  const std::vector<T> sums = sum_over_blocks<T>(blocks.count, rows * stride + D * kLanes, [&] {
    return [&, data = BackwardBlock<scalar_t, T>(blocks, D), of_planes = Buffer<T>(round_up(C, kPanel) * kBlock),
            vectors = Buffer<T>(kBlock * stride)](T* sums, int64_t block) mutable {
      data.load(block, x, grad_blocks, grad, mean, rstd);
      if (grad_shift.defined()) kernels.add_products(data.grads.get(), nullptr, D, sums + rows * stride);
      if (grad_matrix.defined()) {
        T* columns[kBlock];
        for (int64_t i = 0; i < kBlock; ++i) columns[i] = vectors.get() + i * stride;
        pack_kernels<T, T>().scatter_columns(data.planes.get(), kBlock, kBlock, C, columns);
        const auto grad_panels = to_panels(data.grads.get(), D, kBlock, kBlock, 1);
        for (int64_t d = 0; d < D; d += kPanel)
          kernels.multiply(grad_panels.data() + d * kBlock, kBlock, vectors.get(), stride, stride, sums + d * stride,
                           stride, true);
      }
      if (!grad_x.defined()) return;
      for (int64_t c = 0; c < C; c += kPanel)
        kernels.multiply(panels.data() + c * D, D, data.grads.get(), kBlock, kBlock, of_planes.get() + c * kBlock,
                         kBlock, false);
      kernels.backward(data.planes.get(), of_planes.get(), C, data.rstd.get(), nullptr);
      blocks.store(of_planes.get(), grad_x, block);
    };
  });
  if (grad_matrix.defined())
    for (int64_t d = 0; d < D; ++d) std::copy_n(sums.data() + d * stride, C, grad_matrix.mutable_data_ptr<T>() + d * C);
  if (grad_shift.defined()) add_lanes(sums.data() + rows * stride, grad_shift);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> channel_norm_cpu(const at::Tensor& x, const OptionalTensor& weight,
                                                                const OptionalTensor& bias, double eps) {
  check_map(x, "x", x, "x");
  check_parameter(x, weight, "weight");
  check_parameter(x, bias, "bias");
  const at::Tensor input = x.contiguous(), output = at::empty(x.sizes(), x.options());
  const at::TensorOptions options = x.options().dtype(at::toOpMathType(x.scalar_type()));
  const at::Tensor mean = at::empty({x.size(0), x.size(2), x.size(3)}, options), rstd = at::empty_like(mean);
  if (x.numel() > 0)
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "channel_norm_cpu",
                                    [&] { forward<scalar_t>(input, weight, bias, eps, output, mean, rstd); });
  return {output, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> channel_norm_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                                                         const OptionalTensor& weight,
                                                                         const OptionalTensor& bias,
                                                                         const at::Tensor& mean, const at::Tensor& rstd,
                                                                         double /*eps*/,
                                                                         std::array<bool, 3> needs_grad) {
  check_map(x, "x", grad, "grad");
  check_parameter(x, weight, "weight");
  const at::Tensor input = x.contiguous(), cotangent = grad.contiguous();
  at::Tensor grad_x, sums[2];
  if (needs_grad[0]) grad_x = at::empty(x.sizes(), x.options());
  for (int i = 0; i < 2; ++i)
    if (needs_grad[1 + i]) sums[i] = at::zeros({x.size(1)}, mean.options());
  if (x.numel() > 0)
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "channel_norm_backward_cpu", [&] {
      backward<scalar_t>(cotangent, input, mean, rstd, weight, grad_x, sums[0], sums[1]);
    });
  const auto result = [&](const at::Tensor& sum, const OptionalTensor& parameter) {
    if (sum.defined() && parameter) return sum.to(parameter->scalar_type());
    return at::empty({0}, (parameter ? *parameter : x).options());
  };
  return {grad_x.defined() ? grad_x : at::empty({0}, x.options()), result(sums[0], weight), result(sums[1], bias)};
}

void check_projection(const at::Tensor& x, const at::Tensor& matrix) {
  TORCH_CHECK_VALUE(matrix.dim() == 2 && matrix.size(1) == x.size(1) && x.size(1) > 0, "matrix must have ", x.size(1),
                    " columns, one for each channel of x, got ", matrix.sizes());
  TORCH_CHECK_TYPE(matrix.scalar_type() == at::toOpMathType(x.scalar_type()), "matrix must have dtype ",
                   at::toOpMathType(x.scalar_type()), " for x of ", x.scalar_type(), ", got ", matrix.scalar_type());
  TORCH_CHECK_VALUE(matrix.device() == x.device(), "x and matrix must be on one device, got ", x.device(), " and ",
                    matrix.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_projection_cpu(const at::Tensor& x, const at::Tensor& matrix,
                                                                   const at::Tensor& shift, double eps) {
  check_map(x, "x", x, "x");
  check_projection(x, matrix);
  TORCH_CHECK_VALUE(shift.dim() == 1 && shift.size(0) == matrix.size(0), "shift must have ", matrix.size(0),
                    " elements, one for each row of matrix, got ", shift.sizes());
  TORCH_CHECK_TYPE(shift.scalar_type() == matrix.scalar_type(), "matrix and shift must have one dtype, got ",
                   matrix.scalar_type(), " and ", shift.scalar_type());
  const at::Tensor output = at::empty({x.size(0), matrix.size(0), x.size(2), x.size(3)}, x.options());
  const at::Tensor mean = at::empty({x.size(0), x.size(2), x.size(3)}, matrix.options()), rstd = at::empty_like(mean);
  if (x.numel() > 0)
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "norm_projection_cpu", [&] {
      project<scalar_t>(x.contiguous(), matrix.contiguous(), shift.contiguous(), eps, output, mean, rstd);
    });
  return {output, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_projection_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                                                            const at::Tensor& matrix,
                                                                            const at::Tensor& /*shift*/,
                                                                            const at::Tensor& mean,
                                                                            const at::Tensor& rstd, double /*eps*/,
                                                                            std::array<bool, 3> needs_grad) {
  check_map(x, "x", grad, "grad");
  check_projection(x, matrix);
  at::Tensor grads[3];
  if (needs_grad[0]) grads[0] = at::empty(x.sizes(), x.options());
  if (needs_grad[1]) grads[1] = at::zeros(matrix.sizes(), matrix.options());
  if (needs_grad[2]) grads[2] = at::zeros({matrix.size(0)}, matrix.options());
  if (x.numel() > 0)
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "norm_projection_backward_cpu", [&] {
      project_backward<scalar_t>(grad.contiguous(), x.contiguous(), mean, rstd, matrix.contiguous(), grads[0], grads[1],
                                 grads[2]);
    });
  for (int i = 0; i < 3; ++i)
    if (!grads[i].defined()) grads[i] = at::empty({0}, (i == 0 ? x : matrix).options());
  return {grads[0], grads[1], grads[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("channel_norm", &channel_norm_cpu);
  m.impl("_channel_norm_backward", &channel_norm_backward_cpu);
  m.impl("norm_projection", &norm_projection_cpu);
  m.impl("_norm_projection_backward", &norm_projection_backward_cpu);
}

}  // namespace sapa_mm
