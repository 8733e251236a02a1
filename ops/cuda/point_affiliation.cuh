// SPDX-License-Identifier: Apache-2.0
// The kernels of point affiliation, and how they are launched.
#pragma once

#include "../normalization.h"
#include "any_window.cuh"
#include "spread.cuh"

namespace sapa_mm {

template <typename acc_t>
__device__ acc_t positive(acc_t x, Normalization normalization) {
  if (normalization == Normalization::kRelu) return x < 0 ? acc_t(0) : x;
  if (normalization == Normalization::kSigmoid) return acc_t(1) / (acc_t(1) + exp(-x));
  return (x < 0 ? acc_t(0) : x) + log1p(exp(x < 0 ? x : -x));
}

template <typename acc_t>
__device__ acc_t positive_slope(acc_t x, Normalization normalization) {
  if (normalization == Normalization::kRelu) return x > 0 ? acc_t(1) : (x == x ? acc_t(0) : x);
  const acc_t y = acc_t(1) / (acc_t(1) + exp(-x));
  return normalization == Normalization::kSigmoid ? y * (1 - y) : y;
}

// In place from the scores of one position, `count` of them and kCount if that is known, to its weights; returns the
// normalizer.
template <typename acc_t, int kCount, typename Taps>
__device__ acc_t normalize(Taps taps, int count, Normalization normalization) {
  const bool softmax = normalization == Normalization::kSoftmax;
  acc_t top = taps[0], sum = 0;
#pragma unroll(kCount > 0 ? kCount : 1)
  for (int t = 1; t < count; ++t) top = taps[t] > top ? taps[t] : top;
#pragma unroll(kCount > 0 ? kCount : 1)
  for (int t = 0; t < count; ++t) {
    taps[t] = softmax ? exp(taps[t] - top) : positive(taps[t], normalization);
    sum += taps[t];
  }
  if (!softmax) sum += acc_t(kEpsilon);
  const acc_t scale = acc_t(1) / sum;
#pragma unroll(kCount > 0 ? kCount : 1)
  for (int t = 0; t < count; ++t) taps[t] *= scale;
  return softmax ? top + log(sum) : sum;
}

// In place, for one position: from the scores to the weights, and from the gradients of the weights to those of the
// scores.
template <typename acc_t, int kCount, typename Taps>
__device__ void normalize_backward(Taps taps, Taps grads, int count, Normalization normalization, acc_t normalizer) {
  acc_t sum = 0, mean = 0;
  if (normalization == Normalization::kSoftmax) {
    // A large log-normalizer is rounded coarsely, for all taps alike: dividing by the sum takes that out again.
#pragma unroll(kCount > 0 ? kCount : 1)
    for (int t = 0; t < count; ++t) {
      taps[t] = exp(taps[t] - normalizer);
      sum += taps[t];
    }
    const acc_t scale = acc_t(1) / sum;
#pragma unroll(kCount > 0 ? kCount : 1)
    for (int t = 0; t < count; ++t) {
      taps[t] *= scale;
      mean += taps[t] * grads[t];
    }
#pragma unroll(kCount > 0 ? kCount : 1)
    for (int t = 0; t < count; ++t) grads[t] = taps[t] * (grads[t] - mean);
    return;
  }
  const acc_t scale = acc_t(1) / normalizer;
#pragma unroll(kCount > 0 ? kCount : 1)
  for (int t = 0; t < count; ++t) mean += positive(taps[t], normalization) * scale * grads[t];
#pragma unroll(kCount > 0 ? kCount : 1)
  for (int t = 0; t < count; ++t) {
    grads[t] = positive_slope(taps[t], normalization) * scale * (grads[t] - mean);
    taps[t] = positive(taps[t], normalization) * scale;
  }
}

template <typename scalar_t, typename acc_t, int K, int R, int X>
__global__ void affiliation_forward_kernel(View<const scalar_t> query,  // (N, D, H, W)
                                           View<const scalar_t> key,    // (N, D, h, w)
                                           View<const scalar_t> value,  // (N, C, h, w)
                                           Geometry g, Normalization normalization, bool scores_by_vectors,
                                           bool mixes_by_vectors,
                                           int64_t block_channels,  // of the value, for each block
                                           View<scalar_t> output,   // (N, C, H, W)
                                           acc_t* normalizer) {     // (N, H, W)
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  Place place(g, R, 0);
  // The images come once more for each part of the channels.
  const int64_t part = place.n / query.images, first = part * block_channels;
  const int64_t left = value.channels - first, channels = left < block_channels ? left : block_channels;
  place.n -= part * query.images;
  Taps<acc_t, K, R, X> taps;
  correlate<acc_t, K, R, X>(key, g, place, 0, key.channels, shared, taps, query, scores_by_vectors);
  for_each_position<R, X>(place, [&](int p, int64_t y, int64_t x) {
    const acc_t saved = normalize<acc_t, K * K>(taps.data[p], K * K, normalization);
    if (part == 0) normalizer[(place.n * g.H + y) * g.W + x] = saved;
  });
  assemble<acc_t, K, R, X>(value, g, place, first, channels, shared, taps, output, mixes_by_vectors);
}

// The gradient of the query and, for spread, the weights and the gradients of the scores of some images. The scores
// wait for the gradients of the weights where the weights will be: so the registers have room for more positions.
template <typename scalar_t, typename acc_t, int K, int R, int X>
__global__ void affiliation_backward_kernel(View<const scalar_t> grad_output,  // (N, C, H, W)
                                            View<const scalar_t> query,        // (N, D, H, W)
                                            View<const scalar_t> key,          // (N, D, h, w)
                                            View<const scalar_t> value,        // (N, C, h, w)
                                            const acc_t* normalizer,           // (N, H, W)
                                            Geometry g, Normalization normalization, bool scores_by_vectors,
                                            bool grads_by_vectors, bool mixes_by_vectors, int64_t first_image,
                                            View<scalar_t> grad_query,  // (N, D, H, W), data may be null
                                            View<acc_t> weights,        // (images, K*K, H, W)
                                            View<acc_t> grad_scores) {  // (images, K*K, H, W), data may be null
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  const Place place(g, R, first_image);
  const int64_t image = place.n - first_image;
  Taps<acc_t, K, R, X> taps;
  correlate<acc_t, K, R, X>(key, g, place, 0, key.channels, shared, taps, query, scores_by_vectors);
  for_each_position<R, X>(place, [&](int p, int64_t y, int64_t x) {
    acc_t* kept = &weights.at(image, 0, y, x);
#pragma unroll
    for (int t = 0; t < K * K; ++t, kept += weights.c) *kept = taps.data[p][t];
  });
  // For the gradient of the value alone the weights are enough, and normalize_backward leaves zeros zeros.
  const bool needs_scores = grad_query.data != nullptr || grad_scores.data != nullptr;
  correlate<acc_t, K, R, X>(value, g, place, 0, needs_scores ? value.channels : 0, shared, taps, grad_output,
                            grads_by_vectors);
  for_each_position<R, X>(place, [&](int p, int64_t y, int64_t x) {
    acc_t scores[K * K], *kept = &weights.at(image, 0, y, x);
#pragma unroll
    for (int t = 0; t < K * K; ++t, kept += weights.c) scores[t] = *kept;
    normalize_backward<acc_t, K * K>(scores, taps.data[p], K * K, normalization,
                                     normalizer[(place.n * g.H + y) * g.W + x]);
    kept = &weights.at(image, 0, y, x);
#pragma unroll
    for (int t = 0; t < K * K; ++t, kept += weights.c) *kept = scores[t];
    if (grad_scores.data == nullptr) return;
    kept = &grad_scores.at(image, 0, y, x);
#pragma unroll
    for (int t = 0; t < K * K; ++t, kept += grad_scores.c) *kept = taps.data[p][t];
  });
  if (grad_query.data != nullptr)
    assemble<acc_t, K, R, X>(key, g, place, 0, key.channels, shared, taps, grad_query, mixes_by_vectors);
}

// The taps of a team's position: those of neighbours lie side by side.
template <typename acc_t>
struct TeamTaps {
  acc_t* data;
  int stride;

