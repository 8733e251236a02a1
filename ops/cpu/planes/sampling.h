// SPDX-License-Identifier: Apache-2.0
// The walks of deformable sampling. Points lie anywhere, so nothing is shared between neighbours as a window is; but
// all channels of a group move together. A low-resolution map is therefore laid out with the channels of a position
// side by side (samples.h), and a thread takes lines of positions. No sample is ever written down.
//
// The gradient of the low-resolution map cannot be gathered, for any position may have sampled any other. A task owns a
// few channels of it and walks over all positions in one order, so the result does not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../../window.h"
#include "layout.h"
#include "samples.h"

namespace sapa_mm {

constexpr int64_t kSpreadChannels = 32;

// Neighbouring positions of a row of a map.
struct Line {
  int64_t y, x, size;
};

// Moves lines of positions between maps and what the loops work on.
template <typename scalar_t>
class Mover {
 public:
  using T = accumulate_t<scalar_t>;
  using Stored = stored_t<scalar_t>;

  explicit Mover(int64_t max_channels) : planes_(max_channels * kLine) {}

  // One channel, side by side.
  void load(const Map<scalar_t>& map, int64_t channel, const Line& line, T* out) const {
    const Stored* in = map.at(channel, line.y, line.x);
    if (map.column == 1) return loops_.widen(in, out, line.size);
    for (int64_t i = 0; i < line.size; ++i) loops_.widen(in + i * map.column, out + i, 1);
  }
  void store(const T* in, const Map<scalar_t>& map, int64_t channel, const Line& line) const {
    Stored* out = map.at(channel, line.y, line.x);
    if (map.column == 1) return loops_.narrow(in, out, line.size);
    for (int64_t i = 0; i < line.size; ++i) loops_.narrow(in + i, out + i * map.column, 1);
  }

  // Channels from `first`, as vectors[position * stride + channel].
  void load(const Map<scalar_t>& map, int64_t first, int64_t channels, const Line& line, T* vectors, int64_t stride) {
    if (map.channels_last) {
      for (int64_t i = 0; i < line.size; ++i)
        loops_.widen(map.at(first, line.y, line.x + i), vectors + i * stride, channels);
      return;
    }
    for (int64_t c = 0; c < channels; ++c) load(map, first + c, line, planes_.get() + c * kLine);
    T* columns[kLine];
    for (int64_t i = 0; i < line.size; ++i) columns[i] = vectors + i * stride;
    pack_loops<T>().scatter_columns(planes_.get(), kLine, line.size, channels, columns);
  }
  void store(const T* vectors, int64_t stride, const Map<scalar_t>& map, int64_t first, int64_t channels,
             const Line& line) {
    if (map.channels_last) {
      for (int64_t i = 0; i < line.size; ++i)
        loops_.narrow(vectors + i * stride, map.at(first, line.y, line.x + i), channels);
      return;
    }
    const T* columns[kLine];
    for (int64_t i = 0; i < line.size; ++i) columns[i] = vectors + i * stride;
    pack_loops<T>().gather_columns(columns, line.size, channels, planes_.get(), kLine);
    for (int64_t c = 0; c < channels; ++c) store(planes_.get() + c * kLine, map, first + c, line);
  }

 private:
  const PackLoops<T, Stored>& loops_ = pack_loops<scalar_t>();
  const Buffer<T> planes_;
};

// The lines of a map of positions.
struct Lines {
  explicit Lines(const at::Tensor& map)
      : height(map.size(2)), width(map.size(3)), per_row((width + kLine - 1) / kLine) {}
  int64_t count() const { return height * per_row; }
  Line operator[](int64_t i) const {
    const int64_t x = i % per_row * kLine;
    return {i / per_row, x, std::min(kLine, width - x)};
  }

  int64_t height, width, per_row;
};

// The points of a line of positions, read from a map of offsets.
template <typename scalar_t>
class Points {
 public:
  using T = accumulate_t<scalar_t>;

  Points(const at::Tensor& offset, const at::Tensor& low, int64_t groups)
      : height_(low.size(2)),
        width_(low.size(3)),
        size_(offset.size(2)),
        points_(offset.size(1) / (2 * groups)),
        cell_x_(offset.size(3)),
        first_(points_ * kLine),
        numbers_(4 * points_ * kLine),
        offsets_(2 * kLine),
        places_{first_.get(),
                numbers_.get(),
                numbers_.get() + points_ * kLine,
                numbers_.get() + 2 * points_ * kLine,
                numbers_.get() + 3 * points_ * kLine,
                points_} {
    for (size_t x = 0; x < cell_x_.size(); ++x) cell_x_[x] = static_cast<T>(cell_of(x, offset.size(3), width_));
  }

