// SPDX-License-Identifier: Apache-2.0
// The matrix product of the projection after a norm.
#pragma once

#include "planes/packing.h"

namespace sapa_mm {

constexpr int64_t kPanel = 8;  // rows of a matrix that `multiply` takes at a time

template <typename T>
struct MatrixLoops {
  // out[row * out_stride + i] (+)= sum over k < depth of panel[k * kPanel + row] * in[k * in_stride + i], for the rows
  // of one panel and i < width, a multiple of kLanes.
  void (*multiply)(const T* panel, int64_t depth, const T* in, int64_t in_stride, int64_t width, T* out,
                   int64_t out_stride, bool accumulate);

  template <Isa isa>
  static MatrixLoops make();
};

}  // namespace sapa_mm
