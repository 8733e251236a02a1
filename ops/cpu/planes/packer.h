// SPDX-License-Identifier: Apache-2.0
// Between high-resolution maps and planes.
#pragma once

#include "layout.h"
#include "tiling.h"

namespace sapa_mm {

// Moves the positions of a span of cells between a map and packed planes,
//     planes[(slot * channels + channel) * stride + cell - span.begin],
// a row of positions at a time. Slots without a position are packed as anything and dropped on the way back.
template <typename scalar_t>
class Packer {
 public:
  using T = accumulate_t<scalar_t>;
  using Stored = stored_t<scalar_t>;

  Packer(const Axis& columns, int64_t max_cells, int64_t max_channels)
      : columns_(columns),
        lacking_(columns.slots),
        line_(max_cells * columns.slots),
        stored_(max_cells),
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
    for (int64_t slot = 0; slot < columns_.slots; ++slot) {
      lacking_[slot].clear();
      for (int64_t cell = span.begin; cell < span.end; ++cell)
        if (slot >= columns_.count(cell)) lacking_[slot].push_back(cell);
    }
  }

  void pack(const Map<scalar_t>& map, int64_t channel0, int64_t channels, const Chunk& chunk, T* planes,
            int64_t stride) {
    if (map.channels_last) {
      for (int slot = 0; slot < chunk.slots(); ++slot) {
        find_addresses(map, channel0, chunk, slot);
        loops_.gather_columns(addresses_.data(), span_.size(), channels, planes + slot * channels * stride, stride);
      }
      return;
    }
    const int64_t slots = columns_.slots;
    for (int64_t c = 0; c < channels; ++c) {
      if (c + kPrefetchDistance < channels)
        for (int row = 0; row < chunk.rows; ++row)
          prefetch(map.at(channel0 + c + kPrefetchDistance, chunk.y + row, columns_.first[span_.begin]),
                   columns_.first[span_.end] - columns_.first[span_.begin]);
      for (int row = 0; row < chunk.rows; ++row) {
        const Stored* in = map.at(channel0 + c, chunk.y + row, 0);
        T* plane = planes + (row * chunk.columns * channels + c) * stride;
        for (const Run& run : runs_) {
          const Stored* from = in + run.position;
          T* to = plane + run.place / slots;
          if (slots == 1) {
            loops_.widen(from, to, run.size);
          } else if (slots == 2) {
            loops_.split(from, to, to + channels * stride, run.size / 2);
            if (run.size % 2 == 1) loops_.widen(from + run.size - 1, to + run.size / 2, 1);
          } else {
            loops_.widen(from, line_.get() + run.place, run.size);
          }
        }
        if (slots <= 2) continue;
        for (int slot = 0; slot < chunk.columns; ++slot)
          for (int64_t i = 0; i < span_.size(); ++i)
            plane[slot * channels * stride + i] = line_.get()[i * slots + chunk.slot + slot];
      }
    }
  }

  void unpack(const T* planes, int64_t stride, int64_t channels, const Chunk& chunk, const Map<scalar_t>& map,
              int64_t channel0) {
    if (map.channels_last) {
      for (int slot = 0; slot < chunk.slots(); ++slot) {
        find_addresses(map, channel0, chunk, slot);
        loops_.scatter_columns(planes + slot * channels * stride, stride, span_.size(), channels, addresses_.data());
      }
      return;
    }
    const int64_t slots = columns_.slots;
    for (int64_t c = 0; c < channels; ++c)
      for (int row = 0; row < chunk.rows; ++row) {
        Stored* out = map.at(channel0 + c, chunk.y + row, 0);
        const T* plane = planes + (row * chunk.columns * channels + c) * stride;
        if (slots > kMaxSlots) {  // the chunk has some of the slots
          for (int slot = 0; slot < chunk.columns; ++slot) {
            loops_.narrow(plane + slot * channels * stride, stored_.get(), span_.size());
            for (int64_t cell = span_.begin; cell < span_.end; ++cell)
              if (chunk.slot + slot < columns_.count(cell))
                out[columns_.first[cell] + chunk.slot + slot] = stored_.get()[cell - span_.begin];
          }
          continue;
        }
        for (int slot = 0; slot < chunk.columns && slots > 2; ++slot)
          for (int64_t i = 0; i < span_.size(); ++i)
            line_.get()[i * slots + slot] = plane[slot * channels * stride + i];
        for (const Run& run : runs_) {
          const T* from = plane + run.place / slots;
          Stored* to = out + run.position;
          if (slots == 1) {
            loops_.narrow(from, to, run.size);
          } else if (slots == 2) {
            loops_.join(from, from + channels * stride, to, run.size / 2);
            if (run.size % 2 == 1) loops_.narrow(from + run.size / 2, to + run.size - 1, 1);
          } else {
            loops_.narrow(line_.get() + run.place, to, run.size);
          }
        }
      }
  }

  // Zeros where a plane has no position: slots that a cell lacks, and the columns from the span up to `width`. What the
  // loops computed there must not reach others, not even as 0 * NaN.
  void clear_unused(T* planes, int64_t planes_per_slot, int64_t stride, int64_t width, const Chunk& chunk) const {
    for (int i = 0; i < chunk.slots(); ++i)
      for (int64_t p = 0; p < planes_per_slot; ++p) {
        T* plane = planes + (i * planes_per_slot + p) * stride;
        std::fill(plane + span_.size(), plane + width, T(0));
        for (int64_t cell : lacking_[chunk.slot + i % chunk.columns]) plane[cell - span_.begin] = T(0);
      }
  }

 private:
  struct Run {
    int64_t position, place, size;
  };

  // Addresses of the channels of one slot of every cell; of a blank where a cell lacks it.
  void find_addresses(const Map<scalar_t>& map, int64_t channel0, const Chunk& chunk, int64_t i) {
    const int64_t y = chunk.y + i / chunk.columns, slot = chunk.slot + i % chunk.columns;
    for (int64_t cell = span_.begin; cell < span_.end; ++cell)
      addresses_[cell - span_.begin] =
          slot < columns_.count(cell) ? map.at(channel0, y, columns_.first[cell] + slot) : blank_.get();
  }

  const Axis& columns_;
  const PackLoops<T, Stored>& loops_ = pack_loops<scalar_t>();
  Span span_{0, 0};
  std::vector<Run> runs_;
  std::vector<std::vector<int64_t>> lacking_;  // cells of the span without a position, by slot
  Buffer<T> line_;
  Buffer<Stored> stored_, blank_;
  std::vector<Stored*> addresses_;
};

}  // namespace sapa_mm
