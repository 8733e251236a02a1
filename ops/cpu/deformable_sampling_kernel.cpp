// SPDX-License-Identifier: Apache-2.0
// Deformable sampling on the CPU. Points lie anywhere, so nothing is shared between neighbours as a window is; but all
// channels of a group move together. A low-resolution map is therefore laid out with the channels of a position side by
// side (points.h), and a thread takes lines of positions. No sample is ever written down.
//
// The gradient of the low-resolution map cannot be gathered, for any position may have sampled any other. A task owns a
// few channels of it and walks over all positions in one order, so the result does not depend on the number of threads.
#include "../deformable_sampling.h"

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <torch/library.h>

#include "../gradients.h"
#include "packing.h"
#include "points.h"

namespace sapa_mm {
namespace {

constexpr int64_t kSpreadChannels = 32;

// Neighbouring positions of a row of a map.
struct Line {
  int64_t y, x, size;
};

// Moves lines of positions between maps of any strides and what the loops work on.
template <typename scalar_t, typename T>
class Mover {
 public:
  using Stored = typename StoredAs<scalar_t>::type;

  explicit Mover(int64_t max_channels)
      : kernels_(pack_kernels<T, Stored>()), transpose_(pack_kernels<T, T>()), planes_(max_channels * kLine) {}

  // One channel, side by side.
  void load(const Map<scalar_t>& map, int64_t channel, const Line& line, T* out) const {
    const Stored* in = map.at(channel, line.y, line.x);
    if (map.column == 1) return kernels_.widen(in, out, line.size);
    for (int64_t i = 0; i < line.size; ++i) kernels_.widen(in + i * map.column, out + i, 1);
  }
  void store(const T* in, const Map<scalar_t>& map, int64_t channel, const Line& line) const {
    Stored* out = map.at(channel, line.y, line.x);
    if (map.column == 1) return kernels_.narrow(in, out, line.size);
    for (int64_t i = 0; i < line.size; ++i) kernels_.narrow(in + i, out + i * map.column, 1);
  }

  // Channels from `first`, as vectors[position * stride + channel].
  void load(const Map<scalar_t>& map, int64_t first, int64_t channels, const Line& line, T* vectors, int64_t stride) {
    if (map.channel == 1) {
      for (int64_t i = 0; i < line.size; ++i)
        kernels_.widen(map.at(first, line.y, line.x + i), vectors + i * stride, channels);
      return;
    }
    for (int64_t c = 0; c < channels; ++c) load(map, first + c, line, planes_.get() + c * kLine);
    T* columns[kLine];
    for (int64_t i = 0; i < line.size; ++i) columns[i] = vectors + i * stride;
    transpose_.scatter_columns(planes_.get(), kLine, line.size, channels, columns);
  }
  void store(const T* vectors, int64_t stride, const Map<scalar_t>& map, int64_t first, int64_t channels,
             const Line& line) {
    if (map.channel == 1) {
      for (int64_t i = 0; i < line.size; ++i)
        kernels_.narrow(vectors + i * stride, map.at(first, line.y, line.x + i), channels);
      return;
    }
    const T* columns[kLine];
    for (int64_t i = 0; i < line.size; ++i) columns[i] = vectors + i * stride;
    transpose_.gather_columns(columns, line.size, channels, planes_.get(), kLine);
    for (int64_t c = 0; c < channels; ++c) store(planes_.get() + c * kLine, map, first + c, line);
  }

 private:
  const PackKernels<T, Stored>& kernels_;
  const PackKernels<T, T>& transpose_;
  Buffer<T> planes_;
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
template <typename scalar_t, typename T>
class Points {
 public:
  Points(const at::Tensor& offset, const at::Tensor& low, int64_t groups)
      : kernels_(point_kernels<T>()),
        height_(low.size(2)),
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

  const Places<T>& locate(const Mover<scalar_t, T>& mover, const Map<scalar_t>& offset, int64_t group,
                          const Line& line) {
    T *dx = offsets_.get(), *dy = dx + kLine;
    for (int64_t p = 0; p < points_; ++p) {
      const int64_t channel = (group * points_ + p) * 2;
      mover.load(offset, channel, line, dx);
      mover.load(offset, channel + 1, line, dy);
      kernels_.locate(dx, dy, cell_x_.data() + line.x, static_cast<T>(cell_of(line.y, size_, height_)), line.size,
                      height_, width_, p, places_);
    }
    return places_;
  }

 private:
  const PointKernels<T>& kernels_;
  int64_t height_, width_, size_, points_;
  std::vector<T> cell_x_;
  Buffer<int32_t> first_;
  Buffer<T> numbers_, offsets_;
  Places<T> places_;
};

// Numbers of the points of a group, a map (N, groups * points, H, W) in the type of the sums, contiguous.
template <typename T>
struct PointMap {
  PointMap(const at::Tensor& x, int64_t groups)
      : data(const_cast<T*>(x.const_data_ptr<T>())),
        points(x.size(1) / groups),
        channels(x.size(1)),
        plane(x.size(2) * x.size(3)),
        width(x.size(3)) {}
  T* at(int64_t n, int64_t group, int64_t p, const Line& line) const {
    return data + (n * channels + group * points + p) * plane + line.y * width + line.x;
  }
  void load(int64_t n, int64_t group, const Line& line, T* out) const {
    for (int64_t p = 0; p < points; ++p) std::copy_n(at(n, group, p, line), line.size, out + p * kLine);
  }
  void store(const T* in, int64_t n, int64_t group, const Line& line) const {
    for (int64_t p = 0; p < points; ++p) std::copy_n(in + p * kLine, line.size, at(n, group, p, line));
  }

