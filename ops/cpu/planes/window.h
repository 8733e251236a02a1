// SPDX-License-Identifier: Apache-2.0
// The three loops over windows that point affiliation and feature assembly are made of.
//
// The positions that share a cell share its window. So work is laid out by cell: planes hold, for one row of cells, up
// to kMaxSlots positions of each cell ("slots"), each channel a vector along the row. The window of a cell is then a
// shifted load of a padded row of keys, and nothing is gathered. `width`, the columns that a loop computes, is a
// multiple of kLanes.
#pragma once

#include "../../window.h"
#include "packing.h"

namespace sapa_mm {

// rows[ky][channel * stride + column + kx]: padded rows of the low-resolution map, or of sums, around a row of cells.
template <typename T>
struct MutableWindow {
  T* rows[kMaxKernelSize];
  int64_t stride;
  int kernel_size;

  MutableWindow from_channel(int64_t channel) const {
    MutableWindow window = *this;
    for (int ky = 0; ky < kernel_size; ++ky) window.rows[ky] += channel * stride;
    return window;
  }
};
template <typename T>
using Window = MutableWindow<const T>;

template <typename T>
struct WindowLoops {
  // scores[(slot * K*K + tap) * score_stride + column] (+)= sum over channels of
  //     queries[(slot * channels + channel) * query_stride + column] * window(channel, column, tap)
  void (*correlate)(const T* queries, int64_t query_stride, const Window<T>& keys, int64_t channels, int slots,
                    int64_t width, T* scores, int64_t score_stride, bool accumulate);
  // out[(slot * channels + channel) * out_stride + column] = sum over taps of
  //     weights[(slot * K*K + tap) * weight_stride + column] * window(channel, column, tap)
  void (*assemble)(const T* weights, int64_t weight_stride, const Window<T>& values, int64_t channels, int slots,
                   int64_t width, T* out, int64_t out_stride);
  // into.rows[ky][channel * stride + column] += sum over slots and kx of weights[slot, tap, column - kx] *
  //     grads[slot, channel, column - kx]; weights and grads are readable kernel_size - 1 columns to the left of 0
  void (*spread)(const T* weights, int64_t weight_stride, const T* grads, int64_t grad_stride,
                 const MutableWindow<T>& into, int64_t channels, int slots, int64_t width);

  template <Isa isa>
  static WindowLoops make();
};

}  // namespace sapa_mm
