#!/usr/bin/env bash
# Build pylm, test its ops, time them and a training step, and tune them, on the GPU of this machine:
#
#   bench/gpu.sh [--phase build|test|ops|train|tune|all] [--seconds N] [--out FOLDER] [--wheels FOLDER] [--dry-run]
#
# PYTHON names the interpreter (default python3), which must have torch with CUDA, and triton. Nothing is
# downloaded: other packages that it lacks are installed from the wheels in --wheels. All phases together end
# within --seconds (default 480): each has its share of what is left, writes what it has until then, and leaves
# the rest out. --dry-run goes through the same steps on a machine without a GPU, at tiny sizes.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
phase=all seconds=480 out='' wheels='' dry_run=''
fail() { echo "gpu.sh: $*" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case $1 in
    --phase) phase=${2:-}; shift 2 || fail "--phase needs a name" ;;
    --seconds) seconds=${2:-}; shift 2 || fail "--seconds needs a number" ;;
    --out) out=${2:-}; shift 2 || fail "--out needs a folder" ;;
    --wheels) wheels=${2:-}; shift 2 || fail "--wheels needs a folder" ;;
    --dry-run) dry_run=--dry-run; shift ;;
    -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail "unknown argument $1; see --help" ;;
  esac
done
case $phase in
  build|test|ops|train|tune|all) ;;
  *) fail "--phase must be build, test, ops, train, tune or all, got '$phase'" ;;
esac
case $seconds in ''|*[!0-9]*) fail "--seconds must be a whole number, got '$seconds'" ;; esac
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

# The shards share the GPU, so tests of tensors past 2^31 elements, which take much of its memory, are one.
check() {
  local ids=() shards=4 shard status=0 pids=() started
  if [ -n "$dry_run" ]; then
    "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider --collect-only tests/ops tests/kernels | tee "$out/tests.txt" \
      || fail "phase test failed"
    return
  fi
  started=$SECONDS
  mapfile -t ids < <("$PYTHON" -m pytest -q -m gpu -p no:cacheprovider --collect-only tests/ops tests/kernels \
    | grep '::')
  [ "${#ids[@]}" -gt 0 ] || fail "phase test found no test"
  local left=$((limit - (SECONDS - started)))
  for shard in $(seq 0 "$shards"); do
    local own=() i
    for i in "${!ids[@]}"; do
      case ${ids[$i]} in
        *past_32_bits*) [ "$shard" != "$shards" ] || own+=("${ids[$i]}") ;;
        *) [ $((i % shards)) != "$shard" ] || own+=("${ids[$i]}") ;;
      esac
    done
    [ ${#own[@]} -gt 0 ] || continue
    timeout "$left" "$PYTHON" -m pytest -v -m gpu -p no:cacheprovider --durations=5 "${own[@]}" \
      > "$out/tests-$shard.txt" 2>&1 &
    pids+=($!)
  done
  for shard in "${pids[@]}"; do wait "$shard" || status=$?; done
  cat "$out"/tests-?.txt > "$out/tests.txt"
  rm "$out"/tests-?.txt
  grep -E '^(FAILED|ERROR)|(passed|failed|error).* in ' "$out/tests.txt" || true
  [ "$status" != 124 ] || fail "phase test took $limit s; what ran until then is in $out/tests.txt"
  [ "$status" = 0 ] || fail "phase test failed; see $out/tests.txt"
}

# Ten seconds before its time is over a program is told to stop of itself.
bench() {
  timeout "$limit" "$PYTHON" "bench/gpu_$1.py" --out "$out" --seconds $((limit - 10)) $dry_run \
    || fail "phase $1 failed or took $limit s"
}

mkdir -p "$out"
# Sets `limit` to the share of a phase in what is left; arguments: its weight, and those of it and all behind it.
share() { limit=$(((seconds - SECONDS) * $1 / $2)); [ "$limit" -ge 20 ] || fail "the $seconds s are over"; }
limit=$seconds
run() {
  echo "== $1"
  local began=$SECONDS
  case $1 in
    build) build ;;
    test) check ;;
    ops|train|tune) bench "$1" ;;
  esac
  echo "== $1 took $((SECONDS - began)) s"
}
if [ "$phase" = all ]; then
  run build
  share 30 105; run test
  share 40 75; run ops
  share 25 35; run train
  # What is least needed comes last, and not where nothing is left for it.
  if [ $((seconds - SECONDS)) -ge 25 ]; then share 10 10; run tune; else echo "== tune was left out"; fi
else
  run "$phase"
fi
echo "results: $out"
