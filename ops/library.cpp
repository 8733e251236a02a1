// SPDX-License-Identifier: Apache-2.0
// The Python module is empty: loading it registers the operators, and torch.ops finds them. So one library, built
// against the limited API, serves every Python version.
#include <Python.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/simd/dispatch.h"

#define TO_STRING(x) #x
#define STRING_OF(x) TO_STRING(x)

// cpu_capability: instruction set of the CPU operators on this machine, "avx512", "avx2" or "baseline".
// built_for: the torch whose headers were compiled in, such as "2.13"; its C++ classes may have another layout in the
// next.
TORCH_LIBRARY_FRAGMENT(sapa_mm, m) {
  m.def("cpu_capability() -> str", [] {
    const sapa_mm::Isa isa = sapa_mm::chosen_isa();
    return std::string(isa == sapa_mm::Isa::kAvx512 ? "avx512" : isa == sapa_mm::Isa::kAvx2 ? "avx2" : "baseline");
  });
  m.def("built_for() -> str",
        [] { return std::string(STRING_OF(TORCH_VERSION_MAJOR) "." STRING_OF(TORCH_VERSION_MINOR)); });
}

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