  T* data;
  int64_t points, channels, plane, width;
};

// One image of a low-resolution map as a table for each group.
template <typename scalar_t, typename T>
class Tables {
 public:
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
      Mover<scalar_t, T> mover(channels_);
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

// For every point the product of `x` (N, C, H, W) with the sample of `low` (N, C, h, w) into `scores`, and weights
// times its derivative by the offset into `grad_offset`; each where it is defined.
template <typename scalar_t, typename T>
void correlate(const at::Tensor& x, const at::Tensor& low, const at::Tensor& offset, int64_t groups,
               const at::Tensor& scores, const at::Tensor& weights, const at::Tensor& grad_offset) {
  const PointKernels<T>& kernels = point_kernels<T>();
  const int64_t channels = low.size(1) / groups, points = offset.size(1) / (2 * groups), room = points * kLine;
  const bool moves = grad_offset.defined();
  const Lines lines(offset);
  Tables<scalar_t, T> tables(low, groups);
  for (int64_t n = 0; n < x.size(0); ++n) {
    tables.load(n);
    at::parallel_for(0, lines.count(), 1, [&](int64_t begin, int64_t end) {
      const int64_t stride = round_up(channels, kLanes);
      Mover<scalar_t, T> mover(channels);
      Points<scalar_t, T> located(offset, low, groups);
      Buffer<T> vectors(kLine * stride), products(room), moves_x(room), moves_y(room), weight(room);
      const Map<scalar_t> map(x, n), offset_map(offset, n);
      for (int64_t i = begin; i < end; ++i) {
        const Line line = lines[i];
        for (int64_t group = 0; group < groups; ++group) {
          const Places<T>& places = located.locate(mover, offset_map, group, line);
          mover.load(map, group * channels, channels, line, vectors.get(), stride);
          kernels.correlate(vectors.get(), stride, tables[group], places, line.size, products.get(),
                            moves ? moves_x.get() : nullptr, moves_y.get());
          if (scores.defined()) PointMap<T>(scores, groups).store(products.get(), n, group, line);
          if (!moves) continue;
          PointMap<T>(weights, groups).load(n, group, line, weight.get());
          const Map<scalar_t> grad_map(grad_offset, n);
          for (int64_t p = 0; p < points; ++p)
            for (int axis = 0; axis < 2; ++axis) {
              T* move = (axis == 0 ? moves_x : moves_y).get() + p * kLine;
              for (int64_t j = 0; j < line.size; ++j) move[j] *= weight.get()[p * kLine + j];
              mover.store(move, grad_map, (group * points + p) * 2 + axis, line);
            }
        }
      }
    });
  }
}

// out (N, C, H, W) = sum over points of weights * samples of `low` (N, C, h, w)
template <typename scalar_t, typename T>
void assemble(const at::Tensor& weights, const at::Tensor& low, const at::Tensor& offset, int64_t groups,
              const at::Tensor& out) {
  const PointKernels<T>& kernels = point_kernels<T>();
  const int64_t channels = low.size(1) / groups;
  const Lines lines(offset);
  Tables<scalar_t, T> tables(low, groups);
  for (int64_t n = 0; n < out.size(0); ++n) {
    tables.load(n);
    at::parallel_for(0, lines.count(), 1, [&](int64_t begin, int64_t end) {
      const int64_t stride = round_up(channels, kLanes);
      Mover<scalar_t, T> mover(channels);
      Points<scalar_t, T> located(offset, low, groups);
      Buffer<T> vectors(kLine * stride), weight(weights.size(1) / groups * kLine);
      const Map<scalar_t> map(out, n), offset_map(offset, n);
      for (int64_t i = begin; i < end; ++i) {
        const Line line = lines[i];
        for (int64_t group = 0; group < groups; ++group) {
          const Places<T>& places = located.locate(mover, offset_map, group, line);
          PointMap<T>(weights, groups).load(n, group, line, weight.get());
          kernels.assemble(weight.get(), tables[group], places, line.size, vectors.get(), stride);
          mover.store(vectors.get(), stride, map, group * channels, channels, line);
        }
      }
    });
  }
}

// The transpose of assemble: grad (N, C, h, w) from vectors `x` (N, C, H, W).
template <typename scalar_t, typename T>
void spread(const at::Tensor& weights, const at::Tensor& x, const at::Tensor& offset, int64_t groups,
            const at::Tensor& grad) {
  const PointKernels<T>& kernels = point_kernels<T>();
  const int64_t per_group = grad.size(1) / groups, blocks = (per_group + kSpreadChannels - 1) / kSpreadChannels;
  const int64_t height = grad.size(2), width = grad.size(3);
  const Lines lines(offset);
  at::parallel_for(0, grad.size(0) * groups * blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t most = std::min(per_group, kSpreadChannels), stride = round_up(most, kLanes);
    const int64_t line_rows = width + 3, rows = (height + 3) * line_rows;
    Mover<scalar_t, T> mover(most);
    Points<scalar_t, T> located(offset, grad, groups);
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
        PointMap<T>(weights, groups).load(n, group, line, weight.get());
        kernels.spread(weight.get(), vectors.get(), stride, table, places, line.size);
      }
      for (int64_t y = 0; y < height; ++y)
        for (int64_t at = 0; at < width; at += kLine)
          mover.store(sums.get() + ((y + 1) * line_rows + at + 1) * stride, stride, grad_map, first, channels,
                      {y, at, std::min(kLine, width - at)});
    }
  });
}

at::Tensor deformable_scores_cpu(const at::Tensor& query, const at::Tensor& key, const at::Tensor& offset,
                                 int64_t groups) {
  check_deformable_scores(query, key, offset, groups);
  const at::Tensor scores = room_for_scores(offset);
  if (scores.numel() == 0) return scores;
  check_not_empty(key, "key", query.size(2), query.size(3));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "deformable_scores_cpu", [&] {
    correlate<scalar_t, accumulate_t<scalar_t>>(query, key, offset, groups, scores, {}, {});
  });
  return scores;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> deformable_scores_backward_cpu(const at::Tensor& grad,
                                                                              const at::Tensor& query,
                                                                              const at::Tensor& key,
                                                                              const at::Tensor& offset, int64_t groups,
                                                                              std::array<bool, 3> needs_grad) {
  check_deformable_scores(query, key, offset, groups);
  check_point_map(grad, offset, "grad");
  const Inputs<3> inputs{&query, &key, &offset};
  Gradients<3> grads = make_gradients(inputs, needs_grad);
  if (grad.numel() == 0) {
    make_zero(grads);
  } else {
    const at::Tensor weights = grad.contiguous();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "deformable_scores_backward_cpu",
                                    [&] {
                                      using T = accumulate_t<scalar_t>;
                                      if (needs_grad[0]) assemble<scalar_t, T>(weights, key, offset, groups, grads[0]);
                                      if (needs_grad[1]) spread<scalar_t, T>(weights, query, offset, groups, grads[1]);
                                      if (needs_grad[2])
                                        correlate<scalar_t, T>(query, key, offset, groups, {}, weights, grads[2]);
                                    });
  }
  return as_tuple(grads, inputs);
}

