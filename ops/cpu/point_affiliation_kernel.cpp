// SPDX-License-Identifier: Apache-2.0
// Point affiliation on the CPU: for a row of cells, the queries are scored against the ring of keys, the scores
// normalised, and the ring of values mixed. Nothing of size K*K outlives its row.
#include "../point_affiliation.h"

#include <torch/library.h>

#include "planes/assembly.h"
#include "point_affiliation.h"

namespace sapa_mm {
namespace {

// Calls move(number, slot, column) for the numbers of a visit in an (N, H, W) map of normalizers.
template <typename scalar_t, typename Move>
void for_each_normalizer(const at::Tensor& normalizer, const Visit<scalar_t>& visit, const Move& move) {
  using T = accumulate_t<scalar_t>;
  const Chunk& chunk = visit.chunk;
  for (int i = 0; i < chunk.slots(); ++i) {
    const int64_t s = chunk.slot + i % chunk.columns, y = chunk.y + i / chunk.columns;
    T* line = data_of<T>(normalizer) + (visit.n * normalizer.size(1) + y) * normalizer.size(2) + s;
    for (int64_t cell = visit.span.begin; cell < visit.span.end; ++cell)
      if (s < visit.columns.count(cell)) move(line[visit.columns.first[cell]], i, cell - visit.span.begin);
  }
}

struct PointAffiliationCpu {
  template <typename scalar_t>
  static void forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, int kernel_size,
                      Normalization normalization, Border border, const at::Tensor& output,
                      const at::Tensor& normalizer) {
    using T = accumulate_t<scalar_t>;
    const int64_t D = query.size(1), C = value.size(1);
    const int taps = kernel_size * kernel_size;
    const at::Tensor packed_value = Assembly<scalar_t>::packs(value) ? value : at::Tensor();
    walk<scalar_t>(
        query, key, kernel_size, border, false, D, {key, packed_value}, {}, [&](const Visit<scalar_t>& visit) {
          return
              [&, queries = visit.make_planes(D), weights = visit.make_planes(taps), normalizers = visit.make_planes(1),
               assemble = Assembly<scalar_t>(value, output, kernel_size, visit)](Visit<scalar_t>& visit) mutable {
                const int64_t stride = visit.stride, width = visit.width;
                const int slots = visit.chunk.slots();
                visit.pack(query, 0, D, queries.get());
                loops<WindowLoops<T>>().correlate(queries.get(), stride, visit.read[0], D, slots, width, weights.get(),
                                                  stride, false);
                for (int slot = 0; slot < slots; ++slot)
                  loops<NormalizationLoops<T>>().normalize(weights.get() + slot * taps * stride, stride, taps, width,
                                                           normalization, normalizers.get() + slot * stride);
                for_each_normalizer(normalizer, visit, [&](T& there, int slot, int64_t column) {
                  there = normalizers.get()[slot * stride + column];
                });
                assemble(visit, weights.get(), visit.read[1], 0, C);
              };
        });
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& value, const at::Tensor& normalizer, int kernel_size,
                       Normalization normalization, Border border, const at::Tensor& grad_query,
                       const at::Tensor& grad_key, const at::Tensor& grad_value) {
    using T = accumulate_t<scalar_t>;
    const int64_t D = query.size(1), C = value.size(1);
    const int taps = kernel_size * kernel_size;
    const bool needs_scores = grad_query.defined() || grad_key.defined();
    const bool keeps_scores = normalization != Normalization::kSoftmax;
    const at::Tensor read_value = needs_scores ? value : at::Tensor();
    walk<scalar_t>(
        query, key, kernel_size, border, true, D, {key, read_value}, {grad_key, grad_value},
        [&](const Visit<scalar_t>& visit) {
          return [&, query_planes = visit.make_planes(D), grad_planes = visit.make_planes(kChannelBlock),
                  weight_planes = visit.make_planes(taps), grad_score_planes = visit.make_planes(taps),
                  score_planes = visit.make_planes(keeps_scores ? taps : 0), normalizer_planes = visit.make_planes(1),
                  grad_query_planes = visit.make_planes(D)](Visit<scalar_t>& visit) {
            const WindowLoops<T>& window_loops = loops<WindowLoops<T>>();
            const NormalizationLoops<T>& normalization_loops = loops<NormalizationLoops<T>>();
            const int64_t stride = visit.stride, width = visit.width;
            const int slots = visit.chunk.slots();
            T *queries = query_planes.get(), *grads = grad_planes.get(), *normalizers = normalizer_planes.get();
            T *weights = weight_planes.get(), *grad_scores = grad_score_planes.get();
            T* scores = keeps_scores ? score_planes.get() : weights;
            visit.pack(query, 0, D, queries);
            window_loops.correlate(queries, stride, visit.read[0], D, slots, width, weights, stride, false);
            if (keeps_scores) std::copy_n(weights, slots * taps * stride - visit.margin, scores);
            std::fill_n(normalizers, slots * stride - visit.margin, T(1));
            for_each_normalizer(normalizer, visit, [&](T& there, int slot, int64_t column) {
              normalizers[slot * stride + column] = there;
            });
            for (int slot = 0; slot < slots; ++slot)
              normalization_loops.recompute_weights(weights + slot * taps * stride, stride, taps, width, normalization,
                                                    normalizers + slot * stride);
            visit.clear_unused(weights, taps);
            for (int64_t c = 0; c < C; c += kChannelBlock) {
              const int64_t channels = std::min(kChannelBlock, C - c);
              visit.pack(grad_output, c, channels, grads);
              if (needs_scores)
                window_loops.correlate(grads, stride, visit.read[1].from_channel(c), channels, slots, width,
                                       grad_scores, stride, c > 0);
              if (grad_value.defined()) visit.spread(weights, grads, visit.summed[1].from_channel(c), channels);
            }
            if (!needs_scores) return;
            for (int slot = 0; slot < slots; ++slot) {
              const int64_t at = slot * taps * stride;
              normalization_loops.normalize_backward(weights + at, scores + at, grad_scores + at, stride, taps, width,
                                                     normalization, normalizers + slot * stride);
            }
            visit.clear_unused(grad_scores, taps);
            if (grad_key.defined()) visit.spread(grad_scores, queries, visit.summed[0], D);
            if (!grad_query.defined() || !visit.owns_row) return;
            window_loops.assemble(grad_scores, stride, visit.read[0], D, slots, width, grad_query_planes.get(), stride);
            visit.unpack_owned(grad_query_planes.get(), stride, D, grad_query, 0);
          };
        });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("point_affiliation", &PointAffiliation<PointAffiliationCpu>::forward);
  m.impl("_point_affiliation_backward", &PointAffiliation<PointAffiliationCpu>::backward);
}

}  // namespace sapa_mm
