// SPDX-License-Identifier: Apache-2.0
// The loops with AVX2 vectors. The standard headers stand before the target pragma, so that no inline function of
// theirs is compiled for a processor that the rest of the library does not ask for.
#include "norms.h"
#include "points.h"
#include "rows.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define SAPA_MM_ISA avx2
#define SAPA_MM_VECTOR_BYTES 32
// clang-format off: the others stand on the first
#include "rows.inl"
#include "norms.inl"
#include "points.inl"
// clang-format on

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
