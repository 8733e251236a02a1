// SPDX-License-Identifier: Apache-2.0
// The kernels of point affiliation, and how they are launched.
#pragma once

#include "../normalization.h"
#include "window.cuh"

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

// In place from the scores of one position to its weights; returns the normalizer.
template <int K, typename acc_t>
__device__ acc_t normalize(acc_t* taps, const Geometry& g, Normalization normalization) {
  const int count = side<K>(g) * side<K>(g);
  const bool softmax = normalization == Normalization::kSoftmax;
  acc_t top = taps[0], sum = 0;
#pragma unroll(K > 0 ? K * K : 1)
  for (int t = 1; t < count; ++t) top = taps[t] > top ? taps[t] : top;
#pragma unroll(K > 0 ? K * K : 1)
  for (int t = 0; t < count; ++t) {
    taps[t] = softmax ? exp(taps[t] - top) : positive(taps[t], normalization);
    sum += taps[t];
  }
  if (!softmax) sum += acc_t(kEpsilon);
  const acc_t scale = acc_t(1) / sum;
#pragma unroll(K > 0 ? K * K : 1)
  for (int t = 0; t < count; ++t) taps[t] *= scale;
  return softmax ? top + log(sum) : sum;
}

// In place, for one position: from the scores to the weights, and from the gradients of the weights to those of the
// scores.
template <int K, typename acc_t>
__device__ void normalize_backward(acc_t* taps, acc_t* grads, const Geometry& g, Normalization normalization,
                                   acc_t normalizer) {
  const int count = side<K>(g) * side<K>(g);
  acc_t sum = 0, mean = 0;
  if (normalization == Normalization::kSoftmax) {
    // A large log-normalizer is rounded coarsely, for all taps alike: dividing by the sum takes that out again.
#pragma unroll(K > 0 ? K * K : 1)
    for (int t = 0; t < count; ++t) {
      taps[t] = exp(taps[t] - normalizer);
      sum += taps[t];
    }
    const acc_t scale = acc_t(1) / sum;
#pragma unroll(K > 0 ? K * K : 1)
    for (int t = 0; t < count; ++t) {
      taps[t] *= scale;
      mean += taps[t] * grads[t];
    }
#pragma unroll(K > 0 ? K * K : 1)
    for (int t = 0; t < count; ++t) grads[t] = taps[t] * (grads[t] - mean);
    return;
  }
  const acc_t scale = acc_t(1) / normalizer;
#pragma unroll(K > 0 ? K * K : 1)
  for (int t = 0; t < count; ++t) mean += positive(taps[t], normalization) * scale * grads[t];
#pragma unroll(K > 0 ? K * K : 1)
  for (int t = 0; t < count; ++t) {
    grads[t] = positive_slope(taps[t], normalization) * scale * (grads[t] - mean);
    taps[t] = positive(taps[t], normalization) * scale;
  }
}

template <typename scalar_t, typename acc_t, int K, int P>
__global__ void affiliation_forward_kernel(View<const scalar_t> query,  // (N, D, H, W)
                                           View<const scalar_t> key,    // (N, D, h, w)
                                           View<const scalar_t> value,  // (N, C, h, w)
                                           Geometry g, Normalization normalization,
                                           int64_t block_channels,  // of the value, for each block
                                           View<scalar_t> output,   // (N, C, H, W)
                                           acc_t* normalizer) {     // (N, H, W)
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  Place place(g, P, 0);
  // The images come once more for each part of the channels.
  const int64_t part = place.n / query.images, first = part * block_channels;
  const int64_t left = value.channels - first, channels = left < block_channels ? left : block_channels;
  place.n -= part * query.images;
  Taps<acc_t, K, P> taps;
  correlate<acc_t, K, P>(key, g, place, 0, key.channels, shared, taps, query);
#pragma unroll
  for (int p = 0; p < P; ++p)
    if (p < place.rows) {
      const acc_t saved = normalize<K>(taps.data[p], g, normalization);
      if (part == 0) normalizer[(place.n * g.H + place.y + p) * g.W + place.x] = saved;
    }
  assemble<acc_t, K, P>(value, g, place, first, channels, shared, taps, output);
}

