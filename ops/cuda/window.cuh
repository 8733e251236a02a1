// SPDX-License-Identifier: Apache-2.0
// What the kernels of point affiliation and feature assembly are made of, by the words of view.cuh only.
//
// A block owns a tile of output positions of one image. A thread owns a few positions that share a cell and so a
// window, with their K*K scores or weights in registers: a value of the window is read once for all of them. The
// low-resolution map passes through shared memory: the halo that the windows of the tile cover, a few channels at a
// time. Where both maps of a loop are channels_last it takes four channels at once, and memory is touched in vectors of
// channels.
//
// Kernels are compiled for the windows that are used, K = 1, 3, 5 and 7, with all loops over taps unrolled. Other
// windows, and outputs so much narrower than the map that the halo is too large, are for any_window.cuh.
#pragma once

#include "../window.h"
#include "view.cuh"

namespace sapa_mm {

constexpr int kTileWidth = 32, kTileHeight = kThreads / kTileWidth;
constexpr int64_t kEnoughBlocks = 264;       // two for each multiprocessor of an H100: fewer share their channels out
constexpr int64_t kLeastChannels = 32;       // of the value, that a block mixes; it has to score or load its taps first
constexpr int64_t kStagedBytes = 16 * 1024;  // of shared memory that a block fills at a time, if one channel fits
constexpr int64_t kSharedBytes = 48 * 1024;  // that a block can have without asking

// How a launch looks at the sizes: H x W positions over h x w cells, `row_chunks` threads to the rows of a cell, and
// `neighbours` of a row to a thread.
struct Geometry {
  int64_t H, W, h, w;
  int64_t row_chunks;
  int neighbours;
  int kernel_size;
  int halo_height, halo_width;  // largest of all tiles
  int staged_channels;          // channels in shared memory at a time; 0: not even one has room
  int lanes;                    // threads that fill one channel; the others of the block fill the next ones
  Border border;
  bool has_vector_room = false;  // to stage by vectors; always with two neighbours, if a loop of the launch can

  SAPA_MM_HOST_DEVICE CellAxis rows() const { return {H, h, kernel_size / 2, border}; }
  SAPA_MM_HOST_DEVICE CellAxis columns() const { return {W, w, kernel_size / 2, border}; }
  int64_t tiles_y() const { return (h * row_chunks + kTileHeight - 1) / kTileHeight; }
  int64_t tiles_x() const { return (W + kTileWidth * neighbours - 1) / (kTileWidth * neighbours); }
  int64_t tiles() const { return tiles_y() * tiles_x(); }
};

// For threads of R rows and X columns, with room for `vector_channels` if there is any.
template <typename acc_t, int R, int X>
Geometry make_geometry(int64_t H, int64_t W, int64_t h, int64_t w, int kernel_size, Border border,
                       int vector_channels = 0) {
  Geometry g{H, W, h, w, 1, X, kernel_size, 0, 0, 0, kThreads, border};
  g.row_chunks = (g.rows().max_count() + R - 1) / R;
  int64_t cells_y = 0, cells_x = 0;
  for (int64_t row = 0; row < h * g.row_chunks; row += kTileHeight) {
    const int64_t last = row + kTileHeight < h * g.row_chunks ? row + kTileHeight - 1 : h * g.row_chunks - 1;
    const int64_t cells = last / g.row_chunks - row / g.row_chunks + 1;
    if (cells > cells_y) cells_y = cells;
  }
  for (int64_t x = 0; x < W; x += kTileWidth * X) {
    const int64_t last = x + kTileWidth * X < W ? x + kTileWidth * X - 1 : W - 1;
    const int64_t cells = g.columns().cell_of(last) - g.columns().cell_of(x) + 1;
    if (cells > cells_x) cells_x = cells;
  }
  const int64_t height = cells_y + kernel_size - 1, width = cells_x + kernel_size - 1;
  const int64_t bytes = height * width * static_cast<int64_t>(sizeof(acc_t));
  if (bytes > kSharedBytes) return g;
  g.halo_height = static_cast<int>(height);
  g.halo_width = static_cast<int>(width);
  g.staged_channels = bytes > kStagedBytes ? 1 : static_cast<int>(kStagedBytes / bytes);
  g.has_vector_room = vector_channels * bytes <= kSharedBytes;
  if (g.has_vector_room && g.staged_channels < vector_channels) g.staged_channels = vector_channels;
  while (g.lanes > 32 && g.lanes / 2 >= height * width) g.lanes /= 2;
  return g;
}

// Whether neighbours 0 and 1, 2 and 3, ... of a row share their cells, all of them.
inline bool has_neighbours(const CellAxis& columns) {
  const int64_t cells = columns.cells - 2 * columns.offset;
  return columns.size % cells == 0 && columns.size / cells % 2 == 0;
}

// The positions of a thread, `rows` times the neighbours of the geometry, and the halo of its block.
struct Place {
  int64_t n, y, x;         // first position
  int rows;                // may be 0
  int64_t cell_y, cell_x;  // their cell
  int64_t halo_y, halo_x;  // first cell of the halo, may be negative

