#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One run on a machine with a GPU that says whether the operators are right there and how fast they are: docs/gpu.md.
# Needs torch, triton, nvcc, pytest and hypothesis, and neither a network nor any of OpenMMLab. A step that fails does
# not stop the others. Leaves FOLDER/gpu_check.json, which holds everything, and the output of the steps beside it.
#
#     tools/gpu_check.sh [--dry-run] [FOLDER]        (FOLDER: $OUT, else gpu_check)
#
# --dry-run, or no GPU: the same on the CPU with small sizes, of the package as it stands in the checkout. PYTHON names the
# interpreter, SAPA_MM_GPU_SECONDS the time for all (540).
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry=0
case "${1:-}" in
  --dry-run) dry=1; shift ;;
  -h | --help) sed -n '3,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
esac
out=${1:-${OUT:-gpu_check}}
case "$out" in -*) echo "gpu_check: the options are --dry-run and --help, got $out" >&2; exit 2 ;; esac
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit
python=${PYTHON:-python3}
total=${SAPA_MM_GPU_SECONDS:-540}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$out/gpu_check.log
: >"$log"
: >"$work/steps"

if [ "$dry" = 0 ] && ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2>>"$log"; then
  echo 'gpu_check: no GPU: a dry run on the CPU'
  dry=1
fi
device=$([ "$dry" = 1 ] && echo cpu || echo cuda)

# step NAME SECONDS COMMAND...: at most so long, and no longer than what is left of the whole.
step() {
  local name=$1 limit=$2 begin=$SECONDS rc
  shift 2
  local left=$((total - SECONDS))
  if [ "$left" -lt "$limit" ]; then limit=$left; fi
  if [ "$limit" -lt 5 ]; then
    printf '%s\t%s\t%s\n' "$name" skipped 0 >>"$work/steps"
    echo "gpu_check: $name: no time left"
    return
  fi
  printf '\n===== %s: %s\n' "$name" "$*" >>"$log"
  timeout --kill-after=5 "$limit" "$@" >"$work/$name.txt" 2>&1
  rc=$?
  cat "$work/$name.txt" >>"$log"
  printf '%s\t%s\t%s\n' "$name" "$rc" "$((SECONDS - begin))" >>"$work/steps"
  echo "gpu_check: $name: rc $rc, $((SECONDS - begin)) s"
}

clocks() { nvidia-smi --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active --format=csv,noheader; }
smi=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit

# The library is built beside a copy of the package, so that the checkout stays as it is, for this card alone.
library=$root/build/gpu_check/lib
build() {
  cd "$root" || return
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST FORCE_CUDA=1
  "$python" setup.py --quiet build --build-base build/gpu_check --build-lib "$library"
  ls "$library"/sapa_mm/_C*  # setup.py forgives a build that fails
}
export -f build
export root python library

step versions 30 "$python" -c '
import json, platform, torch
found = dict(python=platform.python_version(), torch=torch.__version__, cuda=torch.version.cuda)
try:
    import triton
    found["triton"] = triton.__version__
except ImportError as error:
    found["triton"] = str(error)
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found.update(device=p.name, capability=[p.major, p.minor], multiprocessors=p.multi_processor_count,
                 memory=p.total_memory, l2_bytes=getattr(p, "L2_cache_size", None))
print(json.dumps(found))'
if [ "$dry" = 0 ]; then
  step card 20 nvidia-smi --query-gpu=$smi --format=csv,noheader
  step nvcc 20 nvcc --version
  clocks >"$work/clocks_before.txt" 2>&1
fi
if [ "$dry" = 0 ]; then step build 240 bash -c build; fi
# Without a build the reference and Triton's kernels are there to be looked at.
[ -e "$library/sapa_mm/ops" ] && [ "$dry" = 0 ] || library=$root
export PYTHONPATH=$library
cd "$library" || exit
if [ "$dry" = 0 ]; then
  step registers 60 bash -c 'cuobjdump --dump-resource-usage sapa_mm/_C*.so | c++filt'
fi

