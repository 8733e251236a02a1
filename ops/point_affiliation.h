// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Dispatch.h>

#include "checks.h"
#include "layout.h"
#include "normalization.h"

namespace sapa_mm {

inline void check_point_affiliation(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                    int64_t kernel_size, int64_t normalization, int64_t border) {
  check_kernel_size(kernel_size);
  TORCH_CHECK_VALUE(normalization >= 0 && normalization < 4, "normalization must be 0 to 3, got ", normalization);
  check_query_and_key(query, key);
  check_map(query, "query", value, "value");
  check_size(key, "key", value, "value");
  check_border(key, "key", kernel_size, border);
}

// The operators, of which a Backend computes forward<scalar_t> and backward<scalar_t>: of dense maps, into results that
// have positions.
template <typename Backend>
struct PointAffiliation {
  static std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value, int64_t kernel_size, int64_t normalization,
                                                    int64_t border) {
    check_point_affiliation(query, key, value, kernel_size, normalization, border);
    const int64_t N = query.size(0), H = query.size(2), W = query.size(3);
    const at::Tensor output = empty_following(value, {N, value.size(1), H, W});
    const at::Tensor normalizer = empty_sums(query, {N, H, W});
    if (N * H * W == 0) return {output, normalizer};
    check_not_empty(key, "key", H, W);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "point_affiliation", [&] {
      Backend::template forward<scalar_t>(dense(query), dense(key), dense(value), static_cast<int>(kernel_size),
                                          static_cast<Normalization>(normalization), static_cast<Border>(border),
                                          output, normalizer);
    });
    return {output, normalizer};
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& query,
                                                                 const at::Tensor& key, const at::Tensor& value,
                                                                 const at::Tensor& normalizer, int64_t kernel_size,
                                                                 int64_t normalization, int64_t border,
                                                                 std::array<bool, 3> needs_grad) {
    check_point_affiliation(query, key, value, kernel_size, normalization, border);
    const int64_t N = query.size(0), H = query.size(2), W = query.size(3);
    check_tensor(query, "query", grad_output, "grad", {N, value.size(1), H, W}, query.scalar_type());
    check_tensor(query, "query", normalizer, "normalizer", {N, H, W}, at::toOpMathType(query.scalar_type()));
    const Inputs<3> inputs{&query, &key, &value};
    Gradients<3> grads = make_gradients(inputs, needs_grad);
    const bool computes = N * H * W > 0;
    if (computes) {
      check_not_empty(key, "key", H, W);
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "point_affiliation_backward", [&] {
        Backend::template backward<scalar_t>(dense(grad_output), dense(query), dense(key), dense(value),
                                             normalizer.contiguous(), static_cast<int>(kernel_size),
                                             static_cast<Normalization>(normalization), static_cast<Border>(border),
                                             grads[0], grads[1], grads[2]);
      });
    }
    return as_tuple(grads, inputs, computes);
  }
};

}  // namespace sapa_mm
