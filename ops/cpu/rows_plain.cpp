// SPDX-License-Identifier: Apache-2.0
// The loops with the vectors that every processor of the architecture has (SSE2, NEON).
#include "norms.h"
#include "points.h"
#include "rows.h"

#define SAPA_MM_ISA plain
#define SAPA_MM_VECTOR_BYTES 16
// clang-format off: the others stand on the first
#include "rows.inl"
#include "norms.inl"
#include "points.inl"
// clang-format on
