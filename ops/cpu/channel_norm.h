// SPDX-License-Identifier: Apache-2.0
// The loops of the norm over channels, on a block of positions as planes[channel * kBlock + position].
#pragma once

#include "planes/packing.h"

namespace sapa_mm {

constexpr int64_t kBlock = 128;  // positions; a plane is half a kilobyte of float, a block of 256 channels stays in L2

template <typename T>
struct ChannelLoops {
  // In place: zero mean and unit variance over the channels of every position.
  void (*normalize)(T* planes, int64_t channels, T eps, T* mean, T* rstd);
  // out = plane * scale + shift
  void (*affine)(const T* plane, T scale, T shift, T* out);
  // planes from x to (x - mean) * rstd, as the forward had them.
  void (*renormalize)(T* planes, int64_t channels, const T* mean, const T* rstd);
  // grads from the gradient of the normalised planes times `weight` to that of x. weight may be null.
  void (*normalize_backward)(const T* planes, T* grads, int64_t channels, const T* rstd, const T* weight);
  // Lane by lane, sums[channel * kLanes] += grads * planes, or grads where planes is null.
  void (*add_products)(const T* grads, const T* planes, int64_t channels, T* sums);

  template <Isa isa>
  static ChannelLoops make();
};

}  // namespace sapa_mm