# On the CPU a part of the tests is enough to try this script.
select=()
if [ "$dry" = 1 ]; then select=(-k 'test_on_gpu or test_empty or autocast or test_backend'); fi
parallel=()
if [ "$dry" = 0 ] && "$python" -c 'import xdist' 2>/dev/null; then parallel=(-n 6 --dist worksteal); fi
step tests 220 "$python" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" "$root/tests/test_ops" \
  --ignore "$root/tests/test_ops/test_cuda_on_host.py" --junitxml "$work/tests.xml" --durations 15 \
  "${parallel[@]}" "${select[@]}"

if [ "$dry" = 0 ]; then # where Triton serves, the CUDA kernels were not asked
  step tests_of_cuda 60 env SAPA_MM_BACKEND=cuda "$python" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" \
    "$root/tests/test_ops" --ignore "$root/tests/test_ops/test_cuda_on_host.py" -k 'cuda and matches_reference' \
    "${parallel[@]}"
fi

# Small cases alone: these tools slow kernels down by tens. Without torch's cache of blocks they see every bound.
if [ "$dry" = 1 ]; then
  step cases 60 "$python" "$root/tests/test_ops/run_cases.py" cpu
else
  for tool in memcheck racecheck synccheck initcheck; do
    step "$tool" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" "$root/tests/test_ops/run_cases.py" cuda
  done
fi

seconds=$((total - SECONDS - 30))
if [ "$seconds" -gt 200 ]; then seconds=200; fi
small=()
if [ "$dry" = 1 ]; then small=(--small); seconds=60; fi
step benchmark $((seconds + 25)) "$python" "$root/tools/benchmark_gpu.py" --device "$device" --seconds "$seconds" \
  --out "$work/benchmark.json" "${small[@]}"
if [ "$dry" = 0 ]; then clocks >"$work/clocks_after.txt" 2>&1; fi

"$python" - "$work" "$out/gpu_check.json" "$dry" "$SECONDS" "$(git -C "$root" rev-parse HEAD 2>/dev/null)" <<'END'
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

work, target, dry, seconds, commit = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]


def text(name):
    path = work / name
    return path.read_text(errors='replace').strip() if path.exists() else None


def loads(name):
    try:
        return json.loads(text(name))
    except (TypeError, ValueError):
        return None


def tests():
    if not (work / 'tests.xml').exists():
        return None
    counts, failures, on_gpu = dict(passed=0, failed=0, skipped=0), [], {}
    for case in ElementTree.parse(work / 'tests.xml').iter('testcase'):
        name = f'{case.get("classname")}::{case.get("name")}'
        kinds = {child.tag: child for child in case}
        bad = kinds.get('failure', kinds.get('error'))
        outcome = 'failed' if bad is not None else 'skipped' if 'skipped' in kinds else 'passed'
        counts[outcome] += 1
        if bad is not None:
            failures.append(dict(test=name, message=(bad.get('message') or '')[:1000]))
        if 'test_on_gpu' in name:
            on_gpu[name] = outcome
    return dict(counts, failures=failures, on_gpu=on_gpu)


def registers():
    found = re.findall(r'Function (.+?):\s*\n\s*(REG.*)', text('registers.txt') or '')
    return {name: dict(re.findall(r'(\w+):(\d+)', usage)) for name, usage in found}


steps = [line.split('\t') for line in text('steps').splitlines()]
report = dict(
    dry_run=dry == '1',
    commit=commit,
    seconds=int(seconds),
    steps=[dict(name=n, rc=rc if rc == 'skipped' else int(rc), seconds=int(s)) for n, rc, s in steps],
    versions=loads('versions.txt'),
    card=text('card.txt'),
    nvcc=text('nvcc.txt'),
    clocks=dict(before=text('clocks_before.txt'), after=text('clocks_after.txt')),
    tests=tests(),
    sanitizer={
        tool: (text(f'{tool}.txt') or '').splitlines()[-3:]
        for tool in ('memcheck', 'racecheck', 'synccheck', 'initcheck')
        if (work / f'{tool}.txt').exists()
    },
    registers=registers(),
    benchmark=loads('benchmark.json'),
)
target.write_text(json.dumps(report, indent=1) + '\n')
bad = [s['name'] for s in report['steps'] if s['rc'] != 0]
print(f'gpu_check: {target}, {seconds} s, ' + (f'not well: {", ".join(bad)}' if bad else 'all steps well'))
raise SystemExit(bool(bad))
END
