// SPDX-License-Identifier: Apache-2.0
// The loops are compiled once for each instruction set, and the widest that this processor has is chosen at run time.
//
// Loops that belong together are a table of function pointers, which declares
//     template <Isa isa> static Table make();
// The .inl file that holds the loops defines make, and each file of an instruction set instantiates it.
#pragma once

namespace sapa_mm {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// ATEN_CPU_CAPABILITY, torch's own variable ("default", "avx2", "avx512"), lowers the choice.
Isa chosen_isa();

template <typename Table>
const Table& loops() {
  static const Table table = [] {
#if defined(__x86_64__)
    if (chosen_isa() == Isa::kAvx512) return Table::template make<Isa::kAvx512>();
    if (chosen_isa() == Isa::kAvx2) return Table::template make<Isa::kAvx2>();
#endif
    return Table::template make<Isa::kBaseline>();
  }();
  return table;
}

}  // namespace sapa_mm
