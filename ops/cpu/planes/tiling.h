// SPDX-License-Identifier: Apache-2.0
// How maps are cut into work: by cell, by tile and row, and by the positions of a cell that are worked on together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../window.h"
#include "packing.h"

namespace sapa_mm {

// Positions of one axis by cell: position first[cell] + slot, for slot < count(cell).
struct Axis {
  explicit Axis(const CellAxis& axis) : cells(axis.cells), slots(axis.max_count()), first(cells + 1) {
    for (int64_t cell = 0; cell <= cells; ++cell) first[cell] = axis.first_position(cell);
  }
  int64_t count(int64_t cell) const { return first[cell + 1] - first[cell]; }

  int64_t cells, slots;
  std::vector<int64_t> first;
};

// The slots that are worked on together: `rows` rows of positions times `columns` slots of each row.
struct Chunk {
  int64_t y, slot;  // first row of positions, first slot
  int rows, columns;
  int slots() const { return rows * columns; }
};

// Calls work(chunk) for the positions of one row of cells, at most kMaxSlots slots at a time.
template <typename Work>
void for_each_chunk(const Axis& rows, const Axis& columns, int64_t cell_row, const Work& work) {
  const int64_t width = std::min<int64_t>(columns.slots, kMaxSlots), height = kMaxSlots / width;
  for (int64_t y = rows.first[cell_row]; y < rows.first[cell_row + 1]; y += height)
    for (int64_t slot = 0; slot < columns.slots; slot += width)
      work(Chunk{y, slot, static_cast<int>(std::min(height, rows.first[cell_row + 1] - y)),
                 static_cast<int>(std::min(width, columns.slots - slot))});
}

// Part of a row or column of cells.
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

constexpr int64_t kTileColumns = 96;  // so that the rings of a tile stay in the cache

// A low-resolution map is cut into tiles of columns, each of which one thread walks down in runs of rows of cells.
struct Tiling {
  Tiling(int64_t batch, int64_t height, int64_t width)
      : height(height),
        width(width),
        tiles((width + kTileColumns - 1) / kTileColumns),
        tile_width((width + tiles - 1) / tiles),
        tasks(batch * tiles * height) {}

  // Calls work(n, columns, rows) for the runs of rows in tasks [begin, end).
  template <typename Work>
  void for_each_run(int64_t begin, int64_t end, const Work& work) const {
    while (begin < end) {
      const int64_t strip = begin / height, y = begin % height, x = strip % tiles * tile_width;
      const int64_t rows = std::min(end - begin, height - y);
      if (x < width) work(strip / tiles, Span{x, std::min(x + tile_width, width)}, Span{y, y + rows});
      begin += rows;
    }
  }

  int64_t height, width, tiles, tile_width, tasks;
};

}  // namespace sapa_mm
