// SPDX-License-Identifier: Apache-2.0
// Feature assembly on the CPU: the second half of point affiliation, with weights that are given.
#include "../feature_assembly.h"

#include <torch/library.h>

#include "planes/assembly.h"

namespace sapa_mm {
namespace {

struct FeatureAssemblyCpu {
  template <typename scalar_t>
  static void forward(const at::Tensor& feature, const at::Tensor& weights, int kernel_size, int64_t groups,
                      Border border, const at::Tensor& output) {
    const int64_t per_group = feature.size(1) / groups, taps = kernel_size * kernel_size;
    const at::Tensor packed_feature = Assembly<scalar_t>::packs(feature) ? feature : at::Tensor();
    walk<scalar_t>(
        weights, feature, kernel_size, border, false, taps, {packed_feature}, {}, [&](const Visit<scalar_t>& visit) {
          return [&, planes = visit.make_planes(taps),
                  assemble = Assembly<scalar_t>(feature, output, kernel_size, visit)](Visit<scalar_t>& visit) mutable {
            for (int64_t group = 0; group < groups; ++group) {
              visit.pack(weights, group * taps, taps, planes.get());
              assemble(visit, planes.get(), visit.read[0], group * per_group, (group + 1) * per_group);
            }
          };
        });
  }

  template <typename scalar_t>
  static void backward(const at::Tensor& grad_output, const at::Tensor& feature, const at::Tensor& weights,
                       int kernel_size, int64_t groups, Border border, const at::Tensor& grad_feature,
                       const at::Tensor& grad_weights) {
    using T = accumulate_t<scalar_t>;
    const int64_t per_group = feature.size(1) / groups, taps = kernel_size * kernel_size;
    const at::Tensor read_feature = grad_weights.defined() ? feature : at::Tensor();
    walk<scalar_t>(weights, feature, kernel_size, border, true, taps, {read_feature}, {grad_feature},
                   [&](const Visit<scalar_t>& visit) {
                     return [&, grad_planes = visit.make_planes(kChannelBlock), weight_planes = visit.make_planes(taps),
                             grad_weight_planes = visit.make_planes(taps)](Visit<scalar_t>& visit) {
                       const bool needs_weights = grad_weights.defined() && visit.owns_row;
                       T* grads = grad_planes.get();
                       for (int64_t group = 0; group < groups; ++group) {
                         if (grad_feature.defined()) visit.pack(weights, group * taps, taps, weight_planes.get());
                         const int64_t first = group * per_group, last = first + per_group;
                         for (int64_t c = first; c < last; c += kChannelBlock) {
                           const int64_t channels = std::min(kChannelBlock, last - c);
                           visit.pack(grad_output, c, channels, grads);
                           if (needs_weights)
                             loops<WindowLoops<T>>().correlate(grads, visit.stride, visit.read[0].from_channel(c),
                                                               channels, visit.chunk.slots(), visit.width,
                                                               grad_weight_planes.get(), visit.stride, c > first);
                           if (grad_feature.defined())
                             visit.spread(weight_planes.get(), grads, visit.summed[0].from_channel(c), channels);
                         }
                         if (needs_weights)
                           visit.unpack_owned(grad_weight_planes.get(), visit.stride, taps, grad_weights, group * taps);
                       }
                     };
                   });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("feature_assembly", &FeatureAssembly<FeatureAssemblyCpu>::forward);
  m.impl("_feature_assembly_backward", &FeatureAssembly<FeatureAssemblyCpu>::backward);
}

}  // namespace sapa_mm
