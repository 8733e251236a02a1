// SPDX-License-Identifier: Apache-2.0
// Which cell a position belongs to: the index arithmetic of every backend, host and device.
//
// A position of an axis of `size` belongs to the cell floor(position * cells / size) of an axis of `cells`. The
// positions of one cell are neighbours; a cell may have none where size < cells.
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

// Most positions that one cell has.
SAPA_MM_HOST_DEVICE inline int64_t max_positions(int64_t size, int64_t cells) {
  return (size + cells - 1) / cells;
}

}  // namespace sapa_mm
