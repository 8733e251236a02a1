// SPDX-License-Identifier: Apache-2.0
// The kernels of feature assembly, and how they are launched.
#pragma once

#include "window.cuh"

namespace sapa_mm {

template <typename scalar_t, typename acc_t, int K, int P>
__global__ void assembly_forward_kernel(View<const scalar_t> feature,  // (N, C, h, w)
                                        View<const scalar_t> weights,  // (N, groups*K*K, H, W)
                                        Geometry g, int64_t groups,
                                        int64_t block_channels,   // of each group, for each block
                                        View<scalar_t> output) {  // (N, C, H, W)
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  Place place(g, P, 0);
  // The images come once more for each part of the channels of a group.
  const int64_t part = place.n / weights.images, group_channels = feature.channels / groups;
  const int64_t left = group_channels - part * block_channels, channels = left < block_channels ? left : block_channels;
  place.n -= part * weights.images;
  const int count = side<K>(g) * side<K>(g);
  for (int64_t group = 0; group < groups; ++group) {
    Taps<acc_t, K, P> taps;
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll(K > 0 ? K * K : 1)
      for (int t = 0; t < count; ++t)
        taps.data[p][t] = p < place.rows
                              ? static_cast<acc_t>(weights.at(place.n, group * count + t, place.y + p, place.x))
                              : acc_t(0);
    const int64_t first = group * group_channels + part * block_channels;
    assemble<acc_t, K, P>(feature, g, place, first, channels, shared, taps, output);
  }
}

template <typename scalar_t, typename acc_t, int K, int P>
__global__ void assembly_backward_kernel(View<const scalar_t> grad_output,  // (N, C, H, W)
                                         View<const scalar_t> feature,      // (N, C, h, w)
                                         Geometry g, int64_t groups,
                                         View<scalar_t> grad_weights) {  // (N, groups*K*K, H, W)
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  const Place place(g, P, 0);
  const int count = side<K>(g) * side<K>(g);
  const int64_t channels = feature.channels / groups;
  for (int64_t group = 0; group < groups; ++group) {
    Taps<acc_t, K, P> taps;
    const int64_t first = group * channels;
    correlate<acc_t, K, P>(feature, g, place, first, channels, shared, taps, grad_output);
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll(K > 0 ? K * K : 1)
      for (int t = 0; t < count; ++t)
        if (p < place.rows)
          grad_weights.at(place.n, group * count + t, place.y + p, place.x) = static_cast<scalar_t>(taps.data[p][t]);
  }
}

template <typename scalar_t, typename acc_t, typename Stream>
struct AssemblyForward {
  View<const scalar_t> feature, weights;
  int64_t kernel_size, groups;
  Border border;
  View<scalar_t> output;
  Stream stream;

  void operator()() const { for_window(kernel_size, *this); }

  template <int K>
  void run() const {
    constexpr int P = positions<K>();
    const Geometry g =
        make_geometry<acc_t, P>(weights.height, weights.width, feature.height, feature.width, kernel_size, border);
    if (K > 0 && g.staged_channels == 0) return run<0>();
    const int64_t channels = feature.channels / groups;
    const int64_t block_channels = channels_of_a_block(g, weights.images, channels);
    const int64_t parts = channels > 0 ? (channels + block_channels - 1) / block_channels : 1;
    SAPA_MM_LAUNCH((assembly_forward_kernel<scalar_t, acc_t, K, P>), g.tiles() * weights.images * parts,
                   shared_bytes<acc_t>(g), stream, feature, weights, g, groups, block_channels, output);
  }
};

template <typename scalar_t, typename acc_t, typename Stream>
struct AssemblyBackward {
  View<const scalar_t> grad_output, feature, weights;
  int64_t kernel_size, groups;
  Border border;
  View<scalar_t> grad_feature, grad_weights;  // those with data are wanted
  Stream stream;

  void operator()() const {
    if (grad_weights.data != nullptr) for_window(kernel_size, *this);
    if (grad_feature.data != nullptr)
      spread<scalar_t, scalar_t, acc_t>(grad_output, weights, kernel_size, groups, border, 0, grad_feature, stream);
  }

  template <int K>
  void run() const {
    constexpr int P = positions<K>();
    const Geometry g =
        make_geometry<acc_t, P>(weights.height, weights.width, feature.height, feature.width, kernel_size, border);
    if (K > 0 && g.staged_channels == 0) return run<0>();
    SAPA_MM_LAUNCH((assembly_backward_kernel<scalar_t, acc_t, K, P>), g.tiles() * weights.images,
                   shared_bytes<acc_t>(g), stream, grad_output, feature, g, groups, grad_weights);
  }
};

}  // namespace sapa_mm
