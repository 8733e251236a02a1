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

template <typename scalar_t>
struct StoredAs {
  using type = scalar_t;
};
template <>
struct StoredAs<at::Half> {
  using type = HalfBits;
};
template <>
struct StoredAs<at::BFloat16> {
  using type = BFloat16Bits;
};

// One image of an NCHW tensor of any strides.
template <typename scalar_t>
struct Map {
  using Stored = typename StoredAs<scalar_t>::type;

  Map(const at::Tensor& x, int64_t n)
      : data(reinterpret_cast<Stored*>(const_cast<scalar_t*>(x.const_data_ptr<scalar_t>())) + n * x.stride(0)),
        channel(x.stride(1)),
        row(x.stride(2)),
        column(x.stride(3)) {}
  Stored* at(int64_t c, int64_t y, int64_t x) const { return data + c * channel + y * row + x * column; }

  Stored* data;
  int64_t channel, row, column;
};

constexpr int64_t kAhead = 4;

template <typename Stored>
inline void prefetch(const Stored* in, int64_t size) {
  for (int64_t i = 0; i < size; i += 64 / static_cast<int64_t>(sizeof(Stored))) __builtin_prefetch(in + i, 0, 2);
}

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

// Moves the positions of a span of cells between a map and packed planes,
//     planes[(slot * channels + channel) * stride + cell - span.begin],
// a row of positions at a time. Slots without a position are packed as zeros and dropped on the way back.
template <typename scalar_t, typename T>
class Packer {
 public:
  using Stored = typename StoredAs<scalar_t>::type;

  Packer(const Axis& columns, int64_t max_cells, int64_t max_channels)
      : columns_(columns),
        kernels_(pack_kernels<T, Stored>()),
        lacking_(columns.slots),
        line_(max_cells * columns.slots),
        stored_(max_cells * columns.slots),
        blank_(max_channels),
        addresses_(max_cells) {}

  void set_span(const Span& span) {
    span_ = span;
    // Where neighbouring positions stand side by side in a line of `slots` places per cell.
    runs_.clear();
    for (int64_t cell = span.begin; cell < span.end; ++cell) {
      const int64_t place = (cell - span.begin) * columns_.slots, count = columns_.count(cell);
      if (count == 0) continue;
      if (!runs_.empty() && runs_.back().place + runs_.back().size == place)
        runs_.back().size += count;
      else
        runs_.push_back({columns_.first[cell], place, count});
    }
    clear_line();
    for (int64_t slot = 0; slot < columns_.slots; ++slot) {
      lacking_[slot].clear();
      for (int64_t cell = span.begin; cell < span.end; ++cell)
        if (slot >= columns_.count(cell)) lacking_[slot].push_back(cell);
    }
  }

  void pack(const Map<scalar_t>& map, int64_t channel0, int64_t channels, const Chunk& chunk, T* planes,
            int64_t stride) {
    if (map.channel == 1 && map.column != 1) {
      for (int slot = 0; slot < chunk.slots(); ++slot) {
        address(map, channel0, chunk.y + slot / chunk.columns, chunk.slot + slot % chunk.columns);
        kernels_.gather_columns(addresses_.data(), span_.size(), channels, planes + slot * channels * stride, stride);
      }
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      if (map.column == 1 && c + kAhead < channels)
        for (int row = 0; row < chunk.rows; ++row)
          prefetch(map.at(channel0 + c + kAhead, chunk.y + row, columns_.first[span_.begin]),
                   columns_.first[span_.end] - columns_.first[span_.begin]);
      for (int row = 0; row < chunk.rows; ++row) {
        const Stored* in = map.at(channel0 + c, chunk.y + row, 0);
        T* plane = planes + (row * chunk.columns * channels + c) * stride;
        if (map.column == 1 && columns_.slots <= 2) {
          for (const Run& run : runs_) {
            T* to = plane + run.place / columns_.slots;
            if (columns_.slots == 1) {
              kernels_.widen(in + run.position, to, run.size);
              continue;
            }
            kernels_.split(in + run.position, to, to + channels * stride, run.size / 2);
            if (run.size % 2 == 1) kernels_.widen(in + run.position + run.size - 1, to + run.size / 2, 1);
          }
          for (int slot = 0; slot < columns_.slots; ++slot)
            for (int64_t cell : lacking_[slot]) plane[slot * channels * stride + cell - span_.begin] = T(0);
          continue;
        }
        for (const Run& run : runs_) {
          const Stored* source = in + run.position * map.column;
          if (map.column != 1) {
            for (int64_t i = 0; i < run.size; ++i) stored_.get()[i] = source[i * map.column];
            source = stored_.get();
          }
          kernels_.widen(source, line_.get() + run.place, run.size);
        }
        if (columns_.slots == 2) {
          pack_kernels<T, T>().split(line_.get(), plane, plane + channels * stride, span_.size());
          continue;
        }
        for (int slot = 0; slot < chunk.columns; ++slot)
          for (int64_t i = 0; i < span_.size(); ++i)
            plane[slot * channels * stride + i] = line_.get()[i * columns_.slots + chunk.slot + slot];
      }
    }
  }

