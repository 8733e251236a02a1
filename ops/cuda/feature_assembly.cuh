// SPDX-License-Identifier: Apache-2.0
// The kernels of feature assembly, and how they are launched.
#pragma once

#include "any_window.cuh"
#include "spread.cuh"

namespace sapa_mm {

template <typename scalar_t, typename acc_t, int K, int R, int X>
__global__ void assembly_forward_kernel(View<const scalar_t> feature,  // (N, C, h, w)
                                        View<const scalar_t> weights,  // (N, groups*K*K, H, W)
                                        Geometry g, bool by_vectors, int64_t groups,
                                        int64_t block_channels,   // of each group, for each block
                                        View<scalar_t> output) {  // (N, C, H, W)
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  Place place(g, R, 0);
  // The images come once more for each part of the channels of a group.
  const int64_t part = place.n / weights.images, group_channels = feature.channels / groups;
  const int64_t left = group_channels - part * block_channels, channels = left < block_channels ? left : block_channels;
  place.n -= part * weights.images;
  for (int64_t group = 0; group < groups; ++group) {
    Taps<acc_t, K, R, X> taps{};
    for_each_position<R, X>(place, [&](int p, int64_t y, int64_t x) {
#pragma unroll
      for (int t = 0; t < K * K; ++t)
        taps.data[p][t] = static_cast<acc_t>(weights.at(place.n, group * K * K + t, y, x));
    });
    const int64_t first = group * group_channels + part * block_channels;
    assemble<acc_t, K, R, X>(feature, g, place, first, channels, shared, taps, output, by_vectors);
  }
}

template <typename scalar_t, typename acc_t, int K, int R, int X>
__global__ void assembly_backward_kernel(View<const scalar_t> grad_output,  // (N, C, H, W)
                                         View<const scalar_t> feature,      // (N, C, h, w)
                                         Geometry g, bool by_vectors, int64_t groups,
                                         View<scalar_t> grad_weights) {  // (N, groups*K*K, H, W)
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  const Place place(g, R, 0);
  const int64_t channels = feature.channels / groups;
  for (int64_t group = 0; group < groups; ++group) {
    Taps<acc_t, K, R, X> taps;
    const int64_t first = group * channels;
    correlate<acc_t, K, R, X>(feature, g, place, first, channels, shared, taps, grad_output, by_vectors);
    for_each_position<R, X>(place, [&](int p, int64_t y, int64_t x) {
#pragma unroll
      for (int t = 0; t < K * K; ++t)
        grad_weights.at(place.n, group * K * K + t, y, x) = static_cast<scalar_t>(taps.data[p][t]);
    });
  }
}

// assembly_forward_kernel for any window, by teams, which read the weights where they are.
template <typename scalar_t, typename acc_t>
__global__ void any_assembly_forward_kernel(View<const scalar_t> feature, View<const scalar_t> weights, Geometry g,
                                            int64_t groups, int positions, View<scalar_t> output) {
  const Team team(g, positions, 0, weights.images);
  const int64_t channels = feature.channels / groups, count = g.kernel_size * g.kernel_size;
  for (int64_t group = 0; group < groups; ++group)
    assemble<acc_t>(
        feature, g, team, group * channels, channels,
        [&](int t) { return static_cast<acc_t>(weights.at(team.n, group * count + t, team.y, team.x)); }, output);
}

// assembly_backward_kernel for any window, by teams.
template <typename scalar_t, typename acc_t>
__global__ void any_assembly_backward_kernel(View<const scalar_t> grad_output, View<const scalar_t> feature, Geometry g,
                                             int64_t groups, int positions, View<scalar_t> grad_weights) {
  const Team team(g, positions, 0, grad_weights.images);
  const int64_t channels = feature.channels / groups, count = g.kernel_size * g.kernel_size;
  for (int64_t group = 0; group < groups; ++group)
    correlate<acc_t>(feature, g, team, group * channels, channels, grad_output, [&](int t, acc_t grad) {
      grad_weights.at(team.n, group * count + t, team.y, team.x) = static_cast<scalar_t>(grad);
    });
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
    with_columns<K, acc_t>(CellAxis(weights.width, feature.width, K / 2, border),
                           has_pairs<acc_t, K>(output, by_vectors()), *this);
  }

  bool by_vectors() const { return can_go_by_vectors(feature, output, groups); }

  template <int K, int R, int X>
  void run_with() const {
    const Geometry g = make_geometry<acc_t, R, X>(weights.height, weights.width, feature.height, feature.width, K,
                                                  border, by_vectors() ? kStagedByVectors<scalar_t> : 0);
    if (g.staged_channels == 0) return run_any();
    const int64_t channels = feature.channels / groups;
    const int64_t block_channels =
        channels_of_a_block(g, weights.images, channels, by_vectors() ? kVector<scalar_t> : 1);
    const int64_t parts = channels > 0 ? (channels + block_channels - 1) / block_channels : 1;
    SAPA_MM_LAUNCH((assembly_forward_kernel<scalar_t, acc_t, K, R, X>), g.tiles() * weights.images * parts,
                   shared_bytes<acc_t>(g), stream, feature, weights, g, by_vectors(), groups, block_channels, output);
  }

  void run_any() const {
    const Geometry g =
        make_geometry<acc_t, 1, 1>(weights.height, weights.width, feature.height, feature.width, kernel_size, border);
    const int positions = team_positions(0);
    SAPA_MM_LAUNCH((any_assembly_forward_kernel<scalar_t, acc_t>), team_blocks(g, positions, weights.images), 0, stream,
                   feature, weights, g, groups, positions, output);
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
      Spread<scalar_t, scalar_t, acc_t, Stream>{grad_output, weights, kernel_size,  groups,
                                                border,      0,       grad_feature, stream}();
  }

  template <int K>
  void run() const {
    with_columns<K, acc_t>(CellAxis(weights.width, feature.width, K / 2, border),
                           has_pairs<acc_t, K>(grad_output, by_vectors()), *this);
  }

  bool by_vectors() const { return can_go_by_vectors(feature, grad_output, groups); }

  template <int K, int R, int X>
  void run_with() const {
    const Geometry g = make_geometry<acc_t, R, X>(weights.height, weights.width, feature.height, feature.width, K,
                                                  border, by_vectors() ? kStagedByVectors<scalar_t> : 0);
    if (g.staged_channels == 0) return run_any();
    SAPA_MM_LAUNCH((assembly_backward_kernel<scalar_t, acc_t, K, R, X>), g.tiles() * weights.images,
                   shared_bytes<acc_t>(g), stream, grad_output, feature, g, by_vectors(), groups, grad_weights);
  }

  void run_any() const {
    const Geometry g =
        make_geometry<acc_t, 1, 1>(weights.height, weights.width, feature.height, feature.width, kernel_size, border);
    const int positions = team_positions(0);
    SAPA_MM_LAUNCH((any_assembly_backward_kernel<scalar_t, acc_t>), team_blocks(g, positions, weights.images), 0,
                   stream, grad_output, feature, g, groups, positions, grad_weights);
  }
};

}  // namespace sapa_mm