  __device__ Place(const Geometry& g, int max_rows, int64_t first_image) {
    const int64_t width = kTileWidth * g.neighbours, tiles_x = (g.W + width - 1) / width;
    const int64_t tiles_y = (g.h * g.row_chunks + kTileHeight - 1) / kTileHeight;
    const int64_t block = blockIdx.x;
    const int64_t row0 = block / tiles_x % tiles_y * kTileHeight, x0 = block % tiles_x * width;
    const int64_t row = row0 + threadIdx.x / kTileWidth;
    n = first_image + block / tiles_x / tiles_y;
    x = x0 + threadIdx.x % kTileWidth * g.neighbours;
    cell_y = row / g.row_chunks;
    y = g.rows().first_position(cell_y) + row % g.row_chunks * max_rows;
    const int64_t left = cell_y < g.h && x < g.W ? g.rows().first_position(cell_y + 1) - y : 0;
    rows = left < 0 ? 0 : left < max_rows ? static_cast<int>(left) : max_rows;
    cell_x = x < g.W ? g.columns().cell_of(x) : 0;
    halo_y = row0 / g.row_chunks - g.kernel_size / 2;
    halo_x = g.columns().cell_of(x0) - g.kernel_size / 2;
  }
};

// Channels that a loop takes at once where it goes by vectors. Shared memory keeps them together in each place. 49 taps
// leave registers for two.
template <int K>
constexpr int kAtOnce = K == 7 ? 2 : 4;

// Which kernels have loops by vectors. One of float64 would hold two channels only, and two columns of 49 taps leave no
// registers to the backward.
template <typename acc_t, int K, int X>
constexpr bool kHasVectors = sizeof(acc_t) == sizeof(float) && K > 1 && (K < 7 || X == 1);

// Channels in shared memory at a time where a loop goes by vectors: a sector of each place.
template <typename scalar_t>
constexpr int kStagedByVectors = kSectorVectors * kVector<scalar_t>;

// Fills shared memory with `count` channels of the halo, one after the other. A thread fills one place of the halo for
// many channels: where it is, is found once.
template <typename acc_t, typename scalar_t>
__device__ void stage(const View<const scalar_t>& map, const Geometry& g, const Place& place, int64_t channel,
                      int count, acc_t* shared) {
  const int halo = g.halo_height * g.halo_width, thread = threadIdx.x;
  const int first = thread / g.lanes, step = kThreads / g.lanes;
  for (int i = thread % g.lanes; i < halo; i += g.lanes) {
    const int64_t y = place.halo_y + i / g.halo_width, x = place.halo_x + i % g.halo_width;
    const bool inside = y >= 0 && y < g.h && x >= 0 && x < g.w;
    const scalar_t* from = map.data + (place.n * map.n + (channel + first) * map.c + y * map.y + x * map.x);
#pragma unroll 4  // that many loads under way
    for (int c = first; c < count; c += step, from += step * map.c)
      shared[c * halo + i] = inside ? static_cast<acc_t>(*from) : acc_t(0);
  }
}

// The same of channels_last, kTogether channels of a place together. Neighbouring threads fill a place with
// neighbouring vectors.
template <int kTogether, typename acc_t, typename scalar_t>
__device__ void stage_vectors(const View<const scalar_t>& map, const Geometry& g, const Place& place, int64_t channel,
                              int count, Pack<acc_t, kTogether>* shared) {
  constexpr int kCount = kVector<scalar_t>;
  const int halo = g.halo_height * g.halo_width, thread = threadIdx.x;
  const int first = thread % kSectorVectors * kCount;
  if (first >= count) return;
  for (int i = thread / kSectorVectors; i < halo; i += kThreads / kSectorVectors) {
    const int64_t y = place.halo_y + i / g.halo_width, x = place.halo_x + i % g.halo_width;
    Pack<scalar_t, kCount> there = {};
    if (y >= 0 && y < g.h && x >= 0 && x < g.w) there = pack_at<kCount>(&map.at(place.n, channel + first, y, x));
#pragma unroll
    for (int c = 0; c < kCount; c += kTogether) {
      Pack<acc_t, kTogether> values;
#pragma unroll
      for (int k = 0; k < kTogether; ++k) values.data[k] = static_cast<acc_t>(there.data[c + k]);
      shared[(first + c) / kTogether * halo + i] = values;
    }
  }
}

// Calls use(c, window) for every kCount channels of `map`, one after the other, where window(ky, kx) holds the values
// there, 0 outside; c counts from 0 in what is in shared memory at a time. All threads of the block take part, whether
// they have positions or not.
template <int K, int kCount, typename acc_t, typename scalar_t, typename Use>
__device__ void for_each_channel(const View<const scalar_t>& map, const Geometry& g, const Place& place,
                                 int64_t first_channel, int64_t channels, acc_t* shared, const Use& use) {
  constexpr int radius = K / 2;
  using Values = Pack<acc_t, kCount>;
  Values* const staged = reinterpret_cast<Values*>(shared);
  const int at_a_time = kCount == 1 ? g.staged_channels : kStagedByVectors<scalar_t>;
  const int halo = g.halo_height * g.halo_width;
  const int corner = static_cast<int>(place.cell_y - radius - place.halo_y) * g.halo_width +
                     static_cast<int>(place.cell_x - radius - place.halo_x);
  for (int64_t c0 = 0; c0 < channels; c0 += at_a_time) {
    const int count = channels - c0 < at_a_time ? static_cast<int>(channels - c0) : at_a_time;
    __syncthreads();  // all have used the channels before
    if constexpr (kCount == 1)
      stage(map, g, place, first_channel + c0, count, shared);
    else
      stage_vectors<kCount>(map, g, place, first_channel + c0, count, staged);
    __syncthreads();
    if (place.rows == 0) continue;
#pragma unroll 1  // the taps are unrolled
    for (int c = 0; c < count / kCount; ++c) {
      const Values* window = staged + c * halo + corner;
      use(c, [&](int ky, int kx) -> Values { return window[ky * g.halo_width + kx]; });
    }
  }
}

// One number for each tap of the window of each position of a thread: R rows of X columns.
template <typename acc_t, int K, int R, int X>
struct Taps {
  acc_t data[R * X][K * K];
};

// Calls use(p, y, x) for the positions of a thread.
template <int R, int X, typename Use>
__device__ void for_each_position(const Place& place, const Use& use) {
#pragma unroll
  for (int p = 0; p < R * X; ++p)
    if (p / X < place.rows) use(p, place.y + p / X, place.x + p % X);
}

// A place of a map in a channel. Walks over channels add a stride to it, which takes less than to find it anew.
template <typename scalar_t>
__device__ scalar_t* pointer_to(const View<scalar_t>& map, const Place& place, int64_t channel) {
  return map.data + (place.n * map.n + channel * map.c + place.y * map.y + place.x * map.x);
}

// to[p][t] += sum over the channels at hand of q[p] * window(t)
template <typename acc_t, int K, int R, int X, int kCount, typename Window>
__device__ void add_products(const acc_t (&q)[R * X][kCount], const Window& window, Taps<acc_t, K, R, X>& to) {
#pragma unroll
  for (int t = 0; t < K * K; ++t) {
    const Pack<acc_t, kCount> there = window(t / K, t % K);
#pragma unroll
    for (int c = 0; c < kCount; ++c)
#pragma unroll
      for (int p = 0; p < R * X; ++p) to.data[p][t] += q[p][c] * there.data[c];
  }
}

// sum[p] += sum over t of weights[p][t] * window(t), for the channels at hand
template <typename acc_t, int K, int R, int X, int kCount, typename Window>
__device__ void add_mix(const Taps<acc_t, K, R, X>& weights, const Window& window, acc_t (&sum)[R * X][kCount]) {
#pragma unroll
  for (int t = 0; t < K * K; ++t) {
    const Pack<acc_t, kCount> there = window(t / K, t % K);
#pragma unroll
    for (int c = 0; c < kCount; ++c)
#pragma unroll
      for (int p = 0; p < R * X; ++p) sum[p][c] += weights.data[p][t] * there.data[c];
  }
}

// Moves the later channels of a vector to the front, by kTogether.
template <int kTogether, typename scalar_t>
__device__ void move_up(Pack<scalar_t, kVector<scalar_t>>& vector) {
#pragma unroll
  for (int c = kTogether; c < kVector<scalar_t>; ++c) vector.data[c - kTogether] = vector.data[c];
}

// to[p][t] = sum over channels of source(channel, p) * map(channel, t), by vectors if both maps have them
template <typename acc_t, int K, int R, int X, typename scalar_t>
__device__ void correlate(const View<const scalar_t>& map, const Geometry& g, const Place& place, int64_t first_channel,
                          int64_t channels, acc_t* shared, Taps<acc_t, K, R, X>& to, const View<const scalar_t>& source,
                          bool by_vectors) {
#pragma unroll
  for (int p = 0; p < R * X; ++p)
#pragma unroll
    for (int t = 0; t < K * K; ++t) to.data[p][t] = acc_t(0);
  const scalar_t* from = pointer_to(source, place, first_channel);
  if constexpr (kHasVectors<acc_t, K, X>)
    if (by_vectors && g.has_vector_room) {
      constexpr int kCount = kVector<scalar_t>, kTogether = kAtOnce<K>;
      Pack<scalar_t, kCount> vectors[R * X] = {};
      for_each_channel<K, kTogether>(map, g, place, first_channel, channels, shared, [&](int part, const auto& window) {
        acc_t q[R * X][kTogether] = {};
#pragma unroll
        for (int p = 0; p < R * X; ++p)
          if (p / X < place.rows) {
            if (part % (kCount / kTogether) == 0)
              vectors[p] = pack_at<kCount>(from + (p / X * source.y + p % X * source.x));
            else
              move_up<kTogether>(vectors[p]);
#pragma unroll
            for (int c = 0; c < kTogether; ++c) q[p][c] = static_cast<acc_t>(vectors[p].data[c]);
          }
        from += kTogether;
        add_products(q, window, to);
      });
      return;
    }
  for_each_channel<K, 1>(map, g, place, first_channel, channels, shared, [&](int, const auto& window) {
    acc_t q[R * X][1] = {};
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r < place.rows) {
        const Pack<scalar_t, X> neighbours = pack_at<X>(from + r * source.y);
#pragma unroll
        for (int x = 0; x < X; ++x) q[r * X + x][0] = static_cast<acc_t>(neighbours.data[x]);
      }
    from += source.c;
    add_products(q, window, to);
  });
}