  void unpack(const T* planes, int64_t stride, int64_t channels, const Chunk& chunk, const Map<scalar_t>& map,
              int64_t channel0) {
    if (map.channel == 1 && map.column != 1) {
      for (int slot = 0; slot < chunk.slots(); ++slot) {
        address(map, channel0, chunk.y + slot / chunk.columns, chunk.slot + slot % chunk.columns);
        kernels_.scatter_columns(planes + slot * channels * stride, stride, span_.size(), channels, addresses_.data());
      }
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int row = 0; row < chunk.rows; ++row) {
        Stored* out = map.at(channel0 + c, chunk.y + row, 0);
        const T* plane = planes + (row * chunk.columns * channels + c) * stride;
        if (map.column == 1 && columns_.slots <= 2) {
          for (const Run& run : runs_) {
            const T* from = plane + run.place / columns_.slots;
            if (columns_.slots == 1) {
              kernels_.narrow(from, out + run.position, run.size);
              continue;
            }
            kernels_.join(from, from + channels * stride, out + run.position, run.size / 2);
            if (run.size % 2 == 1) kernels_.narrow(from + run.size / 2, out + run.position + run.size - 1, 1);
          }
          continue;
        }
        if (map.column == 1 && columns_.slots <= kMaxSlots) {  // the chunk has all slots: make a line of them
          for (int slot = 0; slot < chunk.columns; ++slot)
            for (int64_t i = 0; i < span_.size(); ++i)
              line_.get()[i * columns_.slots + slot] = plane[slot * channels * stride + i];
          for (const Run& run : runs_) kernels_.narrow(line_.get() + run.place, out + run.position, run.size);
          continue;
        }
        for (int slot = 0; slot < chunk.columns; ++slot) {
          kernels_.narrow(plane + slot * channels * stride, stored_.get(), span_.size());
          for (int64_t cell = span_.begin; cell < span_.end; ++cell)
            if (chunk.slot + slot < columns_.count(cell))
              out[(columns_.first[cell] + chunk.slot + slot) * map.column] = stored_.get()[cell - span_.begin];
        }
      }
    }
    clear_line();  // places without a position may have been written
  }

  // Zeros where a plane has no position: slots that a cell lacks, and the columns from the span up to `width`. What the
  // loops computed there must not reach others, not even as 0 * NaN.
  void clear_unused(T* planes, int64_t planes_per_slot, int64_t stride, int64_t width, const Chunk& chunk) const {
    for (int i = 0; i < chunk.slots(); ++i) {
      const int64_t s = chunk.slot + i % chunk.columns;
      for (int64_t p = 0; p < planes_per_slot; ++p) {
        T* plane = planes + (i * planes_per_slot + p) * stride;
        std::fill(plane + span_.size(), plane + width, T(0));
        for (int64_t cell : lacking_[s]) plane[cell - span_.begin] = T(0);
      }
    }
  }

 private:
  struct Run {
    int64_t position, place, size;
  };

  // Addresses of the channels of one slot of every cell; of a blank where a cell lacks it.
  void address(const Map<scalar_t>& map, int64_t channel0, int64_t y, int64_t slot) {
    for (int64_t cell = span_.begin; cell < span_.end; ++cell)
      addresses_[cell - span_.begin] =
          slot < columns_.count(cell) ? map.at(channel0, y, columns_.first[cell] + slot) : blank_.get();
  }

  // Places without a position are zero.
  void clear_line() {
    if (!columns_.exact) std::memset(line_.get(), 0, span_.size() * columns_.slots * sizeof(T));
  }

  const Axis& columns_;
  const PackKernels<T, Stored>& kernels_;
  Span span_{0, 0};
  std::vector<Run> runs_;
  std::vector<std::vector<int64_t>> lacking_;  // cells of the span without a position, by slot
  Buffer<T> line_;
  Buffer<Stored> stored_, blank_;
  std::vector<Stored*> addresses_;
};

// Assembly from and to maps whose channels lie side by side: nothing is packed, vectors run along the channels.
template <typename scalar_t, typename T>
class ChannelsLastAssembly {
 public:
  using Stored = typename StoredAs<scalar_t>::type;

  ChannelsLastAssembly(const at::Tensor& values, const at::Tensor& output, int kernel_size, const Axis& columns)
      : fits(values.stride(1) == 1 && output.stride(1) == 1 && values.stride(3) != 1 && output.stride(3) != 1),
        kernel_size_(kernel_size),
        height_(values.size(2)),
        columns_(columns),
        kernels_(pack_kernels<T, Stored>()),
        blank_(values.size(1)) {}

