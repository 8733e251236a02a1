// SPDX-License-Identifier: Apache-2.0
// The loops with AVX-512 vectors. All other headers stand before the target pragma, so that no inline function of
// theirs is compiled for a processor that the rest of the library does not ask for.
#include "loops.h"

#if defined(__x86_64__)

namespace sapa_mm {
namespace {
constexpr Isa kIsa = Isa::kAvx512;
constexpr int kVectorBytes = 64;
}  // namespace
}  // namespace sapa_mm

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#include "loops.inl"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#include "loops.inl"
#pragma GCC pop_options
#endif

#endif  // __x86_64__