// target(channel, p) = sum over t of weights[p][t] * map(channel, t), by vectors if both maps have them
template <typename acc_t, int K, int R, int X, typename scalar_t>
__device__ void assemble(const View<const scalar_t>& map, const Geometry& g, const Place& place, int64_t first_channel,
                         int64_t channels, acc_t* shared, const Taps<acc_t, K, R, X>& weights,
                         const View<scalar_t>& target, bool by_vectors) {
  scalar_t* to = pointer_to(target, place, first_channel);
  if constexpr (kHasVectors<acc_t, K, X>)
    if (by_vectors && g.has_vector_room) {
      constexpr int kCount = kVector<scalar_t>, kTogether = kAtOnce<K>, kLast = kCount - kTogether;
      Pack<scalar_t, kCount> vectors[R * X] = {};
      for_each_channel<K, kTogether>(map, g, place, first_channel, channels, shared, [&](int part, const auto& window) {
        acc_t sum[R * X][kTogether] = {};
        add_mix(weights, window, sum);
#pragma unroll
        for (int p = 0; p < R * X; ++p)
          if (p / X < place.rows) {
            move_up<kTogether>(vectors[p]);
#pragma unroll
            for (int c = 0; c < kTogether; ++c) vectors[p].data[kLast + c] = static_cast<scalar_t>(sum[p][c]);
            if ((part + 1) % (kCount / kTogether) == 0)
              put_pack(to + (p / X * target.y + p % X * target.x) - kLast, vectors[p]);
          }
        to += kTogether;
      });
      return;
    }
  for_each_channel<K, 1>(map, g, place, first_channel, channels, shared, [&](int, const auto& window) {
    acc_t sum[R * X][1] = {};
    add_mix(weights, window, sum);
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r < place.rows) {
        Pack<scalar_t, X> neighbours;
#pragma unroll
        for (int x = 0; x < X; ++x) neighbours.data[x] = static_cast<scalar_t>(sum[r * X + x][0]);
        put_pack(to + r * target.y, neighbours);
      }
    to += target.c;
  });
}

