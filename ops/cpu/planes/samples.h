// SPDX-License-Identifier: Apache-2.0
// The loops of deformable sampling, on a line of up to kLine neighbouring positions.
//
// A low-resolution map is a table of rows, one row a position with its channels side by side, and a border of zeros
// around the map: one position to the left and top, two to the right and bottom. A sample at any place is then a sum of
// four rows, (y, x), (y, x + 1), (y + 1, x) and (y + 1, x + 1). Places beyond the border have moved to its right or
// bottom, where nothing of the map is read.
//
// Numbers of points are arrays [point * kLine + position]; vectors of positions are [position * stride + channel].
// Channels are a multiple of kLanes, padded with zeros.
#pragma once

#include "packing.h"

namespace sapa_mm {

constexpr int64_t kLine = 64;

template <typename T>
struct Table {
  T* rows;
  int64_t stride;  // from row to row
  int64_t width;   // rows from a position to the one below it
  int64_t channels;
};

// Where points lie.
template <typename T>
struct Places {
  int32_t* first;        // row of (y, x)
  T *share_x, *share_y;  // of the right two and of the lower two of the four rows
  T *slope_x, *slope_y;  // how the place moves with the offset: 1, or 0 where it stays on the border
  int64_t points;
};

template <typename T>
struct SampleLoops {
  // Point p of position i lies at (cell_x[i] + dx[i], cell_y + dy[i]) of a map of height x width.
  void (*locate)(const T* dx, const T* dy, const T* cell_x, T cell_y, int64_t size, int64_t height, int64_t width,
                 int64_t p, const Places<T>& places);
  // scores = <vector, sample>; with moves_x also its derivatives by the offset.
  void (*correlate)(const T* vectors, int64_t stride, const Table<T>& table, const Places<T>& places, int64_t size,
                    T* scores, T* moves_x, T* moves_y);
  // out = sum over points of weight * sample
  void (*assemble)(const T* weights, const Table<T>& table, const Places<T>& places, int64_t size, T* out,
                   int64_t stride);
  // The transpose of assemble: the rows of the table += weight * vector.
  void (*spread)(const T* weights, const T* vectors, int64_t stride, const Table<T>& table, const Places<T>& places,
                 int64_t size);

  template <Isa isa>
  static SampleLoops make();
};

}  // namespace sapa_mm