// The gradient of the query and, for spread_kernel, the weights and the gradients of the scores of some images.
template <typename scalar_t, typename acc_t, int K>
__global__ void affiliation_backward_kernel(View<const scalar_t> grad_output,  // (N, C, H, W)
                                            View<const scalar_t> query,        // (N, D, H, W)
                                            View<const scalar_t> key,          // (N, D, h, w)
                                            View<const scalar_t> value,        // (N, C, h, w)
                                            const acc_t* normalizer,           // (N, H, W)
                                            Geometry g, Normalization normalization, int64_t first_image,
                                            View<scalar_t> grad_query,  // (N, D, H, W), data may be null
                                            View<acc_t> weights,        // (images, K*K, H, W), data may be null
                                            View<acc_t> grad_scores) {  // (images, K*K, H, W), data may be null
  SAPA_MM_DYNAMIC_SHARED(acc_t, shared);
  const Place place(g, 1, first_image);
  Taps<acc_t, K, 1> taps, grads;
  correlate<acc_t, K, 1>(key, g, place, 0, key.channels, shared, taps, query);
  // For the gradient of the value alone the weights are enough, and normalize_backward leaves zeros zeros.
  const bool needs_scores = grad_query.data != nullptr || grad_scores.data != nullptr;
  correlate<acc_t, K, 1>(value, g, place, 0, needs_scores ? value.channels : 0, shared, grads, grad_output);
  if (place.rows > 0) {
    const acc_t n = normalizer[(place.n * g.H + place.y) * g.W + place.x];
    normalize_backward<K>(taps.data[0], grads.data[0], g, normalization, n);
#pragma unroll(K > 0 ? K * K : 1)
    for (int t = 0; t < side<K>(g) * side<K>(g); ++t) {
      if (weights.data != nullptr) weights.at(place.n - first_image, t, place.y, place.x) = taps.data[0][t];
      if (grad_scores.data != nullptr) grad_scores.at(place.n - first_image, t, place.y, place.x) = grads.data[0][t];
    }
  }
  if (grad_query.data != nullptr) assemble<acc_t, K, 1>(key, g, place, 0, key.channels, shared, grads, grad_query);
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
    constexpr int P = positions<K>();
    const Geometry g = make_geometry<acc_t, P>(query.height, query.width, key.height, key.width, kernel_size, border);
    if (K > 0 && g.staged_channels == 0) return run<0>();
    const int64_t block_channels = channels_of_a_block(g, query.images, value.channels);
    const int64_t parts = value.channels > 0 ? (value.channels + block_channels - 1) / block_channels : 1;
    SAPA_MM_LAUNCH((affiliation_forward_kernel<scalar_t, acc_t, K, P>), g.tiles() * query.images * parts,
                   shared_bytes<acc_t>(g), stream, query, key, value, g, normalization, block_channels, output,
                   normalizer);
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
  View<acc_t> weights, grad_scores;                 // (images_at_a_time, K*K, H, W), with data where those two have
  int64_t images_at_a_time;
  Stream stream;

  void operator()() const { for_window(kernel_size, *this); }

  template <int K>
  void run() const {
    const Geometry g = make_geometry<acc_t, 1>(query.height, query.width, key.height, key.width, kernel_size, border);
    if (K > 0 && g.staged_channels == 0) return run<0>();
    for (int64_t first = 0; first < query.images; first += images_at_a_time) {
      const int64_t left = query.images - first, images = left < images_at_a_time ? left : images_at_a_time;
      View<acc_t> w = weights, s = grad_scores;
      w.images = s.images = images;
      SAPA_MM_LAUNCH((affiliation_backward_kernel<scalar_t, acc_t, K>), g.tiles() * images, shared_bytes<acc_t>(g),
                     stream, grad_output, query, key, value, normalizer, g, normalization, first, grad_query, w, s);
      if (grad_value.data != nullptr)
        spread<scalar_t, acc_t, acc_t>(grad_output, read_only(w), kernel_size, 1, border, first, grad_value, stream);
      if (grad_key.data != nullptr)
        spread<scalar_t, acc_t, acc_t>(query, read_only(s), kernel_size, 1, border, first, grad_key, stream);
    }
  }
};

}  // namespace sapa_mm