  __device__ TeamTaps(acc_t* shared, const Team& team) : data(shared + team.position), stride(team.positions) {}
  __device__ acc_t& operator[](int t) const { return data[t * stride]; }
};

// affiliation_forward_kernel for any window, by teams.
template <typename scalar_t, typename acc_t>
__global__ void any_affiliation_forward_kernel(View<const scalar_t> query, View<const scalar_t> key,
                                               View<const scalar_t> value, Geometry g, Normalization normalization,
                                               int positions, View<scalar_t> output, acc_t* normalizer) {
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  const Team team(g, positions, 0, query.images);
  const TeamTaps<acc_t> taps(shared, team);
  const int count = g.kernel_size * g.kernel_size;
  correlate<acc_t>(key, g, team, 0, key.channels, query, [&](int t, acc_t score) { taps[t] = score; });
  __syncthreads();  // all members have scored
  if (team.member == 0 && team.has_position)
    normalizer[(team.n * g.H + team.y) * g.W + team.x] = normalize<acc_t, 0>(taps, count, normalization);
  __syncthreads();  // the first member has normalized
  assemble<acc_t>(value, g, team, 0, value.channels, [&](int t) { return taps[t]; }, output);
}

// affiliation_backward_kernel for any window, by teams.
template <typename scalar_t, typename acc_t>
__global__ void any_affiliation_backward_kernel(View<const scalar_t> grad_output, View<const scalar_t> query,
                                                View<const scalar_t> key, View<const scalar_t> value,
                                                const acc_t* normalizer, Geometry g, Normalization normalization,
                                                int positions, int64_t first_image, View<scalar_t> grad_query,
                                                View<acc_t> weights, View<acc_t> grad_scores) {
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  const Team team(g, positions, first_image, weights.images);
  const int count = g.kernel_size * g.kernel_size;
  const TeamTaps<acc_t> taps(shared, team), grads(shared + count * positions, team);
  const bool needs_scores = grad_query.data != nullptr || grad_scores.data != nullptr;
  correlate<acc_t>(key, g, team, 0, key.channels, query, [&](int t, acc_t score) { taps[t] = score; });
  correlate<acc_t>(value, g, team, 0, needs_scores ? value.channels : 0, grad_output,
                   [&](int t, acc_t grad) { grads[t] = grad; });
  __syncthreads();  // all members have summed
  if (team.member == 0 && team.has_position)
    normalize_backward<acc_t, 0>(taps, grads, count, normalization, normalizer[(team.n * g.H + team.y) * g.W + team.x]);
  __syncthreads();  // the first member has the gradients
  for (int t = team.member; team.has_position && t < count; t += team.members) {
    weights.at(team.n - first_image, t, team.y, team.x) = taps[t];
    if (grad_scores.data != nullptr) grad_scores.at(team.n - first_image, t, team.y, team.x) = grads[t];
  }
  if (grad_query.data != nullptr)
    assemble<acc_t>(key, g, team, 0, key.channels, [&](int t) { return grads[t]; }, grad_query);
}

template <typename scalar_t, typename acc_t, typename Stream>
struct AffiliationForward {
  View<const scalar_t> query, key, value;
  int64_t kernel_size;
  Normalization normalization;
  Border border;
  View<scalar_t> output;
  acc_t* normalizer;
  Stream stream;

