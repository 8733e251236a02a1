// SPDX-License-Identifier: Apache-2.0
// The gradient of a low-resolution map that was mixed: every position of it collects from the positions whose windows
// hold it, in one order, so that no atomics are needed and results repeat.
#pragma once

#include "window.cuh"

namespace sapa_mm {

constexpr int kSpreadChannels = 8;  // that a thread sums

// Some channels of what a thread owns: `unit` is a low-resolution position, or a square of them. Neighbouring threads
// have neighbouring units, or in channels_last neighbouring channels, so that the next channel of a thread is a `step`
// away.
template <bool kChannelsLast>
struct SpreadPlace {
  int64_t image, group, first;  // among those of the weights; first channel
  int unit, step, count;        // count: of channels

  // Divisions of 64 bits take as long as dozens of products: one for each thread, or two.
  template <typename scalar_t>
  __device__ SpreadPlace(const View<scalar_t>& grad, int64_t groups, int64_t units) {
    const int64_t per_group = grad.channels / groups;
    const uint32_t blocks = static_cast<uint32_t>((per_group + kSpreadChannels - 1) / kSpreadChannels);
    const uint32_t all_blocks = static_cast<uint32_t>(groups) * blocks;
    const int64_t index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if constexpr (kChannelsLast) {
      const int64_t rest = index / all_blocks;
      const uint32_t block = static_cast<uint32_t>(index - rest * all_blocks);
      image = rest / units;
      unit = static_cast<int>(rest - image * units);
      group = block / blocks;
      step = static_cast<int>(blocks);
      first = group * per_group + block % blocks;
    } else {
      const int64_t rest = index / units;
      unit = static_cast<int>(index - rest * units);
      const uint32_t block = static_cast<uint32_t>(rest) % all_blocks;
      image = static_cast<uint32_t>(rest) / all_blocks;
      group = block / blocks;
      step = 1;
      first = group * per_group + block % blocks * int64_t{kSpreadChannels};
    }
    const int64_t left = ((group + 1) * per_group - first + step - 1) / step;
    count = left < kSpreadChannels ? static_cast<int>(left) : kSpreadChannels;
  }
};

// First position of a cell, and for cell == cells the end of the axis.
__device__ inline int start_of(int cell, const CellAxis& axis, int ratio) {
  return ratio > 0 ? cell * ratio : static_cast<int>(axis.first_position(cell));
}

// (n, c .. c + kSpreadChannels, y, x) is one low-resolution position.
template <bool kChannelsLast, typename scalar_t, typename weight_t, typename acc_t>
__global__ void spread_kernel(View<const scalar_t> source,   // (N, C, H, W): what was multiplied with the weights
                              View<const weight_t> weights,  // (images, groups*K*K, H, W)
                              Geometry g, int ratio_y, int ratio_x,  // 0 where not an integer, or with borders
                              int64_t groups, int64_t first_image,
                              View<scalar_t> grad) {  // (N, C, h, w)
  const SpreadPlace<kChannelsLast> at(grad, groups, g.h * g.w);
  if (at.image >= weights.images) return;
  const int h = static_cast<int>(g.h), w = static_cast<int>(g.w), x = at.unit % w, y = at.unit / w;
  const int K = g.kernel_size, radius = K / 2;
  const int bottom = y + radius < h ? y + radius : h - 1, right = x + radius < w ? x + radius : w - 1;
  acc_t sum[kSpreadChannels] = {};
  for (int cell_y = y < radius ? 0 : y - radius; cell_y <= bottom; ++cell_y) {
    const int y_begin = start_of(cell_y, g.rows(), ratio_y), rows = start_of(cell_y + 1, g.rows(), ratio_y) - y_begin;
    for (int cell_x = x < radius ? 0 : x - radius; cell_x <= right; ++cell_x) {
      const int x_begin = start_of(cell_x, g.columns(), ratio_x),
                columns = start_of(cell_x + 1, g.columns(), ratio_x) - x_begin;
      const int64_t tap = (at.group * K + (y - cell_y + radius)) * K + (x - cell_x + radius);
      const weight_t* weight_row = weights.data + at.image * weights.n + tap * weights.c + y_begin * weights.y;
      const scalar_t* source_row = source.data + (first_image + at.image) * source.n + at.first * source.c;
      source_row += y_begin * source.y;
      for (int row = 0; row < rows; ++row, weight_row += weights.y, source_row += source.y)
        for (int px = x_begin; px < x_begin + columns; ++px) {
          const acc_t weight = static_cast<acc_t>(weight_row[px * weights.x]);
          const scalar_t* from = source_row + px * source.x;
#pragma unroll
          for (int c = 0; c < kSpreadChannels; ++c, from += kChannelsLast ? at.step : source.c)
            if (c < at.count) sum[c] += weight * static_cast<acc_t>(*from);
        }
    }
  }
  scalar_t* to = &grad.at(first_image + at.image, at.first, y, x);
#pragma unroll
  for (int c = 0; c < kSpreadChannels; ++c, to += at.step * grad.c)
    if (c < at.count) *to = static_cast<scalar_t>(sum[c]);
}

// The same at ratio 2, for a square of two by two low-resolution positions: of the rows of positions that their windows
// cover, each value is read once for all that it is added to, four of them at a time.
template <int K, bool kChannelsLast, typename scalar_t, typename weight_t, typename acc_t>
__global__ void spread_squares_kernel(View<const scalar_t> source, View<const weight_t> weights, int64_t groups,
                                      int64_t first_image, View<scalar_t> grad) {
  constexpr int kRadius = K / 2, kBefore = (kRadius + 1) / 2;                  // fours before that of the square itself
  constexpr int kFours = 2 * kBefore + 1, kBegin = 4 * kBefore - 2 * kRadius;  // where the left window begins in them
  const int h = static_cast<int>(grad.height), w = static_cast<int>(grad.width);
  const SpreadPlace<kChannelsLast> at(grad, groups, static_cast<int64_t>((h + 1) / 2) * (w / 2));
  if (at.image >= weights.images) return;
  const int x = at.unit % (w / 2) * 2, y = at.unit / (w / 2) * 2;
  acc_t sum[2][2][kSpreadChannels] = {};
  int channel[kSpreadChannels];  // beyond the last the last once more, into a sum that is not stored
#pragma unroll
  for (int c = 0; c < kSpreadChannels; ++c) channel[c] = (c < at.count ? c : at.count - 1) * at.step;
  for (int j = 0; j <= K; ++j) {
    const int cell_y = y - kRadius + j;
    if (cell_y < 0 || cell_y >= h) continue;
    const bool reaches[2] = {j < K, j > 0 && y + 1 < h};  // the upper row of the square, the lower one
    for (int row = 2 * cell_y; row < 2 * cell_y + 2; ++row) {
      const int64_t tap = (at.group * K + (K - 1 - j)) * K + K - 1;  // of the upper left position in the left cell
      if constexpr (kChannelsLast) {
        const weight_t* kept = &weights.at(at.image, tap, row, 0) + 2 * (x - kRadius);
        const scalar_t* from = &source.at(first_image + at.image, at.first, row, 0) + 2 * (x - kRadius) * source.x;
#pragma unroll 1  // neighbours read the same weights, so that there is nothing to gain from keeping them
        for (int i = 0; i <= K; ++i, kept += 2 - weights.c, from += 2 * source.x) {
          const int cell_x = x - kRadius + i;
          if (cell_x < 0 || cell_x >= w) continue;
          bool has[2][2];
          acc_t weight[2][2][2] = {};
#pragma unroll
          for (int v = 0; v < 2; ++v)
#pragma unroll
            for (int u = 0; u < 2; ++u) {
              has[v][u] = reaches[v] && i >= u && i - u < K;
              if (!has[v][u]) continue;
              const auto two = pack_at<2>(kept + (v * K + u) * weights.c);
              weight[v][u][0] = static_cast<acc_t>(two.data[0]);
              weight[v][u][1] = static_cast<acc_t>(two.data[1]);
            }
          const scalar_t* columns[2] = {from, from + source.x};
#pragma unroll
          for (int c = 0; c < kSpreadChannels; ++c)
#pragma unroll
            for (int s = 0; s < 2; ++s) {
              const acc_t there = static_cast<acc_t>(columns[s][channel[c]]);
#pragma unroll
              for (int v = 0; v < 2; ++v)
#pragma unroll
                for (int u = 0; u < 2; ++u)
                  if (has[v][u]) sum[v][u][c] += weight[v][u][s] * there;
            }
        }
        continue;
      }
      acc_t weight[2][2][2 * K] = {};
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        if (!reaches[v]) continue;
        const weight_t* from = &weights.at(at.image, tap + v * K, row, 0) + 2 * (x - kRadius);
#pragma unroll
        for (int i = 0; i < K; ++i, from += 2 - weights.c)
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            const int cell_x = x + u - kRadius + i;
            if (cell_x < 0 || cell_x >= w) continue;
            const Pack<weight_t, 2> two = pack_at<2>(from + 2 * u);
            weight[v][u][2 * i] = static_cast<acc_t>(two.data[0]);
            weight[v][u][2 * i + 1] = static_cast<acc_t>(two.data[1]);
          }
      }
      const scalar_t* from = &source.at(first_image + at.image, at.first, row, 0) + 2 * x;
#pragma unroll
      for (int c = 0; c < kSpreadChannels; ++c) {
        acc_t there[4 * kFours] = {};
#pragma unroll
        for (int q = 0; q < kFours; ++q) {
          const int column = 2 * x + 4 * (q - kBefore);
          if (column < 0 || column >= 2 * w) continue;
          const Pack<scalar_t, 4> four = pack_at<4>(from + 4 * (q - kBefore));
#pragma unroll
          for (int i = 0; i < 4; ++i) there[4 * q + i] = static_cast<acc_t>(four.data[i]);
        }
#pragma unroll
        for (int v = 0; v < 2; ++v)
          if (reaches[v])
#pragma unroll
            for (int u = 0; u < 2; ++u)
#pragma unroll
              for (int i = 0; i < 2 * K; ++i) sum[v][u][c] += weight[v][u][i] * there[kBegin + 2 * u + i];
        if (c + 1 < at.count) from += source.c;  // else the last once more, into a sum that is not stored
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kSpreadChannels; ++c)
    if (c < at.count)
#pragma unroll
      for (int v = 0; v < 2; ++v)
        if (y + v < h)
#pragma unroll
          for (int u = 0; u < 2; ++u)
            grad.at(first_image + at.image, at.first + c * at.step, y + v, x + u) = static_cast<scalar_t>(sum[v][u][c]);
}

template <typename scalar_t, typename weight_t, typename acc_t, typename Stream>
struct Spread {
  View<const scalar_t> source;
  View<const weight_t> weights;
  int64_t kernel_size, groups;
  Border border;
  int64_t first_image;
  View<scalar_t> grad;
  Stream stream;

