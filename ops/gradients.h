// SPDX-License-Identifier: Apache-2.0
// What the backward of every operator does with gradients that are not needed.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>

#include <array>

namespace sapa_mm {

template <size_t N>
using Gradients = std::array<at::Tensor, N>;

template <size_t N>
using Inputs = std::array<const at::Tensor*, N>;

// Room for the gradients of `inputs`, in their memory formats; undefined where not needed.
template <size_t N>
Gradients<N> make_gradients(const Inputs<N>& inputs, const std::array<bool, N>& needed) {
  Gradients<N> grads;
  for (size_t i = 0; i < N; ++i)
    if (needed[i]) grads[i] = at::empty(inputs[i]->sizes(), inputs[i]->options(), inputs[i]->suggest_memory_format());
  return grads;
}

// Of an output without positions.
template <size_t N>
void make_zero(Gradients<N>& grads) {
  for (at::Tensor& grad : grads)
    if (grad.defined()) grad.zero_();
}

// As the schemas return them: empty where not needed.
template <size_t N>
auto as_tuple(Gradients<N>& grads, const Inputs<N>& inputs) {
  for (size_t i = 0; i < N; ++i)
    if (!grads[i].defined()) grads[i] = at::empty({0}, inputs[i]->options());
  return std::tuple_cat(grads);
}

}  // namespace sapa_mm