  void operator()() const { for_window(kernel_size, *this); }

  template <int K>
  void run() const {
    const CellAxis columns(query.width, key.width, K / 2, border);
    const bool pairs =
        has_pairs<acc_t, K>(query, scores_by_vectors()) && has_pairs<acc_t, K>(output, mixes_by_vectors());
    with_columns<K, acc_t>(columns, pairs, *this);
  }

  bool scores_by_vectors() const { return can_go_by_vectors(key, query); }
  bool mixes_by_vectors() const { return can_go_by_vectors(value, output); }

  template <int K, int R, int X>
  void run_with() const {
    const int staged = scores_by_vectors() || mixes_by_vectors() ? kStagedByVectors<scalar_t> : 0;
    const Geometry g = make_geometry<acc_t, R, X>(query.height, query.width, key.height, key.width, K, border, staged);
    if (g.staged_channels == 0) return run_any();
    const int64_t block_channels =
        channels_of_a_block(g, query.images, value.channels, mixes_by_vectors() ? kVector<scalar_t> : 1);
    const int64_t parts = value.channels > 0 ? (value.channels + block_channels - 1) / block_channels : 1;
    SAPA_MM_LAUNCH((affiliation_forward_kernel<scalar_t, acc_t, K, R, X>), g.tiles() * query.images * parts,
                   shared_bytes<acc_t>(g), stream, query, key, value, g, normalization, scores_by_vectors(),
                   mixes_by_vectors(), block_channels, output, normalizer);
  }

