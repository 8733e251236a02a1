// SPDX-License-Identifier: Apache-2.0
// The loops with the vectors that every processor of the architecture has (SSE2, NEON).
#include "loops.h"

namespace sapa_mm {
namespace {
constexpr Isa kIsa = Isa::kBaseline;
constexpr int kVectorBytes = 16;
}  // namespace
}  // namespace sapa_mm

#include "loops.inl"
