#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles every ops/cuda/*.cu for sm_80 and sm_90 with nvcc: proves that it compiles, not that it runs.
# Works beside a CPU build of torch too: its headers lack only the one that CMake generates, here an empty stand-in.
# OBJECTS=FOLDER keeps the objects there, for tools/dev/cuda_resources.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shopt -s nullglob
sources=(ops/cuda/*.cu)
if [ ${#sources[@]} -eq 0 ]; then echo 'check-cuda: no CUDA sources'; exit 0; fi
if ! command -v nvcc >/dev/null; then echo 'check-cuda: SKIPPED, no nvcc on this machine'; exit 0; fi

python=${PYTHON:-python3}
torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
objects=${OBJECTS:-$build}
mkdir -p "$objects"
stand_in=c10/cuda/impl/cuda_cmake_macros.h
if [ ! -e "$torch/include/$stand_in" ]; then
  mkdir -p "$build/$(dirname "$stand_in")"
  : >"$build/$stand_in"
fi
# torch's own flags, as its build of the extension uses them, and the C++ standard that its headers need
mapfile -t flags < <("$python" -c '
import torch
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS
major, minor = map(int, torch.__version__.split(".")[:2])
print(*COMMON_NVCC_FLAGS, "-std=c++20" if (major, minor) >= (2, 9) else "-std=c++17", sep="\n")')
for source in "${sources[@]}"; do
  begin=$SECONDS
  nvcc --threads 2 -c "$source" -o "$objects/$(basename "$source" .cu).o" -O3 "${flags[@]}" -Xcompiler -fPIC -Iops \
    -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" -isystem "$build" \
    -DSAPA_MM_WITH_CUDA -DPy_LIMITED_API=0x030A0000 -DTORCH_EXTENSION_NAME=_C \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
  echo "check-cuda: $source compiles for sm_80 and sm_90 ($((SECONDS - begin)) s)"
done