  void run_any() const {
    const Geometry g =
        make_geometry<acc_t, 1, 1>(query.height, query.width, key.height, key.width, kernel_size, border);
    const int64_t bytes = kernel_size * kernel_size * static_cast<int64_t>(sizeof(acc_t));
    const int positions = team_positions(bytes);
    SAPA_MM_LAUNCH((any_affiliation_forward_kernel<scalar_t, acc_t>), team_blocks(g, positions, query.images),
                   positions * bytes, stream, query, key, value, g, normalization, positions, output, normalizer);
  }
};

template <typename scalar_t, typename acc_t, typename Stream>
struct AffiliationBackward {
  View<const scalar_t> grad_output, query, key, value;
  const acc_t* normalizer;
  int64_t kernel_size;
  Normalization normalization;
  Border border;
  View<scalar_t> grad_query, grad_key, grad_value;  // those with data are wanted
  View<acc_t> weights, grad_scores;                 // (images_at_a_time, K*K, H, W); the latter has data with grad_key
  int64_t images_at_a_time;
  Stream stream;

  void operator()() const { for_window(kernel_size, *this); }

  template <int K>
  void run() const {
    const CellAxis columns(query.width, key.width, K / 2, border);
    const bool pairs =
        has_pairs<acc_t, K>(query, scores_by_vectors()) && has_pairs<acc_t, K>(grad_output, grads_by_vectors());
    const bool no_grad_query = grad_query.data == nullptr;
    with_columns<K, acc_t>(columns, pairs && (no_grad_query || has_pairs<acc_t, K>(grad_query, mixes_by_vectors())),
                           *this);
  }

  bool scores_by_vectors() const { return can_go_by_vectors(key, query); }
  bool grads_by_vectors() const { return can_go_by_vectors(value, grad_output); }
  bool mixes_by_vectors() const { return can_go_by_vectors(key, grad_query); }

  template <int K, int R, int X>
  void run_with() const {
    const int staged = scores_by_vectors() || grads_by_vectors() || mixes_by_vectors() ? kStagedByVectors<scalar_t> : 0;
    const Geometry g = make_geometry<acc_t, R, X>(query.height, query.width, key.height, key.width, K, border, staged);
    if (g.staged_channels == 0) return run_any();
    for_images([&](int64_t first, const View<acc_t>& w, const View<acc_t>& s) {
      SAPA_MM_LAUNCH((affiliation_backward_kernel<scalar_t, acc_t, K, R, X>), g.tiles() * w.images,
                     shared_bytes<acc_t>(g), stream, grad_output, query, key, value, normalizer, g, normalization,
                     scores_by_vectors(), grads_by_vectors(), mixes_by_vectors(), first, grad_query, w, s);
    });
  }

  void run_any() const {
    const Geometry g =
        make_geometry<acc_t, 1, 1>(query.height, query.width, key.height, key.width, kernel_size, border);
    const int64_t bytes = 2 * kernel_size * kernel_size * static_cast<int64_t>(sizeof(acc_t));
    const int positions = team_positions(bytes);
    for_images([&](int64_t first, const View<acc_t>& w, const View<acc_t>& s) {
      SAPA_MM_LAUNCH((any_affiliation_backward_kernel<scalar_t, acc_t>), team_blocks(g, positions, w.images),
                     positions * bytes, stream, grad_output, query, key, value, normalizer, g, normalization, positions,
                     first, grad_query, w, s);
    });
  }

  // Calls launch(first image, weights, grad_scores) for a few images at a time, and spreads what it leaves.
  template <typename Launch>
  void for_images(const Launch& launch) const {
    for (int64_t first = 0; first < query.images; first += images_at_a_time) {
      const int64_t left = query.images - first, images = left < images_at_a_time ? left : images_at_a_time;
      View<acc_t> w = weights, s = grad_scores;
      w.images = s.images = images;
      launch(first, w, s);
      if (grad_value.data != nullptr)
        Spread<scalar_t, acc_t, acc_t, Stream>{grad_output, read_only(w), kernel_size, 1,
                                               border,      first,        grad_value,  stream}();
      if (grad_key.data != nullptr)
        Spread<scalar_t, acc_t, acc_t, Stream>{query, read_only(s), kernel_size, 1, border, first, grad_key, stream}();
    }
  }
};

}  // namespace sapa_mm