at::Tensor deformable_assembly_cpu(const at::Tensor& feature, const at::Tensor& kernels, const at::Tensor& offset,
                                   int64_t groups) {
  check_deformable_assembly(feature, kernels, offset, groups);
  const at::Tensor output = at::empty({feature.size(0), feature.size(1), offset.size(2), offset.size(3)},
                                      feature.options(), feature.suggest_memory_format());
  if (output.numel() == 0) return output;
  check_not_empty(feature, "feature", offset.size(2), offset.size(3));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feature.scalar_type(), "deformable_assembly_cpu", [&] {
    assemble<scalar_t, accumulate_t<scalar_t>>(kernels.contiguous(), feature, offset, groups, output);
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> deformable_assembly_backward_cpu(
    const at::Tensor& grad, const at::Tensor& feature, const at::Tensor& kernels, const at::Tensor& offset,
    int64_t groups, std::array<bool, 3> needs_grad) {
  check_deformable_assembly(feature, kernels, offset, groups);
  check_map(feature, "feature", grad, "grad");
  check_size(offset, grad, "grad");
  const Inputs<3> inputs{&feature, &kernels, &offset};
  Gradients<3> grads = make_gradients(inputs, needs_grad);
  if (grad.numel() == 0) {
    make_zero(grads);
  } else {
    const at::Tensor weights = kernels.contiguous();
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, feature.scalar_type(), "deformable_assembly_backward_cpu", [&] {
          using T = accumulate_t<scalar_t>;
          if (needs_grad[0]) spread<scalar_t, T>(weights, grad, offset, groups, grads[0]);
          // correlate writes contiguous scores; their gradient has the layout of the kernels
          const at::Tensor scores = !needs_grad[1] || grads[1].is_contiguous() ? grads[1] : room_for_scores(offset);
          if (needs_grad[1] || needs_grad[2])
            correlate<scalar_t, T>(grad, feature, offset, groups, scores, weights, grads[2]);
          if (needs_grad[1] && !scores.is_same(grads[1])) grads[1].copy_(scores);
        });
  }
  return as_tuple(grads, inputs);
}

}  // namespace

TORCH_LIBRARY_IMPL(sapa_mm, CPU, m) {
  m.impl("deformable_scores", &deformable_scores_cpu);
  m.impl("_deformable_scores_backward", &deformable_scores_backward_cpu);
  m.impl("deformable_assembly", &deformable_assembly_cpu);
  m.impl("_deformable_assembly_backward", &deformable_assembly_backward_cpu);
}

}  // namespace sapa_mm
