// SPDX-License-Identifier: Apache-2.0
// Between tensors of any strides and dtype and the packed planes that the loops of rows.h work on.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "../window.h"
#include "rows.h"

namespace sapa_mm {

// The type that sums are kept in.
template <typename scalar_t>
using accumulate_t = at::opmath_type<scalar_t>;

// One image of an NCHW tensor of any strides.
template <typename scalar_t>
struct Map {
  Map(const at::Tensor& x, int64_t n)
      : data(x.const_data_ptr<scalar_t>() + n * x.stride(0)),
        channel(x.stride(1)),
        row(x.stride(2)),
        column(x.stride(3)) {}
  scalar_t* mutable_data() const { return const_cast<scalar_t*>(data); }

  const scalar_t* data;
  int64_t channel, row, column;
};

inline int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Zeroed memory of a thread, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : memory_(new char[size * sizeof(T) + 64]) {
    data_ = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64);
    std::memset(data_, 0, size * sizeof(T));
  }
  T* get() const { return data_; }

 private:
  std::unique_ptr<char[]> memory_;
  T* data_;
};

// Positions of one axis by cell: position first[cell] + slot, for slot < count(cell).
struct Axis {
  Axis(int64_t size, int64_t cells) : size(size), cells(cells), slots(max_positions(size, cells)), first(cells + 1) {
    for (int64_t cell = 0; cell <= cells; ++cell) first[cell] = first_position(cell, size, cells);
    exact = slots * cells == size;
  }
  int64_t count(int64_t cell) const { return first[cell + 1] - first[cell]; }

  int64_t size, cells, slots;
  bool exact;
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

// Part of a row of cells.
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Whether the slot is a position in every cell of the span.
inline bool is_full(const Axis& columns, int64_t slot, const Span& span) {
  if (columns.exact) return true;
  for (int64_t cell = span.begin; cell < span.end; ++cell)
    if (slot >= columns.count(cell)) return false;
  return true;
}

// planes[(slot * channels + channel) * stride + cell - span.begin] = map(channel0 + channel, position); slots without
// a position get zeros.
template <typename scalar_t, typename T>
void pack_positions(const Map<scalar_t>& map, int64_t channel0, int64_t channels, const Axis& columns,
                    const Chunk& chunk, const Span& span, T* planes, int64_t stride) {
  for (int row = 0; row < chunk.rows; ++row) {
    const scalar_t* line = map.data + (chunk.y + row) * map.row + channel0 * map.channel;
    T* out = planes + row * chunk.columns * channels * stride;
    if (columns.exact && map.column == 1 && columns.slots == chunk.columns && chunk.columns <= 2) {
      for (int64_t c = 0; c < channels; ++c) {
        const scalar_t* source = line + c * map.channel + span.begin * columns.slots;
        T *even = out + c * stride, *odd = out + (channels + c) * stride;
        if (chunk.columns == 1)
          for (int64_t i = 0; i < span.size(); ++i) even[i] = static_cast<T>(source[i]);
        else
          for (int64_t i = 0; i < span.size(); ++i) {
            even[i] = static_cast<T>(source[2 * i]);
            odd[i] = static_cast<T>(source[2 * i + 1]);
          }
      }
      continue;
    }
    for (int slot = 0; slot < chunk.columns; ++slot) {
      T* plane = out + slot * channels * stride;
      const int64_t s = chunk.slot + slot;
      if (map.channel == 1 && map.column != 1) {  // channels last: read lines of channels
        for (int64_t cell = span.begin; cell < span.end; ++cell) {
          const scalar_t* source = line + (columns.first[cell] + s) * map.column;
          T* target = plane + cell - span.begin;
          if (s < columns.count(cell))
            for (int64_t c = 0; c < channels; ++c) target[c * stride] = static_cast<T>(source[c]);
          else
            for (int64_t c = 0; c < channels; ++c) target[c * stride] = T(0);
        }
      } else {
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t cell = span.begin; cell < span.end; ++cell)
            plane[c * stride + cell - span.begin] =
                s < columns.count(cell) ? static_cast<T>(line[c * map.channel + (columns.first[cell] + s) * map.column])
                                        : T(0);
      }
    }
  }
}