  const Places<T>& locate(const Mover<scalar_t>& mover, const Map<scalar_t>& offset, int64_t group, const Line& line) {
    T *dx = offsets_.get(), *dy = dx + kLine;
    for (int64_t p = 0; p < points_; ++p) {
      const int64_t channel = (group * points_ + p) * 2;
      mover.load(offset, channel, line, dx);
      mover.load(offset, channel + 1, line, dy);
      loops<SampleLoops<T>>().locate(dx, dy, cell_x_.data() + line.x, static_cast<T>(cell_of(line.y, size_, height_)),
                                     line.size, height_, width_, p, places_);
    }
    return places_;
  }

 private:
  int64_t height_, width_, size_, points_;
  std::vector<T> cell_x_;
  Buffer<int32_t> first_;
  Buffer<T> numbers_, offsets_;
  Places<T> places_;
};

// Moves numbers of the points of a group from and to a contiguous map (N, groups * points, H, W).
template <typename T, typename Move>
void for_each_point(const at::Tensor& map, int64_t n, int64_t group, int64_t points, const Line& line,
                    const Move& move) {
  T* first = data_of<T>(map) + ((n * map.size(1) + group * points) * map.size(2) + line.y) * map.size(3) + line.x;
  for (int64_t p = 0; p < points; ++p) move(first + p * map.size(2) * map.size(3), p * kLine);
}
template <typename T>
void load_points(const at::Tensor& map, int64_t n, int64_t group, int64_t points, const Line& line, T* out) {
  for_each_point<T>(map, n, group, points, line,
                    [&](const T* in, int64_t at) { std::copy_n(in, line.size, out + at); });
}

// One image of a low-resolution map as a table for each group.
template <typename scalar_t>
class Tables {
 public:
  using T = accumulate_t<scalar_t>;

  Tables(const at::Tensor& low, int64_t groups)
      : low_(low),
        groups_(groups),
        channels_(low.size(1) / groups),
        stride_(round_up(channels_, kLanes)),
        line_(low.size(3) + 3),
        lines_(low.size(2) + 3),
        memory_(at::empty({groups, lines_, line_, stride_}, low.options().dtype(c10::CppTypeToScalarType<T>::value))) {}

  Table<T> operator[](int64_t group) const {
    return {memory_.template mutable_data_ptr<T>() + group * lines_ * line_ * stride_, stride_, line_, stride_};
  }

  void load(int64_t n) {
    const Map<scalar_t> map(low_, n);
    at::parallel_for(0, groups_ * lines_, 4, [&](int64_t begin, int64_t end) {
      Mover<scalar_t> mover(channels_);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / lines_, y = i % lines_ - 1;
        T* row = (*this)[group].rows + i % lines_ * line_ * stride_;
        std::memset(row, 0, line_ * stride_ * sizeof(T));
        if (y < 0 || y >= low_.size(2)) continue;
        for (int64_t x = 0; x < low_.size(3); x += kLine)
          mover.load(map, group * channels_, channels_, {y, x, std::min(kLine, low_.size(3) - x)},
                     row + (x + 1) * stride_, stride_);
      }
    });
  }

 private:
  const at::Tensor low_;
  const int64_t groups_, channels_, stride_, line_, lines_;
  const at::Tensor memory_;
};

// Calls work(mover, table, places, n, group, line) for all lines of positions and groups, where each thread has a work
// of its own from make_work().
template <typename scalar_t, typename MakeWork>
void for_each_line(const at::Tensor& low, const at::Tensor& offset, int64_t groups, const MakeWork& make_work) {
  const Lines lines(offset);
  Tables<scalar_t> tables(low, groups);
  for (int64_t n = 0; n < offset.size(0); ++n) {
    tables.load(n);
    at::parallel_for(0, lines.count(), 1, [&](int64_t begin, int64_t end) {
      Mover<scalar_t> mover(low.size(1) / groups);
      Points<scalar_t> points(offset, low, groups);
      const Map<scalar_t> offset_map(offset, n);
      auto work = make_work();
      for (int64_t i = begin; i < end; ++i)
        for (int64_t group = 0; group < groups; ++group)
          work(mover, tables[group], points.locate(mover, offset_map, group, lines[i]), n, group, lines[i]);
    });
  }
}