  void operator()() const {
    if (weights.images * grad.channels * grad.height * grad.width == 0) return;
    const bool doubles = source.height == 2 * grad.height && source.width == 2 * grad.width;
    if (border == Border::kZero && doubles && (channels_last() || has_packs<4>(source)) && has_packs<2>(weights))
      for_window(kernel_size, *this);
    else
      run_any();
  }

  template <int K>
  void run() const {
    channels_last() ? run_squares<K, true>() : run_squares<K, false>();
  }

  void run_any() const { channels_last() ? run_positions<true>() : run_positions<false>(); }

  template <int K, bool kChannelsLast>
  void run_squares() const {
    SAPA_MM_LAUNCH((spread_squares_kernel<K, kChannelsLast, scalar_t, weight_t, acc_t>),
                   blocks((grad.height + 1) / 2 * (grad.width / 2)), 0, stream, source, weights, groups, first_image,
                   grad);
  }

  template <bool kChannelsLast>
  void run_positions() const {
    const Geometry g{source.height, source.width, grad.height, grad.width, 1, 1, static_cast<int>(kernel_size), 0, 0, 0,
                     kThreads,      border};
    const auto ratio = [this](int64_t size, int64_t cells) {
      return border == Border::kZero && size % cells == 0 ? static_cast<int>(size / cells) : 0;
    };
    SAPA_MM_LAUNCH((spread_kernel<kChannelsLast, scalar_t, weight_t, acc_t>), blocks(g.h * g.w), 0, stream, source,
                   weights, g, ratio(g.H, g.h), ratio(g.W, g.w), groups, first_image, grad);
  }

  bool channels_last() const { return source.c == 1; }

  int64_t blocks(int64_t units) const {
    const int64_t channel_blocks = (grad.channels / groups + kSpreadChannels - 1) / kSpreadChannels;
    return (weights.images * groups * channel_blocks * units + kThreads - 1) / kThreads;
  }
};

}  // namespace sapa_mm
