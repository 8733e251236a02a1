// SPDX-License-Identifier: Apache-2.0
// The loops of the norm over channels and of the projection after it, on a block of positions as
// planes[channel * kBlock + position], and their run-time dispatch.
#pragma once

#include "rows.h"

namespace sapa_mm {

constexpr int64_t kPanel = 8;    // rows of a matrix that `multiply` takes at a time
constexpr int64_t kBlock = 128;  // positions; a plane is half a kilobyte of float, a block of 256 channels stays in L2

template <typename T>
struct NormKernels {
  // In place: zero mean and unit variance over the channels of every position.
  void (*normalize)(T* planes, int64_t channels, T eps, T* mean, T* rstd);
  // out = plane * scale + shift
  void (*affine)(const T* plane, T scale, T shift, T* out);
  // planes from x to (x - mean) * rstd, as the forward had them.
  void (*normalize_again)(T* planes, int64_t channels, const T* mean, const T* rstd);
  // grads from the gradient of the normalised planes times `weight` to that of x. weight may be null.
  void (*backward)(const T* planes, T* grads, int64_t channels, const T* rstd, const T* weight);
  // Lane by lane, sums[channel * kLanes] += grads * planes, or grads where planes is null.
  void (*add_products)(const T* grads, const T* planes, int64_t channels, T* sums);
  // out[row * out_stride + i] (+)= sum over k < depth of panel[k * kPanel + row] * in[k * in_stride + i], for the rows
  // of one panel and i < width, a multiple of kLanes.
  void (*multiply)(const T* panel, int64_t depth, const T* in, int64_t in_stride, int64_t width, T* out,
                   int64_t out_stride, bool accumulate);
};

template <typename T>
const NormKernels<T>& norm_kernels();

}  // namespace sapa_mm
