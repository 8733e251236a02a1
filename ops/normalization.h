// SPDX-License-Identifier: Apache-2.0
// How scores become weights, for every backend: sapa_mm.ops.checks.NORMALIZATIONS by number.
#pragma once

#include <cstdint>

namespace sapa_mm {

enum class Normalization : int64_t { kSoftmax = 0, kRelu = 1, kSigmoid = 2, kSoftplus = 3 };

constexpr double kEpsilon = 1e-6;  // sapa_mm.ops.reference.EPS, added to the sum by all but softmax

}  // namespace sapa_mm
