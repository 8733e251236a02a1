// SPDX-License-Identifier: Apache-2.0
// All tables of loops, for the files of the instruction sets.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../channel_norm.h"
#include "../norm_projection.h"
#include "../planes/packing.h"
#include "../planes/samples.h"
#include "../planes/window.h"
#include "../point_affiliation.h"
