// SPDX-License-Identifier: Apache-2.0
// The Python module is empty: loading it registers the operators, and torch.ops finds them. So one library, built
// against the limited API, serves every Python version.
#include <Python.h>
#include <torch/library.h>

#include "cpu/rows.h"

// Instruction set of the CPU operators on this machine: "avx512", "avx2" or "plain".
TORCH_LIBRARY_FRAGMENT(sapa_mm, m) {
  m.def("cpu_capability() -> str", [] { return std::string(sapa_mm::cpu_capability()); });
}

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
