// SPDX-License-Identifier: Apache-2.0
// The kernels of deformable sampling, and how they are launched, by the words of view.cuh only.
//
// Threads that are neighbours have neighbouring positions of a row and the same point or channels, so that they read
// the low-resolution map close to one another. No sample is ever written down.
#pragma once

#include "../window.h"
#include "view.cuh"

namespace sapa_mm {

constexpr int kSampledChannels = 8;  // channels that one thread of the kernels over channels takes

// The four positions of a low-resolution map around a point.
template <typename acc_t>
struct Corners {
  int64_t y, x;         // of the upper left one
  acc_t bottom, right;  // shares of the lower and of the right ones
  int64_t height, width;

  template <typename scalar_t>
  __device__ Corners(const View<const scalar_t>& offset, int64_t n, int64_t channel, int64_t row, int64_t column,
                     int64_t h, int64_t w)
      : height(h), width(w) {
    locate(
        static_cast<acc_t>(cell_of(column, offset.width, w)) + static_cast<acc_t>(offset.at(n, channel, row, column)),
        w, x, right);
    locate(
        static_cast<acc_t>(cell_of(row, offset.height, h)) + static_cast<acc_t>(offset.at(n, channel + 1, row, column)),
        h, y, bottom);
  }

  // Beyond the border, and at NaN, the place is the far border: nothing of the map is read, not even times 0, so that
  // sample and slopes are 0. NaN makes the share, and so the sample, NaN.
  __device__ static void locate(acc_t place, int64_t size, int64_t& first, acc_t& share) {
    const acc_t end = static_cast<acc_t>(size);
    const acc_t inside = place >= acc_t(-1) && place <= end ? place : end;
    const acc_t low = floor(inside);
    first = static_cast<int64_t>(low);
    share = place == place ? inside - low : place;
  }

  __device__ bool has(int k) const {
    const int64_t row = y + k / 2, column = x + k % 2;
    return row >= 0 && row < height && column >= 0 && column < width;
  }
  __device__ acc_t share(int k) const {
    return (k / 2 == 0 ? acc_t(1) - bottom : bottom) * (k % 2 == 0 ? acc_t(1) - right : right);
  }
  template <typename scalar_t>
  __device__ scalar_t& of(const View<scalar_t>& map, int64_t n, int64_t channel, int k) const {
    return map.at(n, channel, y + k / 2, x + k % 2);
  }
};

// For every point the product of x with the sample of low, and weights times its derivative by the offset.
template <typename scalar_t, typename acc_t>
__global__ void correlate_points_kernel(View<const scalar_t> x,       // (N, C, H, W)
                                        View<const scalar_t> low,     // (N, C, h, w)
                                        View<const scalar_t> offset,  // (N, groups * points * 2, H, W)
                                        int64_t groups,
                                        View<acc_t> scores,            // (N, groups * points, H, W), data may be null
                                        View<const acc_t> weights,     // (N, groups * points, H, W), with grad_offset
                                        View<scalar_t> grad_offset) {  // like offset, data may be null
  const int64_t all_points = offset.channels / 2, H = offset.height, W = offset.width;
  const int64_t index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t column = index % W, row = index / W % H, point = index / W / H % all_points;
  const int64_t n = index / W / H / all_points;
  if (n >= offset.images) return;
  const int64_t channels = low.channels / groups, first = point / (all_points / groups) * channels;
  const Corners<acc_t> corners(offset, n, 2 * point, row, column, low.height, low.width);
  acc_t product[4] = {};
  for (int64_t c = first; c < first + channels; ++c) {
    const acc_t there = static_cast<acc_t>(x.at(n, c, row, column));
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (corners.has(k)) product[k] += there * static_cast<acc_t>(corners.of(low, n, c, k));
  }
  if (scores.data != nullptr) {
    acc_t score = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) score += product[k] * corners.share(k);
    scores.at(n, point, row, column) = score;
  }
  if (grad_offset.data == nullptr) return;
  const acc_t weight = weights.at(n, point, row, column), right = corners.right, bottom = corners.bottom;
  const acc_t move_x = (product[1] - product[0]) * (acc_t(1) - bottom) + (product[3] - product[2]) * bottom;
  const acc_t move_y = (product[2] - product[0]) * (acc_t(1) - right) + (product[3] - product[1]) * right;
  grad_offset.at(n, 2 * point, row, column) = static_cast<scalar_t>(weight * move_x);
  grad_offset.at(n, 2 * point + 1, row, column) = static_cast<scalar_t>(weight * move_y);
}

// A few channels of a group of one position.
struct ChannelBlock {
  int64_t n, group, first, row, column;
  int count;

  template <typename scalar_t>
  __device__ ChannelBlock(const View<scalar_t>& map, int64_t groups) {
    const int64_t per_group = map.channels / groups;
    const int64_t blocks = (per_group + kSampledChannels - 1) / kSampledChannels;
    int64_t index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    column = index % map.width;
    row = (index /= map.width) % map.height;
    const int64_t block = (index /= map.height) % blocks;
    group = (index /= blocks) % groups;
    n = index / groups;
    first = group * per_group + block * kSampledChannels;
    const int64_t left = (group + 1) * per_group - first;
    count = left < kSampledChannels ? static_cast<int>(left) : kSampledChannels;
  }
};

