#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up a virtual environment with the tested versions of requirements/ and this package.
#
#   tools/setup_env.sh demo      torch, mmengine, mmcv without compiled ops (seconds), mmsegmentation
#   tools/setup_env.sh test      also mmdetection and the test tools, and mmcv with compiled ops
#   tools/setup_env.sh classic   as test, of the classic stack: the versions of requirements/classic/
#
# The first two share one environment: `test` replaces the mmcv of `demo`, and `demo` leaves the one of `test` alone.
# `classic` has its own, and a copy of the package instead of an editable one: the checkout holds the operators of one
# torch. Each step says how long it took; a step whose inputs have not changed is skipped. mmcv's ops are compiled once
# for a version of mmcv, torch and Python, and the wheel is kept outside the repository: pip's own cache knows neither
# torch's version nor whether the ops were built.
#
# Environment: PYTHON (python3), VENV (.venv, .venv-classic), MAX_JOBS (all cores), XDG_CACHE_HOME (~/.cache),
#              SAPA_MM_WITH_OPS, FORCE_CUDA, TORCH_CUDA_ARCH_LIST, DEBUG (see setup.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profile=${1:-}
case "$profile" in
  demo | test) versions=requirements venv=${VENV:-.venv} ;;
  classic) versions=requirements/classic venv=${VENV:-.venv-classic} ;;
  *) echo "usage: $0 demo|test|classic" >&2; exit 2 ;;
esac
python=${PYTHON:-python3}
stamps=$venv/sapa_mm-stamps
export MAX_JOBS=${MAX_JOBS:-$(nproc)} PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n== %s\n' "$*"; }
die() { printf '\nsetup: %s\n' "$*" >&2; exit 1; }
in_venv() { "$venv/bin/python" "$@"; }
# A pip that is set up with several places to look warns of each that lacks a package: a screen full of them.
pip_install() {
  local log=$stamps/pip.log
  in_venv -m pip install "$@" >"$log" 2>&1 || { tail -n 40 "$log" >&2; die "pip failed; the whole log: $log"; }
}
digest() { cat -- "$@" | sha256sum | cut -c1-16; }

# step NAME KEY TITLE COMMAND...: runs the command unless it has run with this key in this environment
step() {
  local name=$1 key=$2 title=$3 begin=$SECONDS
  shift 3
  if [ "$(cat "$stamps/$name" 2>/dev/null)" = "$key" ]; then
    printf '== %s: up to date\n' "$title"
    return
  fi
  say "$title"
  "$@"
  printf '%s\n' "$key" >"$stamps/$name"
  printf '   done in %d s\n' $((SECONDS - begin))
}

have_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null; }

check_python() {
  command -v "$python" >/dev/null || die "$python not found; on Debian or Ubuntu: sudo apt-get install python3 python3-venv python3-dev"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$python" --version) is too old: Python 3.10 or newer is needed (name one with PYTHON=...)"
  [ "$profile" != classic ] || "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))' ||
    die "$("$python" --version) is too new for torch 2.1: Python 3.10 or 3.11 is needed (name one with PYTHON=...)"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python has no venv module; on Debian or Ubuntu: sudo apt-get install python3-venv"
}

