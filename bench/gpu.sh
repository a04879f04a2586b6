#!/usr/bin/env bash
# Build pylm, test its ops and time them and a training step, on the GPU of this machine:
#
#   bench/gpu.sh [--phase build|test|ops|train|all] [--out FOLDER] [--wheels FOLDER] [--dry-run]
#
# PYTHON names the interpreter (default python3), which must have torch with CUDA, and triton. Nothing is
# downloaded: other packages that it lacks are installed from the wheels in --wheels. Each phase ends within
# 10 minutes. --dry-run goes through the same steps on a machine without a GPU, at tiny sizes.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
phase=all out='' wheels='' dry_run=''
fail() { echo "gpu.sh: $*" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case $1 in
    --phase) phase=${2:-}; shift 2 || fail "--phase needs a name" ;;
    --out) out=${2:-}; shift 2 || fail "--out needs a folder" ;;
    --wheels) wheels=${2:-}; shift 2 || fail "--wheels needs a folder" ;;
    --dry-run) dry_run=--dry-run; shift ;;
    -h|--help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail "unknown argument $1; see --help" ;;
  esac
done
case $phase in build|test|ops|train|all) ;; *) fail "--phase must be build, test, ops, train or all, got '$phase'" ;; esac
command -v "$PYTHON" > /dev/null || fail "no $PYTHON here; name an interpreter: PYTHON=/path/to/python bench/gpu.sh"

# The name of the GPU as part of a folder's name; also the check that there is one.
gpu=$("$PYTHON" - <<'EOF'
import sys
try:
    import torch
except ImportError:
    sys.exit("gpu.sh: this Python has no torch; name one that has: PYTHON=/path/to/python bench/gpu.sh")
if torch.cuda.is_available():
    print(torch.cuda.get_device_name().replace("NVIDIA ", "").replace(" ", "-"))
EOF
) || exit 1
[ -n "$gpu" ] || [ -n "$dry_run" ] || fail "torch sees no CUDA GPU here; --dry-run tries the steps without one"
if [ -z "$out" ] && [ -n "$dry_run" ]; then out=$(mktemp -d); fi
out=${out:-bench/results/$(date +%F)-$gpu}

# Print the packages that are missing, by the names under which they are installed.
missing() {
  "$PYTHON" - "$@" <<'EOF'
import importlib.util, shutil, sys
modules = {"scikit-build-core": "scikit_build_core", "pytest-timeout": "pytest_timeout"}
tools = {"cmake", "ninja"}
print(*[n for n in sys.argv[1:]
        if not (shutil.which(n) if n in tools else importlib.util.find_spec(modules.get(n, n)))])
EOF
}

build() {
  # What the ops, the model and the build import; the text core's packages are not needed here.
  local wanted='numpy pydantic triton pytest pytest-timeout pybind11 scikit-build-core cmake ninja' lacking
  # shellcheck disable=SC2086  # a list of words
  lacking=$(missing $wanted)
  if [ -n "$lacking" ] && [ -n "$wheels" ]; then
    # shellcheck disable=SC2086
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-index --find-links "$wheels" $lacking \
      || fail "the wheels in $wheels do not suffice for: $lacking"
    # shellcheck disable=SC2086
    lacking=$(missing $wanted)
  fi
  [ -z "$lacking" ] || fail "$PYTHON lacks: $lacking; put their wheels into a folder and pass --wheels FOLDER"
  command -v "${CXX:-c++}" > /dev/null || fail "no C++ compiler; install g++ 11 or newer, or set CXX"
  [ -n "$dry_run" ] || "$PYTHON" -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
}

check() {
  local collect=()
  [ -z "$dry_run" ] || collect=(--collect-only)
  timeout 590 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider "${collect[@]}" tests/ops tests/kernels \
    | tee "$out/tests.txt" || fail "phase test failed or took 590 s"
}

mkdir -p "$out"
run() {
  echo "== $1"
  case $1 in
    build) build ;;
    test) check ;;
    ops) timeout 590 "$PYTHON" bench/gpu_ops.py --out "$out" $dry_run || fail "phase ops failed or took 590 s" ;;
    train) timeout 590 "$PYTHON" bench/gpu_train.py --out "$out" $dry_run || fail "phase train failed or took 590 s" ;;
  esac
}
if [ "$phase" = all ]; then
  for each in build test ops train; do run "$each"; done
else
  run "$phase"
fi
echo "results: $out"
