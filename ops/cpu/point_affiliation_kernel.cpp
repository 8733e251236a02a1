// SPDX-License-Identifier: Apache-2.0
// Point affiliation on the CPU. One thread walks down a strip of cells; per row of cells it packs the queries, scores
// them against the ring of keys, normalises, and mixes the ring of values. Nothing of size K*K outlives its row.
#include "../point_affiliation.h"

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <torch/library.h>

#include "../gradients.h"
#include "packing.h"

namespace sapa_mm {
namespace {

// (slot, cell) of a packed plane from and to the (N, H, W) map of normalizers.
template <typename T, typename Move>
void for_each_normalizer(T* map, int64_t width, const Axis& columns, const Chunk& chunk, const Span& span,
                         const Move& move) {
  for (int i = 0; i < chunk.slots(); ++i) {
    const int64_t s = chunk.slot + i % chunk.columns;
    T* line = map + (chunk.y + i / chunk.columns) * width + s;
    for (int64_t cell = span.begin; cell < span.end; ++cell)
      if (s < columns.count(cell)) move(line[columns.first[cell]], i, cell - span.begin);
  }
}

template <typename scalar_t>
void forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, int K,
             Normalization normalization, at::Tensor& output, at::Tensor& normalizer) {
  using T = accumulate_t<scalar_t>;
  const RowKernels<T>& kernels = row_kernels<T>();
  const int64_t D = query.size(1), C = value.size(1), H = query.size(2), W = query.size(3), taps = K * K;
  const Axis rows(H, key.size(2)), columns(W, key.size(3));
  const Tiling tiling(query.size(0), rows.cells, columns.cells, kTileColumns);

  at::parallel_for(0, tiling.tasks, 4, [&](int64_t begin, int64_t end) {
    const int64_t width = round_up(tiling.tile_width, kLanes), padded = round_up(width + K - 1, kLanes);
    Ring<scalar_t, T> keys(key, K, padded), values(value, K, padded);
    Buffer<T> queries(kMaxSlots * D * width), weights(kMaxSlots * taps * width), normalizers(kMaxSlots * width),
        mixed(kMaxSlots * kChannelBlock * width);
    Packer<scalar_t, T> packer(columns, tiling.tile_width, std::max(D, kChannelBlock));
    ChannelsLastAssembly<scalar_t, T> channels_last(value, output, K, columns);
    tiling.for_each_run(begin, end, [&](int64_t n, const Span& span, const Span& cell_rows) {
      const Map<scalar_t> query_map(query, n), value_map(value, n), output_map(output, n);
      T* normalizer_map = normalizer.mutable_data_ptr<T>() + n * H * W;
      packer.set_span(span);
      for (int64_t y = cell_rows.begin; y < cell_rows.end; ++y) {
        const Window<T> key_window = keys.at(n, y, span, y > cell_rows.begin);
        Window<T> value_window;
        if (!channels_last.fits) value_window = values.at(n, y, span, y > cell_rows.begin);
        for_each_chunk(rows, columns, y, [&](const Chunk& chunk) {
          packer.pack(query_map, 0, D, chunk, queries.get(), width);
          kernels.correlate(queries.get(), width, key_window, D, chunk.slots(), width, weights.get(), width, false);
          for (int slot = 0; slot < chunk.slots(); ++slot)
            kernels.normalize(weights.get() + slot * taps * width, width, taps, width, normalization,
                              normalizers.get() + slot * width);
          for_each_normalizer(normalizer_map, W, columns, chunk, span,
                              [&](T& there, int slot, int64_t i) { there = normalizers.get()[slot * width + i]; });
          if (channels_last.fits)
            return channels_last(weights.get(), width, value_map, output_map, y, chunk, span, 0, C);
          for (int64_t c = 0; c < C; c += kChannelBlock) {
            const int64_t channels = std::min(kChannelBlock, C - c);
            kernels.assemble(weights.get(), width, value_window.from_channel(c), channels, chunk.slots(), width,
                             mixed.get(), width);
            packer.unpack(mixed.get(), width, channels, chunk, output_map, c);
          }
        });
      }
    });
  });
}

template <typename scalar_t>
void backward(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
              const at::Tensor& normalizer, int K, Normalization normalization, at::Tensor& grad_query,
              at::Tensor& grad_key, at::Tensor& grad_value) {
  using T = accumulate_t<scalar_t>;
  const RowKernels<T>& kernels = row_kernels<T>();
  const int64_t D = query.size(1), C = value.size(1), H = query.size(2), W = query.size(3), taps = K * K;
  const int64_t radius = K / 2;
  const bool needs_query = grad_query.defined(), needs_key = grad_key.defined(), needs_value = grad_value.defined();
  const bool needs_scores = needs_query || needs_key;
  const Axis rows(H, key.size(2)), columns(W, key.size(3));
  const Tiling tiling(query.size(0), rows.cells, columns.cells, kTileColumns);

  // A run of rows of the low-resolution gradients needs the rows of cells within the radius around it too, whose
  // weights it computes again. Long runs keep that small.
  at::parallel_for(0, tiling.tasks, 4 * K, [&](int64_t begin, int64_t end) {
    // Planes have kLanes zeros to the left, for `spread`, which reads up to K - 1 columns there.
    const int64_t cells = std::min(columns.cells, tiling.tile_width + 2 * radius), width = round_up(cells, kLanes);
    const int64_t padded = round_up(width + K - 1, kLanes), stride = kLanes + padded;
    // What is summed are the owned columns only; they collect from the K - 1 to the left of each.
    const int64_t owned_width = round_up(tiling.tile_width, kLanes), filled = owned_width + K - 1;
    Ring<scalar_t, T> keys(key, K, padded), values(value, K, padded);
    SumRing<scalar_t, T> key_sums(needs_key ? grad_key : key.narrow(1, 0, 0), K, owned_width);
    SumRing<scalar_t, T> value_sums(needs_value ? grad_value : value.narrow(1, 0, 0), K, owned_width);
    Buffer<T> query_buffer(kMaxSlots * D * stride), grad_buffer(kMaxSlots * kChannelBlock * stride),
        weight_buffer(kMaxSlots * taps * stride), score_grad_buffer(kMaxSlots * taps * stride),
        score_buffer(normalization == Normalization::kSoftmax ? 0 : kMaxSlots * taps * stride),
        normalizers(kMaxSlots * width), grad_queries(kMaxSlots * D * width);
    T *queries = query_buffer.get() + kLanes, *grads = grad_buffer.get() + kLanes;
    T *weights = weight_buffer.get() + kLanes, *score_grads = score_grad_buffer.get() + kLanes;
    T* scores = normalization == Normalization::kSoftmax ? weights : score_buffer.get() + kLanes;

    Packer<scalar_t, T> packer(columns, tiling.tile_width + 2 * radius, std::max(D, kChannelBlock));
    Packer<scalar_t, T> owned_packer(columns, tiling.tile_width, D);

    tiling.for_each_run(begin, end, [&](int64_t n, const Span& owned, const Span& owned_rows) {
      const Span span{std::max<int64_t>(0, owned.begin - radius), std::min(columns.cells, owned.end + radius)};
      const int64_t shift = owned.begin - span.begin + radius;  // column of the last tap of the first owned one
      packer.set_span(span);
      owned_packer.set_span(owned);
      const Map<scalar_t> query_map(query, n), grad_map(grad, n);
      T* normalizer_map = const_cast<T*>(normalizer.const_data_ptr<T>()) + n * H * W;
      bool is_next = false;
      for (int64_t y = owned_rows.begin - radius; y < owned_rows.end + radius; ++y) {
        const MutableWindow<T> into_keys = key_sums.at(y), into_values = value_sums.at(y);
        if (y >= 0 && y < rows.cells) {
          const bool owns_row = y >= owned_rows.begin && y < owned_rows.end;
          const Window<T> key_window = keys.at(n, y, span, is_next);
          const Window<T> value_window = values.at(n, y, span, is_next);
          is_next = true;
          for_each_chunk(rows, columns, y, [&](const Chunk& chunk) {
            const int slots = chunk.slots();
            packer.pack(query_map, 0, D, chunk, queries, stride);
            packer.clear_unused(queries, D, stride, filled, chunk);
            kernels.correlate(queries, stride, key_window, D, slots, width, weights, stride, false);
            if (scores != weights) std::copy(weights, weights + slots * taps * stride - kLanes, scores);
            std::fill(normalizers.get(), normalizers.get() + kMaxSlots * width, T(1));
            for_each_normalizer(normalizer_map, W, columns, chunk, span,
                                [&](T& there, int slot, int64_t i) { normalizers.get()[slot * width + i] = there; });
            for (int slot = 0; slot < slots; ++slot)
              kernels.weights_again(weights + slot * taps * stride, stride, taps, width, normalization,
                                    normalizers.get() + slot * width);
            packer.clear_unused(weights, taps, stride, filled, chunk);

            for (int64_t c = 0; c < C; c += kChannelBlock) {
              const int64_t channels = std::min(kChannelBlock, C - c);
              packer.pack(grad_map, c, channels, chunk, grads, stride);
              packer.clear_unused(grads, channels, stride, filled, chunk);
              if (needs_scores)
                kernels.correlate(grads, stride, value_window.from_channel(c), channels, slots, width, score_grads,
                                  stride, c > 0);
              if (needs_value)
                kernels.spread(weights + shift, stride, grads + shift, stride, into_values.from_channel(c), channels,
                               slots, owned_width);
            }
            if (!needs_scores) return;
            for (int slot = 0; slot < slots; ++slot) {
              const int64_t at = slot * taps * stride;
              kernels.normalize_backward(weights + at, scores + at, score_grads + at, stride, taps, width,
                                         normalization, normalizers.get() + slot * width);
            }
            packer.clear_unused(score_grads, taps, stride, filled, chunk);
            if (needs_key)
              kernels.spread(score_grads + shift, stride, queries + shift, stride, into_keys, D, slots, owned_width);
            if (needs_query && owns_row) {
              kernels.assemble(score_grads, stride, key_window, D, slots, width, grad_queries.get(), width);
              const Map<scalar_t> grad_query_map(grad_query, n);
              owned_packer.unpack(grad_queries.get() + owned.begin - span.begin, width, D, chunk, grad_query_map, 0);
            }
          });
        }
        const int64_t finished = y - radius;
        if (finished >= owned_rows.begin && finished < owned_rows.end) {
          if (needs_key) key_sums.write(n, finished, owned);
          if (needs_value) value_sums.write(n, finished, owned);
        }
      }
    });
  });
}

std::tuple<at::Tensor, at::Tensor> point_affiliation_cpu(const at::Tensor& query, const at::Tensor& key,
                                                         const at::Tensor& value, int64_t kernel_size,
                                                         int64_t normalization) {
  check_point_affiliation(query, key, value, kernel_size, normalization);
  const int64_t N = query.size(0), H = query.size(2), W = query.size(3);
  at::Tensor output = at::empty({N, value.size(1), H, W}, value.options(), value.suggest_memory_format());
  at::Tensor normalizer = at::empty({N, H, W}, query.options().dtype(at::toOpMathType(query.scalar_type())));
  if (query.size(0) * H * W == 0) return {output, normalizer};
  check_not_empty(key, "key", H, W);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "point_affiliation_cpu", [&] {
    forward<scalar_t>(query, key, value, static_cast<int>(kernel_size), static_cast<Normalization>(normalization),
                      output, normalizer);
  });
  return {output, normalizer};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> point_affiliation_backward_cpu(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& normalizer, int64_t kernel_size, int64_t normalization, std::array<bool, 3> needs_grad) {
  check_point_affiliation(query, key, value, kernel_size, normalization);
  check_map(query, "query", grad, "grad");
  const Inputs<3> inputs{&query, &key, &value};
  Gradients<3> grads = make_gradients(inputs, needs_grad);
  if (query.size(0) * query.size(2) * query.size(3) == 0) {
    make_zero(grads);
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, query.scalar_type(), "point_affiliation_backward_cpu", [&] {
          backward<scalar_t>(grad, query, key, value, normalizer, static_cast<int>(kernel_size),
                             static_cast<Normalization>(normalization), grads[0], grads[1], grads[2]);
        });
  }
  return as_tuple(grads, inputs);
}

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("point_affiliation", &point_affiliation_cpu);
  m.impl("_point_affiliation_backward", &point_affiliation_backward_cpu);
}

}  // namespace sapa_mm
