// SPDX-License-Identifier: Apache-2.0
// The loops between scores and weights, on planes[tap * stride + column] of one slot.
#pragma once

#include "../normalization.h"
#include "simd/dispatch.h"

namespace sapa_mm {

template <typename T>
struct NormalizationLoops {
  // In place from scores to weights; normalizer[column] becomes what recompute_weights needs.
  void (*normalize)(T* scores, int64_t stride, int taps, int64_t width, Normalization normalization, T* normalizer);
  // In place from scores to weights, given the normalizer.
  void (*recompute_weights)(T* scores, int64_t stride, int taps, int64_t width, Normalization normalization,
                            const T* normalizer);
  // In place from the gradients of weights to the gradients of scores.
  void (*normalize_backward)(const T* weights, const T* scores, T* grads, int64_t stride, int taps, int64_t width,
                             Normalization normalization, const T* normalizer);

  template <Isa isa>
  static NormalizationLoops make();
};

}  // namespace sapa_mm
