// SPDX-License-Identifier: Apache-2.0
// What the kernels for any window and any sizes are made of: K = 9 to 15, and outputs much narrower than the map.
//
// A team of threads shares a position: its members take turns at the taps of the window, or at the channels. So the
// taps of a position are in shared memory, or not kept at all, and never in local memory, of which CUDA reserves what
// the largest kernel asks for, for every thread that a card can hold.
#pragma once

#include "window.cuh"

namespace sapa_mm {

constexpr int kTeamChannels = 4;  // that a member mixes at a time

struct Team {
  int64_t n, y, x, cell_y, cell_x;
  bool has_position;
  int position, positions;  // its number among those of the block
  int member, members;

  __device__ Team(const Geometry& g, int positions, int64_t first_image, int64_t images)
      : positions(positions), members(kThreads / positions) {
    position = threadIdx.x % positions;
    member = threadIdx.x / positions;
    const int64_t index = blockIdx.x * static_cast<int64_t>(positions) + position;
    x = index % g.W;
    y = index / g.W % g.H;
    n = index / g.W / g.H;
    has_position = n < images;
    n += first_image;
    cell_y = g.rows().cell_of(y);
    cell_x = g.columns().cell_of(x);
  }
};

// Calls use(t, inside, place) for a tap: where it lies in a channel of the map, if inside.
template <typename scalar_t, typename Use>
__device__ void at_tap(const View<const scalar_t>& map, const Geometry& g, const Team& team, int ky, int kx,
                       const Use& use) {
  const int64_t y = team.cell_y - g.kernel_size / 2 + ky, x = team.cell_x - g.kernel_size / 2 + kx;
  const bool inside = y >= 0 && y < g.h && x >= 0 && x < g.w;
  use(ky * g.kernel_size + kx, inside, team.n * map.n + y * map.y + x * map.x);
}

// Calls use(t, sum over channels of source(channel) * map(channel, t)) for the taps whose turn it is.
template <typename acc_t, typename scalar_t, typename Use>
__device__ void correlate(const View<const scalar_t>& map, const Geometry& g, const Team& team, int64_t first_channel,
                          int64_t channels, const View<const scalar_t>& source, const Use& use) {
  if (!team.has_position) return;
  for (int tap = team.member; tap < g.kernel_size * g.kernel_size; tap += team.members)
    at_tap(map, g, team, tap / g.kernel_size, tap % g.kernel_size, [&](int t, bool inside, int64_t place) {
      const scalar_t* from = &source.at(team.n, first_channel, team.y, team.x);
      const scalar_t* there = map.data + (place + first_channel * map.c);
      acc_t sum = 0;
      if (inside)
        for (int64_t c = 0; c < channels; ++c, from += source.c, there += map.c)
          sum += static_cast<acc_t>(*from) * static_cast<acc_t>(*there);
      use(t, sum);
    });
}

// target(channel) = sum over t of weight(t) * map(channel, t), for the channels whose turn it is
template <typename acc_t, typename scalar_t, typename Weight>
__device__ void assemble(const View<const scalar_t>& map, const Geometry& g, const Team& team, int64_t first_channel,
                         int64_t channels, const Weight& weight, const View<scalar_t>& target) {
  if (!team.has_position) return;
  for (int64_t c0 = team.member * kTeamChannels; c0 < channels; c0 += team.members * kTeamChannels) {
    acc_t sum[kTeamChannels] = {};
    int64_t there[kTeamChannels];  // beyond the last channel the last once more, into a sum that is not stored
#pragma unroll
    for (int c = 0; c < kTeamChannels; ++c)
      there[c] = (first_channel + (c0 + c < channels ? c0 + c : channels - 1)) * map.c;
    for (int ky = 0; ky < g.kernel_size; ++ky)
      for (int kx = 0; kx < g.kernel_size; ++kx)
        at_tap(map, g, team, ky, kx, [&](int t, bool inside, int64_t place) {
          const acc_t share = weight(t);
#pragma unroll
          for (int c = 0; c < kTeamChannels; ++c)
            sum[c] += share * (inside ? static_cast<acc_t>(map.data[place + there[c]]) : acc_t(0));
        });
#pragma unroll
    for (int c = 0; c < kTeamChannels; ++c)
      if (c0 + c < channels) target.at(team.n, first_channel + c0 + c, team.y, team.x) = static_cast<scalar_t>(sum[c]);
  }
}

// Positions of a block with this much shared memory for each: no more than lanes of a warp, no fewer than fit.
inline int team_positions(int64_t bytes) {
  int positions = 32;
  while (positions > 1 && positions * bytes > kSharedBytes) positions /= 2;
  return positions;
}

inline int64_t team_blocks(const Geometry& g, int positions, int64_t images) {
  return (images * g.H * g.W + positions - 1) / positions;
}

}  // namespace sapa_mm