// out = sum over points of weights * samples of low
template <typename scalar_t, typename acc_t>
__global__ void assemble_points_kernel(View<const acc_t> weights,    // (N, groups * points, H, W)
                                       View<const scalar_t> low,     // (N, C, h, w)
                                       View<const scalar_t> offset,  // (N, groups * points * 2, H, W)
                                       int64_t groups,
                                       View<scalar_t> out) {  // (N, C, H, W)
  const ChannelBlock at(out, groups);
  if (at.n >= out.images) return;
  const int64_t points = weights.channels / groups;
  acc_t sum[kSampledChannels] = {};
  for (int64_t point = at.group * points; point < (at.group + 1) * points; ++point) {
    const Corners<acc_t> corners(offset, at.n, 2 * point, at.row, at.column, low.height, low.width);
    const acc_t weight = weights.at(at.n, point, at.row, at.column);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const acc_t share = weight * corners.share(k);
      // A NaN place has no position inside but is to be seen.
      if (!corners.has(k) && share == share) continue;
#pragma unroll
      for (int c = 0; c < kSampledChannels; ++c)
        if (c < at.count)
          sum[c] += share * (corners.has(k) ? static_cast<acc_t>(corners.of(low, at.n, at.first + c, k)) : acc_t(0));
    }
  }
#pragma unroll
  for (int c = 0; c < kSampledChannels; ++c)
    if (c < at.count) out.at(at.n, at.first + c, at.row, at.column) = static_cast<scalar_t>(sum[c]);
}

// The transpose of assemble. Any position may have sampled any other, so the sums are atomic and their order varies.
template <typename scalar_t, typename acc_t>
__global__ void spread_points_kernel(View<const acc_t> weights,    // (N, groups * points, H, W)
                                     View<const scalar_t> x,       // (N, C, H, W)
                                     View<const scalar_t> offset,  // (N, groups * points * 2, H, W)
                                     int64_t groups,
                                     View<acc_t> sums) {  // (N, C, h, w), zeros before
  const ChannelBlock at(x, groups);
  if (at.n >= x.images) return;
  const int64_t points = weights.channels / groups;
  acc_t vector[kSampledChannels];
#pragma unroll
  for (int c = 0; c < kSampledChannels; ++c)
    vector[c] = c < at.count ? static_cast<acc_t>(x.at(at.n, at.first + c, at.row, at.column)) : acc_t(0);
  for (int64_t point = at.group * points; point < (at.group + 1) * points; ++point) {
    const Corners<acc_t> corners(offset, at.n, 2 * point, at.row, at.column, sums.height, sums.width);
    const acc_t weight = weights.at(at.n, point, at.row, at.column);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!corners.has(k)) continue;
      const acc_t share = weight * corners.share(k);
#pragma unroll
      for (int c = 0; c < kSampledChannels; ++c)
        if (c < at.count) atomicAdd(&corners.of(sums, at.n, at.first + c, k), share * vector[c]);
    }
  }
}

inline int64_t blocks_of(int64_t threads) {
  return (threads + kThreads - 1) / kThreads;
}

template <typename scalar_t>
int64_t channel_blocks(const View<scalar_t>& map, int64_t groups) {
  const int64_t per_group = (map.channels / groups + kSampledChannels - 1) / kSampledChannels;
  return blocks_of(map.images * groups * per_group * map.height * map.width);
}

// The launches; maps as in the kernels.
template <typename scalar_t, typename acc_t, typename Stream>
struct Sampling {
  View<const scalar_t> offset;
  int64_t groups;
  Stream stream;

  void correlate(const View<const scalar_t>& x, const View<const scalar_t>& low, const View<acc_t>& scores,
                 const View<const acc_t>& weights, const View<scalar_t>& grad_offset) const {
    SAPA_MM_LAUNCH((correlate_points_kernel<scalar_t, acc_t>),
                   blocks_of(offset.images * (offset.channels / 2) * offset.height * offset.width), 0, stream, x, low,
                   offset, groups, scores, weights, grad_offset);
  }
  void assemble(const View<const acc_t>& weights, const View<const scalar_t>& low, const View<scalar_t>& out) const {
    if (out.channels == 0) return;
    SAPA_MM_LAUNCH((assemble_points_kernel<scalar_t, acc_t>), channel_blocks(out, groups), 0, stream, weights, low,
                   offset, groups, out);
  }
  void spread(const View<const acc_t>& weights, const View<const scalar_t>& x, const View<acc_t>& sums) const {
    if (x.channels == 0) return;
    SAPA_MM_LAUNCH((spread_points_kernel<scalar_t, acc_t>), channel_blocks(x, groups), 0, stream, weights, x, offset,
                   groups, sums);
  }
};

}  // namespace sapa_mm