// The way back: map(channel0 + channel, position) = planes[...]; slots without a position are dropped.
template <typename scalar_t, typename T>
void unpack_positions(const T* planes, int64_t stride, int64_t channels, const Axis& columns, const Chunk& chunk,
                      const Span& span, const Map<scalar_t>& map, int64_t channel0) {
  for (int row = 0; row < chunk.rows; ++row) {
    scalar_t* line = map.mutable_data() + (chunk.y + row) * map.row + channel0 * map.channel;
    const T* in = planes + row * chunk.columns * channels * stride;
    if (columns.exact && map.column == 1 && columns.slots == chunk.columns && chunk.columns <= 2) {
      for (int64_t c = 0; c < channels; ++c) {
        scalar_t* target = line + c * map.channel + span.begin * columns.slots;
        const T *even = in + c * stride, *odd = in + (channels + c) * stride;
        if (chunk.columns == 1)
          for (int64_t i = 0; i < span.size(); ++i) target[i] = static_cast<scalar_t>(even[i]);
        else
          for (int64_t i = 0; i < span.size(); ++i) {
            target[2 * i] = static_cast<scalar_t>(even[i]);
            target[2 * i + 1] = static_cast<scalar_t>(odd[i]);
          }
      }
      continue;
    }
    for (int slot = 0; slot < chunk.columns; ++slot) {
      const T* plane = in + slot * channels * stride;
      const int64_t s = chunk.slot + slot;
      if (map.channel == 1 && map.column != 1) {
        for (int64_t cell = span.begin; cell < span.end; ++cell) {
          if (s >= columns.count(cell)) continue;
          scalar_t* target = line + (columns.first[cell] + s) * map.column;
          for (int64_t c = 0; c < channels; ++c)
            target[c] = static_cast<scalar_t>(plane[c * stride + cell - span.begin]);
        }
      } else {
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t cell = span.begin; cell < span.end; ++cell)
            if (s < columns.count(cell))
              line[c * map.channel + (columns.first[cell] + s) * map.column] =
                  static_cast<scalar_t>(plane[c * stride + cell - span.begin]);
      }
    }
  }
}

// Zeros where a plane has no position: slots that a cell lacks, and the columns after the span. What the loops computed
// there must not reach others, not even as 0 * NaN.
template <typename T>
void clear_unused(T* planes, int64_t planes_per_slot, int64_t stride, int64_t width, const Axis& columns,
                  const Chunk& chunk, const Span& span) {
  for (int i = 0; i < chunk.slots(); ++i) {
    const int64_t s = chunk.slot + i % chunk.columns;
    const bool full = is_full(columns, s, span);
    for (int64_t p = 0; p < planes_per_slot; ++p) {
      T* plane = planes + (i * planes_per_slot + p) * stride;
      std::fill(plane + span.size(), plane + width, T(0));
      if (full) continue;
      for (int64_t cell = span.begin; cell < span.end; ++cell)
        if (s >= columns.count(cell)) plane[cell - span.begin] = T(0);
    }
  }
}

// Rows of a low-resolution map around a row of cells, padded with zeros: a ring of kernel_size rows, so that the next
// row of cells needs one new row. Column 0 of a packed row is column span.begin - radius of the map.
template <typename scalar_t, typename T>
class Ring {
 public:
  Ring(const at::Tensor& x, int kernel_size, int64_t padded_width)
      : x_(x),
        kernel_size_(kernel_size),
        width_(padded_width),
        row_size_(x.size(1) * padded_width),
        rows_(kernel_size * row_size_) {}

  // The window of rows around `cell_row`, whose rows are packed unless they were for cell_row - 1 just before.
  Window<T> at(int64_t n, int64_t cell_row, const Span& span, bool is_next) {
    const int64_t radius = kernel_size_ / 2;
    for (int64_t y = is_next ? cell_row + radius : cell_row - radius; y <= cell_row + radius; ++y) pack(n, y, span);
    Window<T> window{{}, width_, kernel_size_};
    for (int ky = 0; ky < kernel_size_; ++ky) window.rows[ky] = row(cell_row - radius + ky);
    return window;
  }

 private:
  T* row(int64_t y) const { return rows_.get() + (y + kernel_size_) % kernel_size_ * row_size_; }

