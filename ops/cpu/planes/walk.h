// SPDX-License-Identifier: Apache-2.0
// The walk over blocks of point affiliation and feature assembly, forward and backward.
//
// A thread owns runs of rows of a tile of cells and walks down them, with K rows of the low-resolution maps in rings.
// In backward it visits the cells within the radius around its own as well: their windows reach the gradients that it
// owns. So gradients are gathered and every sum has one order, whatever the number of threads. Long runs keep that
// small.
#pragma once

#include <ATen/Parallel.h>

#include "packer.h"
#include "ring.h"

namespace sapa_mm {

constexpr int64_t kChannelBlock = 32;  // channels of the high resolution that are packed at a time

// Where a thread is: at a chunk of the positions of one row of cells of one image.
template <typename scalar_t>
struct Visit {
  using T = accumulate_t<scalar_t>;

  Visit(const Axis& columns, int64_t tile_width, int kernel_size, bool gathers, int64_t max_channels)
      : columns(columns),
        radius(kernel_size / 2),
        halo(gathers ? radius : 0),
        margin(gathers ? kLanes : 0),
        width(round_up(std::min(columns.cells, tile_width + 2 * halo), kLanes)),
        padded_width(round_up(width + kernel_size - 1, kLanes)),
        owned_width(round_up(tile_width, kLanes)),
        filled(owned_width + kernel_size - 1),
        stride(gathers ? kLanes + padded_width : width),
        packer(columns, tile_width + 2 * halo, max_channels),
        owned_packer(columns, tile_width, max_channels) {}

  // Memory for `planes` planes of every slot, `stride` apart, with zeros to the left where `spread` reads.
  Buffer<T> make_planes(int64_t planes) const { return Buffer<T>(kMaxSlots * planes * stride, margin); }

  void enter(int64_t image, const Span& tile) {
    n = image;
    owned = tile;
    span = {std::max<int64_t>(0, owned.begin - halo), std::min(columns.cells, owned.end + halo)};
    packer.set_span(span);
    owned_packer.set_span(owned);
  }
  int64_t owned_column() const { return owned.begin - span.begin; }  // of the first owned cell in a plane

  // Pack a chunk of a map; in backward with zeros where there is no position.
  void pack(const at::Tensor& map, int64_t channel, int64_t channels, T* planes) {
    packer.pack(Map<scalar_t>(map, n), channel, channels, chunk, planes, stride);
    if (margin > 0) clear_unused(planes, channels);
  }
  void clear_unused(T* planes, int64_t planes_per_slot) const {
    packer.clear_unused(planes, planes_per_slot, stride, filled, chunk);
  }
  // Write what was computed for the owned cells.
  void unpack_owned(const T* planes, int64_t plane_stride, int64_t channels, const at::Tensor& map, int64_t channel) {
    owned_packer.unpack(planes + owned_column(), plane_stride, channels, chunk, Map<scalar_t>(map, n), channel);
  }
  // The transpose of the assembly, for the owned cells, which collect from the columns of the radius around them.
  void spread(const T* weights, const T* grads, const MutableWindow<T>& sums, int64_t channels) const {
    const int64_t last_tap = owned_column() + radius;  // column of the last tap of the first owned cell
    loops<WindowLoops<T>>().spread(weights + last_tap, stride, grads + last_tap, stride, sums, channels, chunk.slots(),
                                   owned_width);
  }

  const Axis& columns;
  const int64_t radius, halo, margin;
  const int64_t width, padded_width;  // columns that loops compute, and that they read in a ring
  const int64_t owned_width, filled;  // columns of sums, and those that they are collected from
  const int64_t stride;               // between planes
  Packer<scalar_t> packer, owned_packer;

  int64_t n = 0, cell_row = 0;
  Span owned{0, 0}, span{0, 0};  // cells that are owned, and those that are visited
  bool owns_row = true;
  Chunk chunk{};
  Window<T> read[2];           // around the row of cells, of the maps that are read
  MutableWindow<T> summed[2];  // and of the gradients that are summed
};

// Calls work(visit) for every chunk, where make_work(visit) made the work of a thread. `high` and `low` tell the sizes;
// maps in `read` and `summed` that are undefined are left out.
template <typename scalar_t, typename MakeWork>
void walk(const at::Tensor& high, const at::Tensor& low, int kernel_size, Border border, bool gathers,
          int64_t max_channels, const std::array<at::Tensor, 2>& read, const std::array<at::Tensor, 2>& summed,
          const MakeWork& make_work) {
  const Axis rows(CellAxis(high.size(2), low.size(2), kernel_size / 2, border));
  const Axis columns(CellAxis(high.size(3), low.size(3), kernel_size / 2, border));
  const Tiling tiling(low.size(0), rows.cells, columns.cells);
  at::parallel_for(0, tiling.tasks, gathers ? 4 * kernel_size : 4, [&](int64_t begin, int64_t end) {
    Visit<scalar_t> visit(columns, tiling.tile_width, kernel_size, gathers, std::max(max_channels, kChannelBlock));
    ReadRing<scalar_t> read_rings[] = {{read[0], kernel_size, visit.padded_width},
                                       {read[1], kernel_size, visit.padded_width}};
    SumRing<scalar_t> sum_rings[] = {{summed[0], kernel_size, visit.owned_width},
                                     {summed[1], kernel_size, visit.owned_width}};
    auto work = make_work(visit);
    tiling.for_each_run(begin, end, [&](int64_t n, const Span& tile, const Span& owned_rows) {
      visit.enter(n, tile);
      bool is_next = false;
      for (int64_t y = owned_rows.begin - visit.halo; y < owned_rows.end + visit.halo; ++y) {
        for (int i = 0; i < 2; ++i) visit.summed[i] = sum_rings[i].at(y);
        if (y >= 0 && y < rows.cells) {
          for (int i = 0; i < 2; ++i) visit.read[i] = read_rings[i].at(n, y, visit.span, is_next);
          is_next = true;
          visit.cell_row = y;
          visit.owns_row = y >= owned_rows.begin && y < owned_rows.end;
          for_each_chunk(rows, columns, y, [&](const Chunk& chunk) {
            visit.chunk = chunk;
            work(visit);
          });
        }
        const int64_t finished = y - visit.halo;
        if (finished >= owned_rows.begin && finished < owned_rows.end)
          for (SumRing<scalar_t>& ring : sum_rings) ring.write(n, finished, visit.owned);
      }
    });
  });
}

}  // namespace sapa_mm
