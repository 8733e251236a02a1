// SPDX-License-Identifier: Apache-2.0
// The three loops that all CPU operators are made of, on rows of packed planes, and their run-time dispatch.
//
// The positions that share a cell share its window. So work is laid out by cell: a `Row` holds, for one row of cells,
// the queries of up to kMaxSlots positions of each cell ("slots"), each channel a vector along the row. The window of
// a cell is then a shifted load of a padded row of keys, and nothing is gathered.
//
// `width`, the columns that a loop computes, is a multiple of kLanes.
//
// T is the type that sums are kept in: float for float, half and bfloat16, double for double.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../normalization.h"

namespace sapa_mm {

constexpr int kMaxKernelSize = 15;
constexpr int kMaxSlots = 4;
constexpr int kLanes = 16;  // columns are padded to a multiple of the widest vector of float

template <typename T>
struct Window {
  const T* rows[kMaxKernelSize];  // rows[ky][channel * stride + column + kx]: padded rows of the low-resolution map
  int64_t stride;
  int kernel_size;

  Window from_channel(int64_t channel) const {
    Window window = *this;
    for (int ky = 0; ky < kernel_size; ++ky) window.rows[ky] += channel * stride;
    return window;
  }
};

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
struct RowKernels {
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
  // In place from scores to weights, for one slot; normalizer[column] becomes what weights_again() needs.
  void (*normalize)(T* scores, int64_t stride, int taps, int64_t width, Normalization normalization, T* normalizer);
  // In place from scores to weights, given the normalizer.
  void (*weights_again)(T* scores, int64_t stride, int taps, int64_t width, Normalization normalization,
                        const T* normalizer);
  // In place from the gradients of weights to the gradients of scores.
  void (*normalize_backward)(const T* weights, const T* scores, T* grads, int64_t stride, int taps, int64_t width,
                             Normalization normalization, const T* normalizer);
};

// The bits of the two narrow types.
enum class HalfBits : uint16_t {};
enum class BFloat16Bits : uint16_t {};

// Between rows of tensors, whose elements are Stored, and planes of T.
template <typename T, typename Stored>
struct PackKernels {
  void (*widen)(const Stored* in, T* out, int64_t size);
  void (*narrow)(const T* in, Stored* out, int64_t size);
  // The same past the cache where that can be done, for lines that are far apart and not read again soon: it spares
  // reading them before they are written. To be followed by fence() before another thread may look.
  void (*stream)(const T* in, Stored* out, int64_t size);
  void (*fence)();
  // Positions 2i and 2i + 1, for i < size.
  void (*split)(const Stored* in, T* even, T* odd, int64_t size);
  void (*join)(const T* even, const T* odd, Stored* out, int64_t size);
  // out[channel * stride + i] = columns[i][channel], for i < size, and back.
  void (*gather_columns)(const Stored* const* columns, int64_t size, int64_t channels, T* out, int64_t stride);
  void (*scatter_columns)(const T* in, int64_t stride, int64_t size, int64_t channels, Stored* const* columns);
  // Of one cell, with the channels of a position side by side: out[slot][channel] = sum over i < count of
  // weights[slot * slot_stride + taps[i] * tap_stride] * values[i][channel]
  void (*assemble_cell)(const T* weights, int64_t slot_stride, int64_t tap_stride, const int* taps,
                        const Stored* const* values, int count, int64_t channels, int slots, Stored* const* out);
};

// The loops compiled for the widest vectors that this processor has.
template <typename T>
const RowKernels<T>& row_kernels();
template <typename T, typename Stored>
const PackKernels<T, Stored>& pack_kernels();

// Name of what was chosen: "avx512", "avx2" or "plain".
const char* cpu_capability();

}  // namespace sapa_mm
