// SPDX-License-Identifier: Apache-2.0
// The Python module is empty: loading it registers the operators, and torch.ops finds them. So one library, built
// against the limited API, serves every Python version.
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
