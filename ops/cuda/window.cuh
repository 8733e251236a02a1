// SPDX-License-Identifier: Apache-2.0
// What the kernels of point affiliation and feature assembly are made of, by the words of view.cuh only.
//
// A block owns a tile of output positions of one image. A thread owns up to P positions, neighbours in a column that
// share a cell and so a window, with their K*K scores or weights in registers: a value of the window is read once for
// all of them. The low-resolution map passes through shared memory: the halo that the windows of the tile cover, a few
// channels at a time. Where the halo is too large (an output much narrower than the map), threads read the map itself.
//
// Kernels are compiled for the windows that are used, K = 1, 3, 5 and 7, with all loops over taps unrolled, and once
// more (K = 0) for any window, any halo and float64, with the taps in local memory.
#pragma once

#include "../window.h"
#include "view.cuh"

namespace sapa_mm {

constexpr int kTileWidth = 32, kTileHeight = kThreads / kTileWidth;
constexpr int kSpreadChannels = 8;           // channels that one thread of spread_kernel sums
constexpr int64_t kEnoughBlocks = 264;       // two for each multiprocessor of an H100: fewer share their channels out
constexpr int64_t kLeastChannels = 32;       // of the value, that a block mixes; it has to score or load its taps first
constexpr int64_t kStagedBytes = 16 * 1024;  // of shared memory that a block fills at a time, if one channel fits
constexpr int64_t kSharedBytes = 48 * 1024;  // that a block can have without asking

// How a launch looks at the sizes: H x W positions over h x w cells, `row_chunks` threads to a column of a cell.
struct Geometry {
  int64_t H, W, h, w;
  int64_t row_chunks;
  int kernel_size;
  int halo_height, halo_width;  // largest of all tiles
  int staged_channels;          // channels in shared memory at a time; 0: none, threads read the map itself
  int lanes;                    // threads that fill one channel; the others of the block fill the next ones
  Border border;

  SAPA_MM_HOST_DEVICE CellAxis rows() const { return {H, h, kernel_size / 2, border}; }
  SAPA_MM_HOST_DEVICE CellAxis columns() const { return {W, w, kernel_size / 2, border}; }
  int64_t tiles_y() const { return (h * row_chunks + kTileHeight - 1) / kTileHeight; }
  int64_t tiles_x() const { return (W + kTileWidth - 1) / kTileWidth; }
  int64_t tiles() const { return tiles_y() * tiles_x(); }
};

template <typename acc_t, int P>
Geometry make_geometry(int64_t H, int64_t W, int64_t h, int64_t w, int kernel_size, Border border) {
  Geometry g{H, W, h, w, 1, kernel_size, 0, 0, 0, kThreads, border};
  g.row_chunks = (g.rows().max_count() + P - 1) / P;
  int64_t cells_y = 0, cells_x = 0;
  for (int64_t row = 0; row < h * g.row_chunks; row += kTileHeight) {
    const int64_t last = row + kTileHeight < h * g.row_chunks ? row + kTileHeight - 1 : h * g.row_chunks - 1;
    const int64_t cells = last / g.row_chunks - row / g.row_chunks + 1;
    if (cells > cells_y) cells_y = cells;
  }
  for (int64_t x = 0; x < W; x += kTileWidth) {
    const int64_t last = x + kTileWidth < W ? x + kTileWidth - 1 : W - 1;
    const int64_t cells = g.columns().cell_of(last) - g.columns().cell_of(x) + 1;
    if (cells > cells_x) cells_x = cells;
  }
  const int64_t height = cells_y + kernel_size - 1, width = cells_x + kernel_size - 1;
  const int64_t bytes = height * width * static_cast<int64_t>(sizeof(acc_t));
  if (bytes > kSharedBytes) return g;
  g.halo_height = static_cast<int>(height);
  g.halo_width = static_cast<int>(width);
  g.staged_channels = bytes > kStagedBytes ? 1 : static_cast<int>(kStagedBytes / bytes);
  while (g.lanes > 32 && g.lanes / 2 >= height * width) g.lanes /= 2;
  return g;
}

// The positions of a thread and the halo of its block.
struct Place {
  int64_t n, y, x;         // first position
  int rows;                // positions, downwards; may be 0
  int64_t cell_y, cell_x;  // their cell
  int64_t halo_y, halo_x;  // first cell of the halo, may be negative

