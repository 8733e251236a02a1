// SPDX-License-Identifier: Apache-2.0
// The loops with AVX2 vectors. All other headers stand before the target pragma, so that no inline function of theirs
// is compiled for a processor that the rest of the library does not ask for.
#include "loops.h"

#if defined(__x86_64__)

namespace sapa_mm {
namespace {
constexpr Isa kIsa = Isa::kAvx2;
constexpr int kVectorBytes = 32;
}  // namespace
}  // namespace sapa_mm

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "loops.inl"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "loops.inl"
#pragma GCC pop_options
#endif

#endif  // __x86_64__
