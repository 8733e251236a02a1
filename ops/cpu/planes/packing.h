// SPDX-License-Identifier: Apache-2.0
// The loops between rows of tensors and planes of T, the type that sums are kept in: float for float, half and
// bfloat16, double for double.
#pragma once

#include <cstdint>

#include "../simd/dispatch.h"

namespace sapa_mm {

constexpr int kLanes = 16;  // columns are padded to a multiple of the widest vector of float
constexpr int kMaxSlots = 4;

// The bits of the two narrow types.
enum class HalfBits : uint16_t {};
enum class BFloat16Bits : uint16_t {};

template <typename T, typename Stored>
struct PackLoops {
  void (*widen)(const Stored* in, T* out, int64_t size);
  void (*narrow)(const T* in, Stored* out, int64_t size);
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

  template <Isa isa>
  static PackLoops make();
};

}  // namespace sapa_mm
