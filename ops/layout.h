// SPDX-License-Identifier: Apache-2.0
// The memory layouts that the operators know, and which one a result has.
//
// Every map is dense in one of two layouts: channels_last or contiguous NCHW. The layout of a map x is what
// x.suggest_memory_format() says: channels_last exactly if its strides grow in that order, so a channel slice of a
// channels_last map is channels_last too. What is not dense is copied to its layout first.
//
// A result has the layout of the map that it follows: an output that of the map it is mixed from, a gradient that of
// its input. Scores and what is saved for the backward follow no map and are contiguous. The norms know contiguous NCHW
// only: they copy everything else and return contiguous outputs and gradients.
#pragma once

#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

namespace sapa_mm {

inline at::MemoryFormat layout_of(const at::Tensor& x) {
  return x.suggest_memory_format();
}

inline at::Tensor dense(const at::Tensor& x) {
  return x.contiguous(layout_of(x));
}

// For an output of this shape that follows x.
inline at::Tensor empty_following(const at::Tensor& x, at::IntArrayRef shape) {
  return at::empty(shape, x.options(), layout_of(x));
}

// For numbers in the dtype of the sums over x.
inline at::Tensor empty_sums(const at::Tensor& x, at::IntArrayRef shape) {
  return at::empty(shape, x.options().dtype(at::toOpMathType(x.scalar_type())));
}

template <size_t N>
using Gradients = std::array<at::Tensor, N>;

template <size_t N>
using Inputs = std::array<const at::Tensor*, N>;

// Room for the gradients of `inputs` that are needed; the others stay undefined.
template <size_t N>
Gradients<N> make_gradients(const Inputs<N>& inputs, const std::array<bool, N>& needed) {
  Gradients<N> grads;
  for (size_t i = 0; i < N; ++i)
    if (needed[i]) grads[i] = empty_following(*inputs[i], inputs[i]->sizes());
  return grads;
}

// As the schemas return them: zero where there was nothing to compute, empty where not needed.
template <size_t N>
auto as_tuple(Gradients<N>& grads, const Inputs<N>& inputs, bool computed) {
  for (size_t i = 0; i < N; ++i) {
    if (!grads[i].defined()) grads[i] = at::empty({0}, inputs[i]->options());
    if (!computed) grads[i].zero_();
  }
  return std::tuple_cat(grads);
}

}  // namespace sapa_mm
