// SPDX-License-Identifier: Apache-2.0
// The loops with the vectors that every processor of the architecture has (SSE2, NEON).
#include "rows.h"

#define SAPA_MM_ISA plain
#define SAPA_MM_VECTOR_BYTES 16
#include "rows.inl"
