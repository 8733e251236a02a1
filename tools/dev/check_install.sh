#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the wheel and the source archive, as users do, and tries them: the check before a release (docs/release.md).
#
#     tools/dev/check_install.sh ENVIRONMENT...        (an environment: PYTHON, or PYTHON:EXTRA)
#
# PYTHON is the interpreter of an environment with torch or with a stack; it stays as it is. Each installation goes into
# a fresh virtual environment laid over it, where a copy of this package that is installed beneath is not seen. EXTRA
# (onedl, openmmlab) is resolved against what is there, without a network, and a demo model is built from the installed
# configs.
#
#     CXX=/no/such/compiler tools/dev/check_install.sh PYTHON     what those get who have no compiler
#
# Environment: OUT (dist) for the archive and the wheels, one folder for each torch, and what setup.py reads. Takes half a
# minute for each environment and the time of two compilations.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
[ $# -gt 0 ] || { sed -n '5,18s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "${OUT:=dist}" && OUT=$(cd "$OUT" && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONPATH=
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '\n== %s\n' "$*"; }

# over PYTHON FOLDER: a virtual environment that sees what PYTHON has installed
over() {
  "$1" -m venv --without-pip "$2"
  "$1" -I -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
    >"$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beneath.pth"
}

pip_install() { "$1/bin/python" -m pip install --quiet --no-index --no-build-isolation "${@:2}"; }

# try_out FOLDER EXTRA: what is installed in FOLDER, from an empty folder, so that the checkout is not imported
try_out() {
  mkdir "$1/empty"
  cd "$1/empty"
  "$1/bin/python" -c 'import sys, sapa_mm; assert sapa_mm.__file__.startswith(sys.prefix), sapa_mm.__file__'
  "$1/bin/python" -m sapa_mm.doctor
  "$1/bin/python" "$root/tests/train_upsamplers.py"
  if [ -n "$2" ]; then
    local installed
    installed=$("$1/bin/python" -c 'import os, sapa_mm; print(os.path.dirname(sapa_mm.__file__))')/.mim
    "$1/bin/python" "$installed/tools/get_flops.py" "$installed/configs/demo/segformer_mit-b0_sapa-g_demo.py" >flops
    "$1/bin/python" "$installed/tools/get_flops.py" "$installed/configs/demo/mask-rcnn_r18_fpn-sapa-g_demo.py" >>flops
    echo 'costs of the demo models counted by the installed tool'
  fi
  cd "$root"
}

for environment in "$@"; do
  python=${environment%%:*} extra=${environment#"$python"}
  extra=${extra#:}
  name=$("$python" -c 'import sys, importlib.metadata as m; print("py%d.%d-torch-%s" % (*sys.version_info[:2], m.version("torch")))')
  here=$work/$name-$extra
  over "$python" "$here-wheel"
  over "$python" "$here-sdist"

  say "$name${extra:+ with $extra}: source archive and wheel"
  "$here-sdist/bin/python" -c 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])' "$OUT" \
    >"$work/sdist.log" 2>&1 || { tail -n 40 "$work/sdist.log"; exit 1; }
  archive=$(ls -t "$OUT"/sapa[-_]mm-*.tar.gz | head -n 1) # setuptools before 69.3 leaves the dash
  if ! compgen -G "$OUT/$name/*.whl" >/dev/null; then
    "$here-wheel/bin/python" -m pip wheel -v --no-deps --no-index --no-build-isolation --wheel-dir "$OUT/$name" \
      "$archive" >"$work/wheel.log" 2>&1 || { tail -n 40 "$work/wheel.log"; exit 1; }
    awk '/^ *\[sapa_mm\]/ && !seen[$0]++' "$work/wheel.log"
  fi
  wheel=$(ls -t "$OUT/$name"/sapa_mm-*.whl | head -n 1)

  for kind in wheel sdist; do
    file=$([ $kind = wheel ] && echo "$wheel" || echo "$archive")
    say "$name${extra:+ with $extra}: pip install $(basename "$file")"
    # --ignore-installed: a copy beneath is not to be taken for this one
    pip_install "$here-$kind" --no-deps --ignore-installed "$file"
    pip_install "$here-$kind" "sapa-mm${extra:+[$extra]}"
    try_out "$here-$kind" "$extra"
  done

  if "$here-sdist/bin/python" -c 'import pytest' 2>/dev/null; then
    say "$name${extra:+ with $extra}: tests from the unpacked archive"
    tar -xf "$archive" -C "$work"
    (cd "$work/$(basename "$archive" .tar.gz)" &&
      "$here-sdist/bin/python" -I -c 'import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))' -q -p no:cacheprovider \
        tests/test_torch_alone.py tests/test_packaging.py ${extra:+tests/test_package.py})
    rm -rf "$work/$(basename "$archive" .tar.gz)"
  fi
done
say 'all installed and ran'