  void pack(int64_t n, int64_t y, const Span& span) {
    T* out = row(y);
    const int64_t channels = x_.size(1), radius = kernel_size_ / 2;
    if (y < 0 || y >= x_.size(2)) {
      std::memset(out, 0, row_size_ * sizeof(T));
      return;
    }
    // Columns [begin, end) of the packed row lie in the map; the rest stays zero.
    const int64_t origin = span.begin - radius;
    const int64_t begin = std::max<int64_t>(0, -origin);
    const int64_t end = std::min(span.size() + 2 * radius, x_.size(3) - origin);
    const Map<scalar_t> map(x_, n);
    const scalar_t* line = map.data + y * map.row + origin * map.column;
    for (int64_t c = 0; c < channels; ++c) {
      std::fill(out + c * width_, out + c * width_ + begin, T(0));
      std::fill(out + c * width_ + end, out + (c + 1) * width_, T(0));
    }
    if (map.channel == 1 && map.column != 1) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t c = 0; c < channels; ++c) out[c * width_ + i] = static_cast<T>(line[i * map.column + c]);
    } else if (map.column == 1) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = begin; i < end; ++i) out[c * width_ + i] = static_cast<T>(line[c * map.channel + i]);
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = begin; i < end; ++i)
          out[c * width_ + i] = static_cast<T>(line[c * map.channel + i * map.column]);
    }
  }

  const at::Tensor x_;
  const int kernel_size_;
  const int64_t width_, row_size_;
  Buffer<T> rows_;
};

// The same ring for sums: rows of gradients that the rows of cells around them add to. A row is written to the
// gradient when the last row of cells that reaches it has passed.
template <typename scalar_t, typename T>
class SumRing {
 public:
  SumRing(const at::Tensor& grad, int kernel_size, int64_t padded_width)
      : grad_(grad),
        kernel_size_(kernel_size),
        width_(padded_width),
        row_size_(grad.size(1) * padded_width),
        rows_(kernel_size * row_size_) {}

  // The window around `cell_row`; its last row is new and zero.
  MutableWindow<T> at(int64_t cell_row) {
    const int64_t radius = kernel_size_ / 2;
    std::memset(row(cell_row + radius), 0, row_size_ * sizeof(T));
    MutableWindow<T> window{{}, width_, kernel_size_};
    for (int ky = 0; ky < kernel_size_; ++ky) window.rows[ky] = row(cell_row - radius + ky);
    return window;
  }

  // Write the columns `owned` of row y; column 0 of the packed row is column `origin` of the map.
  void write(int64_t n, int64_t y, const Span& owned, int64_t origin) {
    const Map<scalar_t> map(grad_, n);
    const T* in = row(y);
    scalar_t* line = map.mutable_data() + y * map.row;
    if (map.channel == 1 && map.column != 1) {
      for (int64_t x = owned.begin; x < owned.end; ++x)
        for (int64_t c = 0; c < grad_.size(1); ++c)
          line[x * map.column + c] = static_cast<scalar_t>(in[c * width_ + x - origin]);
    } else {
      for (int64_t c = 0; c < grad_.size(1); ++c)
        for (int64_t x = owned.begin; x < owned.end; ++x)
          line[c * map.channel + x * map.column] = static_cast<scalar_t>(in[c * width_ + x - origin]);
    }
  }

 private:
  T* row(int64_t y) const { return rows_.get() + (y + 2 * kernel_size_) % kernel_size_ * row_size_; }

  const at::Tensor grad_;
  const int kernel_size_;
  const int64_t width_, row_size_;
  Buffer<T> rows_;
};

// How a low-resolution map is cut into work: tiles of columns, so that the rings stay in the cache, each a column of
// rows of cells that one thread walks down in runs.
struct Tiling {
  Tiling(int64_t batch, int64_t height, int64_t width, int64_t tile) : height(height), width(width) {
    tiles = (width + tile - 1) / tile;
    tile_width = (width + tiles - 1) / tiles;
    tasks = batch * tiles * height;
  }

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

constexpr int64_t kTileColumns = 96;
constexpr int64_t kChannelBlock = 32;

}  // namespace sapa_mm