  // weights[(slot * K*K + tap) * stride + cell - span.begin]
  void operator()(const T* weights, int64_t stride, const Map<scalar_t>& values, const Map<scalar_t>& output,
                  int64_t cell_row, const Chunk& chunk, const Span& span, int64_t channel0, int64_t channels) {
    const int64_t radius = kernel_size_ / 2;
    for (int64_t cell = span.begin; cell < span.end; ++cell) {
      int count = 0;
      for (int ky = 0; ky < kernel_size_; ++ky)
        for (int kx = 0; kx < kernel_size_; ++kx) {
          const int64_t y = cell_row - radius + ky, x = cell - radius + kx;
          if (y < 0 || y >= height_ || x < 0 || x >= columns_.cells) continue;
          taps_[count] = ky * kernel_size_ + kx;
          values_[count++] = values.at(channel0, y, x);
        }
      Stored* out[kMaxSlots];
      for (int i = 0; i < chunk.slots(); ++i) {
        const int64_t slot = chunk.slot + i % chunk.columns;
        out[i] = slot < columns_.count(cell)
                     ? output.at(channel0, chunk.y + i / chunk.columns, columns_.first[cell] + slot)
                     : blank_.get();
      }
      kernels_.assemble_cell(weights + cell - span.begin, kernel_size_ * kernel_size_ * stride, stride, taps_, values_,
                             count, channels, chunk.slots(), out);
    }
  }

  const bool fits;

 private:
  const int kernel_size_;
  const int64_t height_;
  const Axis& columns_;
  const PackKernels<T, Stored>& kernels_;
  Buffer<Stored> blank_;
  int taps_[kMaxKernelSize * kMaxKernelSize];
  const Stored* values_[kMaxKernelSize * kMaxKernelSize];
};

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
    const auto& kernels = pack_kernels<T, typename Map<scalar_t>::Stored>();
    for (int64_t c = 0; c < channels; ++c) {
      std::fill(out + c * width_, out + c * width_ + begin, T(0));
      std::fill(out + c * width_ + end, out + (c + 1) * width_, T(0));
    }
    if (map.channel == 1 && map.column != 1) {
      columns_.resize(end - begin);
      for (int64_t i = begin; i < end; ++i) columns_[i - begin] = map.at(0, y, origin + i);
      kernels.gather_columns(columns_.data(), end - begin, channels, out + begin, width_);
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const auto* in = map.at(c, y, origin + begin);
      T* plane = out + c * width_ + begin;
      if (map.column == 1 && c + kAhead < channels) prefetch(map.at(c + kAhead, y, origin + begin), end - begin);
      if (map.column == 1)
        kernels.widen(in, plane, end - begin);
      else
        for (int64_t i = 0; i < end - begin; ++i) kernels.widen(in + i * map.column, plane + i, 1);
    }
  }

  std::vector<typename Map<scalar_t>::Stored*> columns_;
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
  SumRing(const at::Tensor& grad, int kernel_size, int64_t width)
      : grad_(grad),
        kernel_size_(kernel_size),
        width_(width),
        row_size_(grad.size(1) * width),
        rows_(kernel_size * row_size_) {}

  // The window around `cell_row`; its last row is new and zero.
  MutableWindow<T> at(int64_t cell_row) {
    const int64_t radius = kernel_size_ / 2;
    std::memset(row(cell_row + radius), 0, row_size_ * sizeof(T));
    MutableWindow<T> window{{}, width_, kernel_size_};
    for (int ky = 0; ky < kernel_size_; ++ky) window.rows[ky] = row(cell_row - radius + ky);
    return window;
  }

  // Write row y, whose first column is the first of `owned`.
  void write(int64_t n, int64_t y, const Span& owned) {
    const Map<scalar_t> map(grad_, n);
    const auto& kernels = pack_kernels<T, typename Map<scalar_t>::Stored>();
    const T* in = row(y);
    if (map.channel == 1 && map.column != 1) {
      columns_.resize(owned.size());
      for (int64_t i = 0; i < owned.size(); ++i) columns_[i] = map.at(0, y, owned.begin + i);
      kernels.scatter_columns(in, width_, owned.size(), grad_.size(1), columns_.data());
      return;
    }
    for (int64_t c = 0; c < grad_.size(1); ++c) {
      auto* out = map.at(c, y, owned.begin);
      if (map.column == 1)
        kernels.stream(in + c * width_, out, owned.size());
      else
        for (int64_t i = 0; i < owned.size(); ++i) kernels.narrow(in + c * width_ + i, out + i * map.column, 1);
    }
    kernels.fence();
  }

 private:
  T* row(int64_t y) const { return rows_.get() + (y + 2 * kernel_size_) % kernel_size_ * row_size_; }

  std::vector<typename Map<scalar_t>::Stored*> columns_;
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
