// SPDX-License-Identifier: Apache-2.0
// Feature assembly on the CPU: the second half of point affiliation, with kernels that are given. See
// point_affiliation_kernel.cpp for the walk.
#include "../feature_assembly.h"

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <torch/library.h>

#include "../gradients.h"
#include "packing.h"

namespace sapa_mm {
namespace {

template <typename scalar_t>
void forward(const at::Tensor& feature, const at::Tensor& kernels_map, int K, int64_t groups, at::Tensor& output) {
  using T = accumulate_t<scalar_t>;
  const RowKernels<T>& kernels = row_kernels<T>();
  const int64_t channels_per_group = feature.size(1) / groups, taps = K * K;
  const Axis rows(kernels_map.size(2), feature.size(2)), columns(kernels_map.size(3), feature.size(3));
  const Tiling tiling(feature.size(0), rows.cells, columns.cells, kTileColumns);

  at::parallel_for(0, tiling.tasks, 4, [&](int64_t begin, int64_t end) {
    const int64_t width = round_up(tiling.tile_width, kLanes), padded = round_up(width + K - 1, kLanes);
    Ring<scalar_t, T> features(feature, K, padded);
    Buffer<T> weights(kMaxSlots * taps * width), mixed(kMaxSlots * kChannelBlock * width);
    Packer<scalar_t, T> packer(columns, tiling.tile_width, std::max(taps, kChannelBlock));
    ChannelsLastAssembly<scalar_t, T> channels_last(feature, output, K, columns);
    tiling.for_each_run(begin, end, [&](int64_t n, const Span& span, const Span& cell_rows) {
      const Map<scalar_t> weight_map(kernels_map, n), feature_map(feature, n), output_map(output, n);
      packer.set_span(span);
      for (int64_t y = cell_rows.begin; y < cell_rows.end; ++y) {
        Window<T> window;
        if (!channels_last.fits) window = features.at(n, y, span, y > cell_rows.begin);
        for_each_chunk(rows, columns, y, [&](const Chunk& chunk) {
          for (int64_t group = 0; group < groups; ++group) {
            packer.pack(weight_map, group * taps, taps, chunk, weights.get(), width);
            const int64_t first = group * channels_per_group, last = first + channels_per_group;
            if (channels_last.fits) {
              channels_last(weights.get(), width, feature_map, output_map, y, chunk, span, first, channels_per_group);
              continue;
            }
            for (int64_t c = first; c < last; c += kChannelBlock) {
              const int64_t channels = std::min(kChannelBlock, last - c);
              kernels.assemble(weights.get(), width, window.from_channel(c), channels, chunk.slots(), width,
                               mixed.get(), width);
              packer.unpack(mixed.get(), width, channels, chunk, output_map, c);
            }
          }
        });
      }
    });
  });
}

template <typename scalar_t>
void backward(const at::Tensor& grad, const at::Tensor& feature, const at::Tensor& kernels_map, int K, int64_t groups,
              at::Tensor& grad_feature, at::Tensor& grad_kernels) {
  using T = accumulate_t<scalar_t>;
  const RowKernels<T>& kernels = row_kernels<T>();
  const int64_t channels_per_group = feature.size(1) / groups, taps = K * K, radius = K / 2;
  const bool needs_feature = grad_feature.defined(), needs_kernels = grad_kernels.defined();
  const Axis rows(kernels_map.size(2), feature.size(2)), columns(kernels_map.size(3), feature.size(3));
  const Tiling tiling(feature.size(0), rows.cells, columns.cells, kTileColumns);

  at::parallel_for(0, tiling.tasks, 4 * K, [&](int64_t begin, int64_t end) {
    const int64_t cells = std::min(columns.cells, tiling.tile_width + 2 * radius), width = round_up(cells, kLanes);
    const int64_t padded = round_up(width + K - 1, kLanes), stride = kLanes + padded;
    // What is summed are the owned columns only; they collect from the K - 1 to the left of each.
    const int64_t owned_width = round_up(tiling.tile_width, kLanes), filled = owned_width + K - 1;
    Ring<scalar_t, T> features(feature, K, padded);
    SumRing<scalar_t, T> sums(needs_feature ? grad_feature : feature.narrow(1, 0, 0), K, owned_width);
    Buffer<T> grad_buffer(kMaxSlots * kChannelBlock * stride), weight_buffer(kMaxSlots * taps * stride),
        weight_grads(kMaxSlots * taps * width);
    T *grads = grad_buffer.get() + kLanes, *weights = weight_buffer.get() + kLanes;

    Packer<scalar_t, T> packer(columns, tiling.tile_width + 2 * radius, std::max(taps, kChannelBlock));
    Packer<scalar_t, T> owned_packer(columns, tiling.tile_width, taps);

    tiling.for_each_run(begin, end, [&](int64_t n, const Span& owned, const Span& owned_rows) {
      const Span span{std::max<int64_t>(0, owned.begin - radius), std::min(columns.cells, owned.end + radius)};
      const int64_t shift = owned.begin - span.begin + radius;  // column of the last tap of the first owned one
      packer.set_span(span);
      owned_packer.set_span(owned);
      const Map<scalar_t> weight_map(kernels_map, n), grad_map(grad, n);
      bool is_next = false;
      for (int64_t y = owned_rows.begin - radius; y < owned_rows.end + radius; ++y) {
        const MutableWindow<T> into = sums.at(y);
        if (y >= 0 && y < rows.cells) {
          const bool owns_row = y >= owned_rows.begin && y < owned_rows.end;
          const Window<T> window = features.at(n, y, span, is_next);
          is_next = true;
          for_each_chunk(rows, columns, y, [&](const Chunk& chunk) {
            for (int64_t group = 0; group < groups; ++group) {
              if (needs_feature) {
                packer.pack(weight_map, group * taps, taps, chunk, weights, stride);
                packer.clear_unused(weights, taps, stride, filled, chunk);
              }
              const int64_t first = group * channels_per_group, last = first + channels_per_group;
              for (int64_t c = first; c < last; c += kChannelBlock) {
                const int64_t channels = std::min(kChannelBlock, last - c);
                packer.pack(grad_map, c, channels, chunk, grads, stride);
                packer.clear_unused(grads, channels, stride, filled, chunk);
                if (needs_kernels && owns_row)
                  kernels.correlate(grads, stride, window.from_channel(c), channels, chunk.slots(), width,
                                    weight_grads.get(), width, c > first);
                if (needs_feature)
                  kernels.spread(weights + shift, stride, grads + shift, stride, into.from_channel(c), channels,
                                 chunk.slots(), owned_width);
              }
              if (needs_kernels && owns_row) {
                const Map<scalar_t> grad_kernels_map(grad_kernels, n);
                owned_packer.unpack(weight_grads.get() + owned.begin - span.begin, width, taps, chunk, grad_kernels_map,
                                    group * taps);
              }
            }
          });
        }
        const int64_t finished = y - radius;
        if (needs_feature && finished >= owned_rows.begin && finished < owned_rows.end) sums.write(n, finished, owned);
      }
    });
  });
}

at::Tensor feature_assembly_cpu(const at::Tensor& feature, const at::Tensor& kernels, int64_t kernel_size,
                                int64_t groups) {
  check_feature_assembly(feature, kernels, kernel_size, groups);
  at::Tensor output = at::empty({feature.size(0), feature.size(1), kernels.size(2), kernels.size(3)}, feature.options(),
                                feature.suggest_memory_format());
  if (output.numel() == 0) return output;
  check_not_empty(feature, "feature", kernels.size(2), kernels.size(3));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feature.scalar_type(), "feature_assembly_cpu", [&] {
    forward<scalar_t>(feature, kernels, static_cast<int>(kernel_size), groups, output);
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor> feature_assembly_backward_cpu(const at::Tensor& grad, const at::Tensor& feature,
                                                                 const at::Tensor& kernels, int64_t kernel_size,
                                                                 int64_t groups, std::array<bool, 2> needs_grad) {
  check_feature_assembly(feature, kernels, kernel_size, groups);
  check_map(feature, "feature", grad, "grad");
  const Inputs<2> inputs{&feature, &kernels};
  Gradients<2> grads = make_gradients(inputs, needs_grad);
  if (grad.numel() == 0) {
    make_zero(grads);
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, feature.scalar_type(), "feature_assembly_backward_cpu",
        [&] { backward<scalar_t>(grad, feature, kernels, static_cast<int>(kernel_size), groups, grads[0], grads[1]); });
  }
  return as_tuple(grads, inputs);
}

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("feature_assembly", &feature_assembly_cpu);
  m.impl("_feature_assembly_backward", &feature_assembly_backward_cpu);
}

}  // namespace sapa_mm