// Calls launch.run<K>() if a kernel is compiled for this side, else launch.run_any().
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
      return launch.run_any();
  }
}

// Rows of a thread's positions: as many as leave the taps in registers, beside one column or two.
template <int K>
constexpr int rows_of_a_thread(int neighbours) {
  if (neighbours == 2) return K == 7 ? 1 : 2;
  return K == 7 ? 1 : K == 5 ? 2 : 4;
}

// Whether loops over a low-resolution map and one of the high resolution, for each of some groups of channels, can go
// by vectors.
template <typename low_t, typename high_t>
bool can_go_by_vectors(const View<low_t>& low, const View<high_t>& high, int64_t groups = 1) {
  return has_vectors(low) && has_vectors(high) && low.channels / groups % kVector<low_t> == 0;
}

// Whether a thread can read or write two columns of a map of the high resolution.
template <typename acc_t, int K, typename scalar_t>
bool has_pairs(const View<scalar_t>& map, bool by_vectors) {
  return has_packs<2>(map) || (kHasVectors<acc_t, K, 2> && by_vectors);
}

// Calls launch.run_with<K, rows, columns>(): two columns where a pair of neighbours shares its cell, all maps of the
// high resolution have `pairs` and the registers are not taken by float64.
template <int K, typename acc_t, typename Launch>
void with_columns(const CellAxis& columns, bool pairs, const Launch& launch) {
  if constexpr (K > 1 && sizeof(acc_t) == 4)
    if (pairs && has_neighbours(columns)) return launch.template run_with<K, rows_of_a_thread<K>(2), 2>();
  launch.template run_with<K, rows_of_a_thread<K>(1), 1>();
}

// Channels of the value, or of a group of it, that a block of such a launch mixes: whole packs of `unit`.
inline int64_t channels_of_a_block(const Geometry& g, int64_t images, int64_t channels, int64_t unit) {
  const int64_t blocks = g.tiles() * images, most = (channels + kLeastChannels - 1) / kLeastChannels;
  if (blocks == 0 || most <= 1) return channels;
  const int64_t wanted = (kEnoughBlocks + blocks - 1) / blocks, parts = wanted < most ? wanted : most;
  const int64_t units = (channels + parts * unit - 1) / (parts * unit);
  return units * unit;
}

template <typename acc_t>
int64_t shared_bytes(const Geometry& g) {
  return static_cast<int64_t>(sizeof(acc_t)) * g.staged_channels * g.halo_height * g.halo_width;
}

}  // namespace sapa_mm