can_compile() {
  command -v "${CXX:-c++}" >/dev/null &&
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

check_compiler() {
  can_compile && return
  local advice='a C++ compiler or the Python headers are missing; on Debian or Ubuntu: sudo apt-get install g++ python3-dev'
  [ "$profile" = demo ] || die "$advice (mmcv's ops, which mmdetection needs, are compiled here)"
  say "$advice. Going on: the operators run in plain torch"
}

create_venv() {
  "$python" -m venv --clear "$venv"
  mkdir -p "$stamps"
}

install_torch() {
  local torch
  torch=$(grep '^torch==' "$versions/torch.txt")
  # Where pip is set up to find CPU builds, their local version (+cpu) would win over the registry's CUDA build.
  if have_gpu; then torch="$torch,!=${torch#torch==}+cpu"; fi
  pip_install "$torch"
}

# Prints "VERSION DEVICE": the device of mmcv's ops is cuda where a GPU, a CUDA torch and a toolkit meet.
torch_build() {
  in_venv - <<'PY'
import warnings
warnings.simplefilter('ignore')
import os, torch
from torch.utils.cpp_extension import CUDA_HOME
cuda = torch.cuda.is_available() and CUDA_HOME
archs = os.environ.get('TORCH_CUDA_ARCH_LIST') or (cuda and '.'.join(map(str, torch.cuda.get_device_capability())))
print(torch.__version__, 'cuda-' + archs.replace(';', '_').replace(' ', '_') if cuda else 'cpu')
PY
}

install_plain_mmcv() {
  # Build isolation keeps torch out of sight: no ops. No cache, or a wheel built otherwise elsewhere might come back.
  pip_install --no-deps --no-cache-dir -r "$versions/mmcv.txt"
}

install_mmcv_with_ops() {
  local folder=$1 device=$2 wheel begin=$SECONDS
  wheel=$(compgen -G "$folder/*.whl" | head -n 1 || true)
  if [ -n "$wheel" ]; then
    echo "   from $wheel"
  else
    echo "   compiling, which takes 10-15 minutes on 2 cores; the wheel is kept in $folder for next time"
    mkdir -p "$(dirname "$folder")"
    local build environment=(MMCV_WITH_OPS=1 FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=)
    build=$(mktemp -d "$folder.XXXXXX")
    if [ "$device" != cpu ]; then environment=(MMCV_WITH_OPS=1 FORCE_CUDA=1); fi
    while sleep 60 >/dev/null; do echo "   ... $(((SECONDS - begin) / 60)) min"; done & # a sign of life
    ticker=$!
    trap 'kill "$ticker" 2>/dev/null || true' EXIT
    env "${environment[@]}" "$venv/bin/python" -m pip wheel --no-deps --no-build-isolation --no-cache-dir \
      --wheel-dir "$build/wheel" -r "$versions/mmcv.txt" >"$build/log" 2>&1 ||
      { tail -n 40 "$build/log"; die "mmcv's ops did not compile; the whole log: $build/log"; }
    kill "$ticker"
    wheel=$(compgen -G "$build/wheel/*.whl")
    has_ops "$wheel" || die "$wheel has no compiled ops; the log: $build/log"
    # one rename makes it visible: an interrupted build leaves nothing that looks like a wheel
    mv -T "$build/wheel" "$folder" 2>/dev/null || [ -d "$folder" ] || die "cannot write $folder"
    rm -rf "$build"
    wheel=$(compgen -G "$folder/*.whl" | head -n 1)
  fi
  pip_install --no-deps --force-reinstall --no-cache-dir "$wheel"
}

has_ops() { in_venv -m zipfile -l "$1" | grep '^mmcv/_ext' >/dev/null; }

# Installs a file of requirements and leaves a cv2 that can be imported: opencv-python, which both stacks ask for, needs
# the display libraries of a desktop; a bare machine gets the build that does without, of the same version, over it.
install_stack() {
  pip_install -r "$versions/$1.txt"
  if ! in_venv -c 'import cv2' 2>/dev/null; then
    local version
    version=$(in_venv -c 'from importlib.metadata import version; print(version("opencv-python"))')
    echo "   no libGL here: putting opencv-python-headless $version in place of opencv-python"
    pip_install --no-deps --force-reinstall "opencv-python-headless==$version"
  fi
}

check_python
check_compiler
step venv "$("$python" -c 'import sys; print(sys.version)') $PWD" "virtual environment in $venv ($("$python" --version))" create_venv
step build "$(digest "$versions/build.txt")" 'build tools' pip_install -r "$versions/build.txt"
step torch "$(digest "$versions/torch.txt") $(have_gpu && echo gpu || echo cpu)" 'torch' install_torch
read -r torch device < <(torch_build)
echo "   torch $torch; ops are built for $device"
if have_gpu && [ "$device" = cpu ]; then
  echo "   there is a GPU, but no CUDA torch or no CUDA toolkit (nvcc): compiled ops will run on the CPU only"
fi

mmcv=$(grep 'mmcv==' "$versions/mmcv.txt")
tag=$(in_venv -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
key="${mmcv/==/-}-torch-$torch-$tag-$(uname -m)-with-ops-$device"
if [ "$profile" != demo ]; then
  step mmcv "$key" 'mmcv with compiled ops' \
    install_mmcv_with_ops "${XDG_CACHE_HOME:-$HOME/.cache}/sapa_mm/wheels/$key" "$device"
elif [ "$(cat "$stamps/mmcv" 2>/dev/null)" != "$key" ]; then
  step mmcv "${mmcv/==/-}-plain" 'mmcv without compiled ops' install_plain_mmcv
fi
step demo "$(digest "$versions"/{demo,mmcv,torch}.txt)" 'mmengine, mmsegmentation' install_stack demo
if [ "$profile" != demo ]; then
  step test "$(digest requirements/pytest.txt "$versions"/*.txt)" 'mmdetection, test tools' install_stack test
fi

build_package() {
  local log=$stamps/package.log # the decisions and failures of setup.py are its lines that start with [sapa_mm]
  local how=(--editable .)
  if [ "$profile" = classic ]; then
    how=(.)
    rm -rf build/lib* build/bdist* # what was deleted since the last build would still be packed
  fi
  in_venv -m pip install -v --no-deps --no-build-isolation "${how[@]}" >"$log" 2>&1 ||
    { tail -n 40 "$log"; die "the package did not install; the whole log: $log"; }
  awk '/^ *\[sapa_mm\]/ && !seen[$0]++' "$log" # pip runs setup.py more than once
  if grep 'NATIVE OPS WERE NOT BUILT' "$log" >/dev/null; then echo "   the compiler's output: $log"; fi
}
sources=$(find setup.py pyproject.toml sapa_mm/__init__.py ops -type f | sort)
if [ "$profile" = classic ]; then # what is copied
  sources=$(find setup.py pyproject.toml model-index.yml sapa_mm configs tools ops -type f \
    -not -name '*.py[cod]' -not -name '*.so' | sort)
fi
# shellcheck disable=SC2086  # one word a source file
step package "$(digest $sources) $torch $(can_compile && echo compiler || echo none) \
${SAPA_MM_WITH_OPS:-1} ${FORCE_CUDA:-} ${TORCH_CUDA_ARCH_LIST:-} ${DEBUG:-0}" 'sapa_mm with its native ops' build_package
say "ready: $venv/bin/python ($(in_venv -I -c 'import sapa_mm.ops as ops; print(ops.backend())') operators)"
