// SPDX-License-Identifier: Apache-2.0
// All loops, for the files of the instruction sets, which define kIsa and kVectorBytes before. Everything but the
// tables is local to such a file, so that the same names do not meet.

// clang-format off: each stands on those before
#include "vectors.inl"
#include "exp.inl"
#include "conversion.inl"
#include "transpose.inl"
#include "../planes/packing.inl"
#include "../planes/window.inl"
#include "../planes/samples.inl"
#include "../point_affiliation.inl"
#include "../channel_norm.inl"
#include "../norm_projection.inl"
// clang-format on
