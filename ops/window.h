// SPDX-License-Identifier: Apache-2.0
// Which cell a position belongs to: the index arithmetic of every backend, host and device.
//
// A position of an axis of `size` belongs to the cell floor(position * cells / size) of an axis of `cells`. The
// positions of one cell are neighbours; a cell may have none where size < cells. Borders change whose window a position
// looks through, and so the cell that it counts with.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SAPA_MM_HOST_DEVICE __host__ __device__
#else
#define SAPA_MM_HOST_DEVICE
#endif

namespace sapa_mm {

constexpr int kMaxKernelSize = 15;

SAPA_MM_HOST_DEVICE inline int64_t cell_of(int64_t position, int64_t size, int64_t cells) {
  return position * cells / size;
}

// First position of a cell, and for cell == cells the end of the axis: the least p with p * cells >= cell * size.
SAPA_MM_HOST_DEVICE inline int64_t first_position(int64_t cell, int64_t size, int64_t cells) {
  return (cell * size + cells - 1) / cells;
}

// What windows find beyond the map: zeros; what the maps bring along, their outer `radius` rows and columns, to which
// no position belongs; or nothing, since windows move inwards until they lie inside the map.
enum class Border : int64_t { kZero, kGiven, kShift };

// The cells of an axis of the low-resolution map, by whose windows the positions look.
struct CellAxis {
  SAPA_MM_HOST_DEVICE CellAxis(int64_t size, int64_t cells, int64_t radius, Border border)
      : size(size),
        cells(cells),
        offset(border == Border::kGiven ? radius : 0),
        low(border == Border::kZero ? 0 : radius),
        high(cells - 1 - low) {}

  SAPA_MM_HOST_DEVICE int64_t cell_of(int64_t position) const {
    const int64_t cell = sapa_mm::cell_of(position, size, cells - 2 * offset) + offset;
    return cell < low ? low : cell > high ? high : cell;
  }
  // Of a cell; for cell == cells the end of the axis.
  SAPA_MM_HOST_DEVICE int64_t first_position(int64_t cell) const {
    return cell <= low ? 0 : cell > high ? size : sapa_mm::first_position(cell - offset, size, cells - 2 * offset);
  }
  SAPA_MM_HOST_DEVICE int64_t count(int64_t cell) const { return first_position(cell + 1) - first_position(cell); }
  // Most positions that one cell has: one inside, or the outer ones, which windows that moved inwards crowd.
  SAPA_MM_HOST_DEVICE int64_t max_count() const {
    int64_t most = (size + cells - 2 * offset - 1) / (cells - 2 * offset);
    if (count(low) > most) most = count(low);
    return count(high) > most ? count(high) : most;
  }

  int64_t size, cells, offset;
  int64_t low, high;  // first and last cell that can have positions
};

}  // namespace sapa_mm
