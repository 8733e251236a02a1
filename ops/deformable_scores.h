// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Dispatch.h>

#include "checks.h"
#include "layout.h"

namespace sapa_mm {

inline void check_deformable_scores(const at::Tensor& query, const at::Tensor& key, const at::Tensor& offset,
                                    int64_t groups) {
  check_query_and_key(query, key);
  check_offset(query, "query", offset, groups);
  check_size(query, "query", offset, "offset");
}

// The operators, of which a Backend computes forward<scalar_t> and backward<scalar_t>: of dense maps and contiguous
// gradients of scores, into results that have elements.
template <typename Backend>
struct DeformableScores {
  static at::Tensor forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& offset, int64_t groups) {
    check_deformable_scores(query, key, offset, groups);
    const at::Tensor scores = empty_sums(offset, {offset.size(0), offset.size(1) / 2, offset.size(2), offset.size(3)});
    if (scores.numel() == 0) return scores;
    check_not_empty(key, "key", query.size(2), query.size(3));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "deformable_scores", [&] {
      Backend::template forward<scalar_t>(dense(query), dense(key), dense(offset), groups, scores);
    });
    return scores;
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_scores, const at::Tensor& query,
                                                                 const at::Tensor& key, const at::Tensor& offset,
                                                                 int64_t groups, std::array<bool, 3> needs_grad) {
    check_deformable_scores(query, key, offset, groups);
    check_tensor(offset, "offset", grad_scores, "grad",
                 {offset.size(0), offset.size(1) / 2, offset.size(2), offset.size(3)},
                 at::toOpMathType(offset.scalar_type()));
    const Inputs<3> inputs{&query, &key, &offset};
    Gradients<3> grads = make_gradients(inputs, needs_grad);
    const bool computes = grad_scores.numel() > 0;
    if (computes) {
      check_not_empty(key, "key", query.size(2), query.size(3));
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "deformable_scores_backward", [&] {
        Backend::template backward<scalar_t>(grad_scores.contiguous(), dense(query), dense(key), dense(offset), groups,
                                             grads[0], grads[1], grads[2]);
      });
    }
    return as_tuple(grads, inputs, computes);
  }
};

}  // namespace sapa_mm