  __device__ Place(const Geometry& g, int max_rows, int64_t first_image) {
    const int64_t tiles_x = (g.W + kTileWidth - 1) / kTileWidth;
    const int64_t tiles_y = (g.h * g.row_chunks + kTileHeight - 1) / kTileHeight;
    const int64_t block = blockIdx.x;
    const int64_t row0 = block / tiles_x % tiles_y * kTileHeight, x0 = block % tiles_x * kTileWidth;
    const int64_t row = row0 + threadIdx.x / kTileWidth;
    n = first_image + block / tiles_x / tiles_y;
    x = x0 + threadIdx.x % kTileWidth;
    cell_y = row / g.row_chunks;
    y = g.rows().first_position(cell_y) + row % g.row_chunks * max_rows;
    const int64_t left = cell_y < g.h && x < g.W ? g.rows().first_position(cell_y + 1) - y : 0;
    rows = left < 0 ? 0 : left < max_rows ? static_cast<int>(left) : max_rows;
    cell_x = x < g.W ? g.columns().cell_of(x) : 0;
    halo_y = row0 / g.row_chunks - g.kernel_size / 2;
    halo_x = g.columns().cell_of(x0) - g.kernel_size / 2;
  }
};

// Calls use(window) for every channel of `map`, one after the other, where window(ky, kx) is the value there, 0
// outside. All threads of the block take part, whether they have positions or not.
template <int K, typename acc_t, typename scalar_t, typename Use>
__device__ void for_each_channel(const View<const scalar_t>& map, const Geometry& g, const Place& place,
                                 int64_t first_channel, int64_t channels, acc_t* shared, const Use& use) {
  const int radius = g.kernel_size / 2;
  if (K == 0 && g.staged_channels == 0) {
    if (place.rows == 0) return;
    for (int64_t c = 0; c < channels; ++c)
      use([&](int ky, int kx) -> acc_t {
        const int64_t y = place.cell_y - radius + ky, x = place.cell_x - radius + kx;
        const bool inside = y >= 0 && y < g.h && x >= 0 && x < g.w;
        return inside ? static_cast<acc_t>(map.at(place.n, first_channel + c, y, x)) : acc_t(0);
      });
    return;
  }
  const int halo = g.halo_height * g.halo_width, thread = threadIdx.x;
  const int first = thread / g.lanes, step = kThreads / g.lanes;
  const int corner = static_cast<int>(place.cell_y - radius - place.halo_y) * g.halo_width +
                     static_cast<int>(place.cell_x - radius - place.halo_x);
  for (int64_t c0 = 0; c0 < channels; c0 += g.staged_channels) {
    const int count = channels - c0 < g.staged_channels ? static_cast<int>(channels - c0) : g.staged_channels;
    __syncthreads();  // all have used the channels before
    // A thread fills one place of the halo for many channels: where it is, is found once.
    for (int i = thread % g.lanes; i < halo; i += g.lanes) {
      const int64_t y = place.halo_y + i / g.halo_width, x = place.halo_x + i % g.halo_width;
      const bool inside = y >= 0 && y < g.h && x >= 0 && x < g.w;
      const scalar_t* from =
          map.data + (place.n * map.n + (first_channel + c0 + first) * map.c + y * map.y + x * map.x);
      for (int c = first; c < count; c += step, from += step * map.c)
        shared[c * halo + i] = inside ? static_cast<acc_t>(*from) : acc_t(0);
    }
    __syncthreads();
    if (place.rows == 0) continue;
    for (int c = 0; c < count; ++c) {
      const acc_t* window = shared + c * halo + corner;
      use([&](int ky, int kx) -> acc_t { return window[ky * g.halo_width + kx]; });
    }
  }
}

// K is the window's side, or 0: known at run time only, up to kMaxKernelSize.
template <int K>
__device__ int side(const Geometry& g) {
  return K > 0 ? K : g.kernel_size;
}

// One number for each tap of the window of each of P positions.
template <typename acc_t, int K, int P>
struct Taps {
  acc_t data[P][K > 0 ? K * K : kMaxKernelSize * kMaxKernelSize];
};

// A place of a map in a channel. Walks over channels add a stride to it, which takes less than to find it anew.
template <typename scalar_t>
__device__ scalar_t* pointer_to(const View<scalar_t>& map, const Place& place, int64_t channel) {
  return map.data + (place.n * map.n + channel * map.c + place.y * map.y + place.x * map.x);
}

// to[p][t] = sum over channels of source(channel, p) * map(channel, t)
template <typename acc_t, int K, int P, typename scalar_t>
__device__ void correlate(const View<const scalar_t>& map, const Geometry& g, const Place& place, int64_t first_channel,
                          int64_t channels, acc_t* shared, Taps<acc_t, K, P>& to, const View<const scalar_t>& source) {
  const int S = side<K>(g);
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll(K > 0 ? K * K : 1)
    for (int t = 0; t < S * S; ++t) to.data[p][t] = acc_t(0);
  const scalar_t* from = pointer_to(source, place, first_channel);
  for_each_channel<K, acc_t>(map, g, place, first_channel, channels, shared, [&](const auto& window) {
    acc_t q[P];
#pragma unroll
    for (int p = 0; p < P; ++p) q[p] = p < place.rows ? static_cast<acc_t>(from[p * source.y]) : acc_t(0);
    from += source.c;
#pragma unroll(K > 0 ? K : 1)
    for (int ky = 0; ky < S; ++ky)
#pragma unroll(K > 0 ? K : 1)
      for (int kx = 0; kx < S; ++kx) {
        const acc_t there = window(ky, kx);
#pragma unroll
        for (int p = 0; p < P; ++p) to.data[p][ky * S + kx] += q[p] * there;
      }
  });
}

// target(channel, p) = sum over t of weights[p][t] * map(channel, t)
template <typename acc_t, int K, int P, typename scalar_t>
__device__ void assemble(const View<const scalar_t>& map, const Geometry& g, const Place& place, int64_t first_channel,
                         int64_t channels, acc_t* shared, const Taps<acc_t, K, P>& weights,
                         const View<scalar_t>& target) {
  const int S = side<K>(g);
  scalar_t* to = pointer_to(target, place, first_channel);
  for_each_channel<K, acc_t>(map, g, place, first_channel, channels, shared, [&](const auto& window) {
    acc_t sum[P] = {};
#pragma unroll(K > 0 ? K : 1)
    for (int ky = 0; ky < S; ++ky)
#pragma unroll(K > 0 ? K : 1)
      for (int kx = 0; kx < S; ++kx) {
        const acc_t there = window(ky, kx);
#pragma unroll
        for (int p = 0; p < P; ++p) sum[p] += weights.data[p][ky * S + kx] * there;
      }
#pragma unroll
    for (int p = 0; p < P; ++p)
      if (p < place.rows) to[p * target.y] = static_cast<scalar_t>(sum[p]);
    to += target.c;
  });
}

// First position of a cell, and for cell == cells the end of the axis.
__device__ inline int start_of(int cell, const CellAxis& axis, int ratio) {
  return ratio > 0 ? cell * ratio : static_cast<int>(axis.first_position(cell));
}

// Two neighbours that are read at once.
template <typename scalar_t>
struct alignas(2 * sizeof(scalar_t)) Two {
  scalar_t first, second;
};

template <typename scalar_t>
__device__ Two<scalar_t> two_at(const scalar_t* x) {
  return *reinterpret_cast<const Two<scalar_t>*>(x);
}

// Whether every row of a map starts with a pair of neighbours that can be read at once, and ends with one.
template <typename scalar_t>
bool has_pairs(const View<const scalar_t>& map) {
  const bool even = map.width % 2 == 0 && map.n % 2 == 0 && map.c % 2 == 0 && map.y % 2 == 0;
  return even && map.x == 1 && reinterpret_cast<uintptr_t>(map.data) % sizeof(Two<scalar_t>) == 0;
}

// Calls add(place, sum) for `count` channels, all of them as a rule: then nothing is asked for each.
template <typename scalar_t, typename acc_t, typename Add>
__device__ void add_products(acc_t* sum, int count, const scalar_t* from, int64_t stride, const Add& add) {
  if (count == kSpreadChannels) {
#pragma unroll
    for (int c = 0; c < kSpreadChannels; ++c, from += stride) add(from, sum[c]);
  } else {
#pragma unroll
    for (int c = 0; c < kSpreadChannels; ++c, from += stride)
      if (c < count) add(from, sum[c]);
  }
}

// (n, c .. c + kSpreadChannels, y, x) is one low-resolution position: it collects from the positions whose windows hold
// it, in one order, so that no atomics are needed and results repeat. kPairs: a cell has two columns of positions.
template <bool kPairs, typename scalar_t, typename weight_t, typename acc_t>
__global__ void spread_kernel(View<const scalar_t> source,   // (N, C, H, W): what was multiplied with the weights
                              View<const weight_t> weights,  // (images, groups*K*K, H, W)
                              Geometry g, int ratio_y, int ratio_x,  // 0 where not an integer, or with borders
                              int64_t groups, int64_t first_image,
                              View<scalar_t> grad) {  // (N, C, h, w)
  const int64_t per_group = grad.channels / groups;
  const int64_t blocks_per_group = (per_group + kSpreadChannels - 1) / kSpreadChannels;
  // Divisions of 64 bits take as long as dozens of products: one for each thread, and none for each cell where the
  // ratio is an integer.
  const int64_t index = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x, rest = index / (g.h * g.w);
  const int h = static_cast<int>(g.h), w = static_cast<int>(g.w), position = static_cast<int>(index - rest * g.h * g.w);
  const int x = position % w, y = position / w;
  const uint32_t channel_blocks = static_cast<uint32_t>(groups * blocks_per_group);
  const uint32_t image = static_cast<uint32_t>(rest) / channel_blocks;
  const uint32_t channel_block = static_cast<uint32_t>(rest) % channel_blocks;
  if (image >= weights.images) return;
  const int64_t group = channel_block / static_cast<uint32_t>(blocks_per_group);
  const int64_t first =
      group * per_group + channel_block % static_cast<uint32_t>(blocks_per_group) * int64_t{kSpreadChannels};
  const int64_t left = (group + 1) * per_group - first;
  const int count = left < kSpreadChannels ? static_cast<int>(left) : kSpreadChannels;
  const int K = g.kernel_size, radius = K / 2;
  const int bottom = y + radius < h ? y + radius : h - 1, right = x + radius < w ? x + radius : w - 1;
  acc_t sum[kSpreadChannels] = {};
  for (int cell_y = y < radius ? 0 : y - radius; cell_y <= bottom; ++cell_y) {
    const int y_begin = start_of(cell_y, g.rows(), ratio_y), rows = start_of(cell_y + 1, g.rows(), ratio_y) - y_begin;
    for (int cell_x = x < radius ? 0 : x - radius; cell_x <= right; ++cell_x) {
      const int x_begin = start_of(cell_x, g.columns(), ratio_x),
                columns = start_of(cell_x + 1, g.columns(), ratio_x) - x_begin;
      const int64_t tap = (group * K + (y - cell_y + radius)) * K + (x - cell_x + radius);
      const weight_t* weight_row = weights.data + image * weights.n + tap * weights.c + y_begin * weights.y;
      const scalar_t* source_row = source.data + (first_image + image) * source.n + first * source.c;
      source_row += y_begin * source.y;
      for (int row = 0; row < rows; ++row, weight_row += weights.y, source_row += source.y) {
        if constexpr (kPairs) {
          const Two<weight_t> weight = two_at(weight_row + x_begin);
          add_products(sum, count, source_row + x_begin, source.c, [&](const scalar_t* from, acc_t& to) {
            const Two<scalar_t> there = two_at(from);
            to += static_cast<acc_t>(weight.first) * static_cast<acc_t>(there.first);
            to += static_cast<acc_t>(weight.second) * static_cast<acc_t>(there.second);
          });
        } else {
          for (int px = x_begin; px < x_begin + columns; ++px) {
            const acc_t weight = static_cast<acc_t>(weight_row[px * weights.x]);
            add_products(sum, count, source_row + px * source.x, source.c,
                         [&](const scalar_t* from, acc_t& to) { to += weight * static_cast<acc_t>(*from); });
          }
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kSpreadChannels; ++c)
    if (c < count) grad.at(first_image + image, first + c, y, x) = static_cast<scalar_t>(sum[c]);
}

// Calls launch.run<K>(), where K is the side if a kernel is compiled for it, else 0.
template <typename Launch>
void for_window(int64_t kernel_size, const Launch& launch) {
  switch (kernel_size) {
    case 1:
      return launch.template run<1>();
    case 3:
      return launch.template run<3>();
    case 5:
      return launch.template run<5>();
    case 7:
      return launch.template run<7>();
    default:
      return launch.template run<0>();
  }
}

// Positions of a thread: as many as leave the taps in registers.
template <int K>
constexpr int positions() {
  return K == 1 || K == 3 ? 4 : K == 5 ? 2 : 1;
}

// Channels of the value, or of a group of it, that a block of such a launch mixes.
inline int64_t channels_of_a_block(const Geometry& g, int64_t images, int64_t channels) {
  const int64_t blocks = g.tiles() * images, most = (channels + kLeastChannels - 1) / kLeastChannels;
  if (blocks == 0 || most <= 1) return channels;
  const int64_t wanted = (kEnoughBlocks + blocks - 1) / blocks, parts = wanted < most ? wanted : most;
  return (channels + parts - 1) / parts;
}

template <typename acc_t>
int64_t shared_bytes(const Geometry& g) {
  return static_cast<int64_t>(sizeof(acc_t)) * g.staged_channels * g.halo_height * g.halo_width;
}

template <typename scalar_t, typename weight_t, typename acc_t, typename Stream>
void spread(const View<const scalar_t>& source, const View<const weight_t>& weights, int64_t kernel_size,
            int64_t groups, Border border, int64_t first_image, const View<scalar_t>& grad, Stream stream) {
  Geometry g{source.height, source.width, grad.height, grad.width, 1, static_cast<int>(kernel_size), 0, 0, 0,
             kThreads,      border};
  const int64_t blocks_per_group = (grad.channels / groups + kSpreadChannels - 1) / kSpreadChannels;
  const int64_t threads = weights.images * groups * blocks_per_group * grad.height * grad.width;
  if (threads == 0) return;
  const auto ratio = [border](int64_t size, int64_t cells) {
    return border == Border::kZero && size % cells == 0 ? static_cast<int>(size / cells) : 0;
  };
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  const int ratio_y = ratio(g.H, g.h), ratio_x = ratio(g.W, g.w);
  if (ratio_x == 2 && has_pairs(source) && has_pairs(weights)) {
    SAPA_MM_LAUNCH((spread_kernel<true, scalar_t, weight_t, acc_t>), blocks, 0, stream, source, weights, g, ratio_y,
                   ratio_x, groups, first_image, grad);
  } else {
    SAPA_MM_LAUNCH((spread_kernel<false, scalar_t, weight_t, acc_t>), blocks, 0, stream, source, weights, g, ratio_y,
                   ratio_x, groups, first_image, grad);
  }
}

}  // namespace sapa_mm
