// SPDX-License-Identifier: Apache-2.0
// The loops with AVX-512 vectors. The standard headers stand before the target pragma, so that no inline function of
// theirs is compiled for a processor that the rest of the library does not ask for.
#include "norms.h"
#include "points.h"
#include "rows.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif

#define SAPA_MM_ISA avx512
#define SAPA_MM_VECTOR_BYTES 64
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