// For every point the product of `x` (N, C, H, W) with the sample of `low` (N, C, h, w) into `scores`, and weights
// times its derivative by the offset into `grad_offset`; each where it is defined.
template <typename scalar_t>
void correlate_samples(const at::Tensor& x, const at::Tensor& low, const at::Tensor& offset, int64_t groups,
                       const at::Tensor& scores, const at::Tensor& weights, const at::Tensor& grad_offset) {
  using T = accumulate_t<scalar_t>;
  const int64_t channels = low.size(1) / groups, points = offset.size(1) / (2 * groups), room = points * kLine;
  const int64_t stride = round_up(channels, kLanes);
  const bool moves = grad_offset.defined();
  for_each_line<scalar_t>(low, offset, groups, [&] {
    return [&, vectors = Buffer<T>(kLine * stride), products = Buffer<T>(room), moves_x = Buffer<T>(room),
            moves_y = Buffer<T>(room), weight = Buffer<T>(room)](Mover<scalar_t>& mover, const Table<T>& table,
                                                                 const Places<T>& places, int64_t n, int64_t group,
                                                                 const Line& line) {
      mover.load(Map<scalar_t>(x, n), group * channels, channels, line, vectors.get(), stride);
      loops<SampleLoops<T>>().correlate(vectors.get(), stride, table, places, line.size, products.get(),
                                        moves ? moves_x.get() : nullptr, moves_y.get());
      if (scores.defined())
        for_each_point<T>(scores, n, group, points, line,
                          [&](T* out, int64_t at) { std::copy_n(products.get() + at, line.size, out); });
      if (!moves) return;
      load_points(weights, n, group, points, line, weight.get());
      const Map<scalar_t> grad_map(grad_offset, n);
      for (int64_t p = 0; p < points; ++p)
        for (int axis = 0; axis < 2; ++axis) {
          T* move = (axis == 0 ? moves_x : moves_y).get() + p * kLine;
          for (int64_t j = 0; j < line.size; ++j) move[j] *= weight.get()[p * kLine + j];
          mover.store(move, grad_map, (group * points + p) * 2 + axis, line);
        }
    };
  });
}

// out (N, C, H, W) = sum over points of weights * samples of `low` (N, C, h, w)
template <typename scalar_t>
void assemble_samples(const at::Tensor& weights, const at::Tensor& low, const at::Tensor& offset, int64_t groups,
                      const at::Tensor& out) {
  using T = accumulate_t<scalar_t>;
  const int64_t channels = low.size(1) / groups, points = weights.size(1) / groups;
  const int64_t stride = round_up(channels, kLanes);
  for_each_line<scalar_t>(low, offset, groups, [&] {
    return [&, vectors = Buffer<T>(kLine * stride), weight = Buffer<T>(points * kLine)](
               Mover<scalar_t>& mover, const Table<T>& table, const Places<T>& places, int64_t n, int64_t group,
               const Line& line) {
      load_points(weights, n, group, points, line, weight.get());
      loops<SampleLoops<T>>().assemble(weight.get(), table, places, line.size, vectors.get(), stride);
      mover.store(vectors.get(), stride, Map<scalar_t>(out, n), group * channels, channels, line);
    };
  });
}

// The transpose of assemble: grad (N, C, h, w) from vectors `x` (N, C, H, W).
template <typename scalar_t>
void spread_samples(const at::Tensor& weights, const at::Tensor& x, const at::Tensor& offset, int64_t groups,
                    const at::Tensor& grad) {
  using T = accumulate_t<scalar_t>;
  const int64_t per_group = grad.size(1) / groups, blocks = (per_group + kSpreadChannels - 1) / kSpreadChannels;
  const int64_t height = grad.size(2), width = grad.size(3);
  const Lines lines(offset);
  at::parallel_for(0, grad.size(0) * groups * blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t most = std::min(per_group, kSpreadChannels), stride = round_up(most, kLanes);
    const int64_t line_rows = width + 3, rows = (height + 3) * line_rows;
    Mover<scalar_t> mover(most);
    Points<scalar_t> located(offset, grad, groups);
    Buffer<T> vectors(kLine * stride), weight(weights.size(1) / groups * kLine), sums(rows * stride);
    const Table<T> table{sums.get(), stride, line_rows, stride};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / blocks / groups, group = task / blocks % groups;
      const int64_t start = task % blocks * kSpreadChannels, channels = std::min(most, per_group - start);
      const int64_t first = group * per_group + start;
      const Map<scalar_t> map(x, n), offset_map(offset, n), grad_map(grad, n);
      std::memset(sums.get(), 0, rows * stride * sizeof(T));
      for (int64_t i = 0; i < lines.count(); ++i) {
        const Line line = lines[i];
        const Places<T>& places = located.locate(mover, offset_map, group, line);
        mover.load(map, first, channels, line, vectors.get(), stride);
        load_points(weights, n, group, weights.size(1) / groups, line, weight.get());
        loops<SampleLoops<T>>().spread(weight.get(), vectors.get(), stride, table, places, line.size);
      }
      for (int64_t y = 0; y < height; ++y)
        for (int64_t at = 0; at < width; at += kLine)
          mover.store(sums.get() + ((y + 1) * line_rows + at + 1) * stride, stride, grad_map, first, channels,
                      {y, at, std::min(kLine, width - at)});
    }
  });
}

}  // namespace sapa_mm
