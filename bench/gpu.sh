#!/usr/bin/env bash
# Test pylm's ops, time them and a training step, and tune them, on the GPU of this machine:
#
#   bench/gpu.sh [--phase build|test|ops|train|tune|all] [--seconds N] [--out FOLDER] [--wheels FOLDER]
#                [--installed] [--dry-run]
#
# PYTHON names the interpreter (default python3), which must have torch with CUDA, and triton. The ops are
# taken from this checkout, as links in a temporary folder: nothing is compiled, installed or downloaded.
# --installed takes the pylm that this Python has. Packages that it lacks, and peers, come from the wheels in
# --wheels, all of which are used. All phases together end within --seconds (default 480): each has its share
# of what is left, writes what it has until then, and leaves the rest out. A phase that fails does not keep
# the others from running: the last lines are a summary, with what failed, and the exit status is 1. --dry-run
# goes through the same steps on a machine without a GPU, at tiny sizes.
set -euo pipefail
began_in=$PWD
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
phase=all seconds=480 out='' wheels='' installed='' dry_run=''
fail() { echo "gpu.sh: $*" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case $1 in
    --phase) phase=${2:-}; shift 2 || fail "--phase needs a name" ;;
    --seconds) seconds=${2:-}; shift 2 || fail "--seconds needs a number" ;;
    --out) out=${2:-}; shift 2 || fail "--out needs a folder" ;;
    --wheels) wheels=${2:-}; shift 2 || fail "--wheels needs a folder" ;;
    --installed) installed=1; shift ;;
    --dry-run) dry_run=--dry-run; shift ;;
    -h|--help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail "unknown argument $1; see --help" ;;
  esac
done
case $phase in
  build|test|ops|train|tune|all) ;;
  *) fail "--phase must be build, test, ops, train, tune or all, got '$phase'" ;;
esac
case $seconds in ''|*[!0-9]*) fail "--seconds must be a whole number, got '$seconds'" ;; esac
command -v "$PYTHON" > /dev/null \
  || fail "no $PYTHON here; name an interpreter: PYTHON=/path/to/python bench/gpu.sh"
# Relative paths are those of the caller.
case $out in ''|/*) ;; *) out=$began_in/$out ;; esac
case $wheels in ''|/*) ;; *) wheels=$began_in/$wheels ;; esac

# The name of the GPU as part of a folder's name; also the check that there is one.
gpu=$("$PYTHON" - <<'END'
import sys
try:
    import torch
except ImportError:
    sys.exit("gpu.sh: this Python has no torch; name one that has: PYTHON=/path/to/python bench/gpu.sh")
if torch.cuda.is_available():
    print(torch.cuda.get_device_name().replace("NVIDIA ", "").replace(" ", "-"))
END
) || exit 1
[ -n "$gpu" ] || [ -n "$dry_run" ] \
  || fail "torch sees no CUDA GPU here; --dry-run tries the steps without one"
if [ -z "$out" ] && [ -n "$dry_run" ]; then out=$(mktemp -d); fi
out=${out:-$PWD/bench/results/$(date +%F)-$gpu}
mkdir -p "$out"

# What Python is given: pylm as it would be installed, packages from wheels, and for the training step, where
# there is no pydantic, as much of it as that needs.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/site/pylm" "$work/packages" "$work/stand-in"
ln -s "$PWD"/pylm/* "$PWD/kernels" "$PWD/recipes" "$work/site/pylm/"
ln -s "$PWD/bench/gpu_pydantic.py" "$work/stand-in/pydantic.py"
path=$work/packages${PYTHONPATH:+:$PYTHONPATH}
[ -n "$installed" ] || path=$work/site:$path
export PYTHONPATH=$path

# Print the packages that are missing, by the names under which they are installed.
missing() {
  "$PYTHON" - "$@" <<'END'
import importlib.util, sys
print(*[name for name in sys.argv[1:] if not importlib.util.find_spec(name)])
END
}

build() {
  # What the ops, the model and the tests import; what the text core imports is not needed here.
  local wanted='numpy pytest' lacking
  [ -n "$dry_run" ] || wanted="$wanted triton"
  if [ -n "$wheels" ]; then
    # Into a folder of its own: a Python that is managed by others refuses to be changed.
    "$PYTHON" -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-index --no-deps \
      --no-compile --target "$work/packages" "$wheels"/*.whl || fail "not all wheels in $wheels fit $PYTHON"
  fi
  [ -z "$(missing pydantic)" ] || echo "pydantic is not there: the training step does without"
  # shellcheck disable=SC2086  # a list of words
  lacking=$(missing $wanted)
  [ -z "$lacking" ] || fail "$PYTHON lacks: $lacking; put their wheels into a folder and pass --wheels FOLDER"
  [ -z "$dry_run" ] || return 0
  command -v "${CC:-gcc}" > /dev/null || command -v clang > /dev/null \
    || fail "no C compiler, which Triton starts kernels with; install gcc, or set CC"
  "$PYTHON" - <<'END' || fail "no Python.h, which Triton compiles against; install python3-dev"
import pathlib, sys, sysconfig
scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
sys.exit(not pathlib.Path(sysconfig.get_paths(scheme=scheme)["include"], "Python.h").is_file())
END
}

# `timeout` with the exit status 124 also where the end had to be forced.
limited() {
  local code=0
  timeout -k 5 "$@" || code=$?
  [ "$code" != 137 ] || code=124
  return "$code"
}

# Run pytest for so many seconds, then interrupt it, so that it tells of what failed until then. Two threads
# a process, and nothing from the current folder, which has a pylm without kernels. The options of
# pyproject.toml refuse to run where a plugin is absent. A test that hangs shows where.
run_pytest() {
  local options='--import-mode=importlib --strict-markers'
  PYTHONSAFEPATH=1 TORCHINDUCTOR_COMPILE_THREADS=2 OMP_NUM_THREADS=2 limited -s INT "$1" \
    "$PYTHON" -m pytest -o addopts="$options" -o faulthandler_timeout=60 -p no:cacheprovider -m gpu "${@:2}"
}

# Tests of tensors past 2^31 elements take much of the GPU's memory, so they are a process of their own,
# beside as many as half of the cores, which share the GPU. Neighbours in the list are alike, and so are those
# at the distances of its parameters: the rotation deals both out evenly.
pids=()
check() {
  local ids files own=() broken='' cut='' code=0 i mode=-v pid shard shards started=$SECONDS
  [ -z "$dry_run" ] || mode=--collect-only
  shards=$(($(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN) / 2))
  [ "$shards" -ge 1 ] || shards=1
  [ "$shards" -le 8 ] || shards=8
  trap 'merge_tests; [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2> /dev/null || true' EXIT
  mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests/ops tests/kernels | sort)
  [ "${#files[@]}" -gt 0 ] || fail "phase test found no file with tests for a GPU"
  run_pytest "$limit" --collect-only -q "${files[@]}" > "$out/tests-collected.txt" 2>&1 || code=$?
  mapfile -t ids < <(grep '^tests/.*::' "$out/tests-collected.txt")
  echo "collected ${#ids[@]} tests${dry_run:+, which are not run here}" > "$out/tests-0.txt"
  [ "$code" != 124 ] || exit 124
  if [ "$code" != 0 ]; then
    broken=1
    grep -v '^tests/.*::' "$out/tests-collected.txt" >> "$out/tests-0.txt" || true
    grep -E '^(ERROR|E  )' "$out/tests-0.txt" || tail -n 5 "$out/tests-0.txt"
    echo "collecting the tests failed ($code); those that were found are run" >&2
  fi
  rm "$out/tests-collected.txt"
  [ "${#ids[@]}" -gt 0 ] || fail "phase test found no test"
  local left=$((limit - (SECONDS - started) - 6))
  [ "$left" -ge 5 ] || exit 124
  for shard in $(seq 0 "$shards"); do
    own=()
    for i in "${!ids[@]}"; do
      case ${ids[$i]} in
        *past_32_bits*) [ "$shard" != "$shards" ] || own+=("${ids[$i]}") ;;
        *) [ $(((i + i / shards) % shards)) != "$shard" ] || own+=("${ids[$i]}") ;;
      esac
    done
    [ "${#own[@]}" -gt 0 ] || continue
    run_pytest "$left" "$mode" -rfEs --tb=short --durations=5 "${own[@]}" \
      > "$out/tests-$((shard + 1)).txt" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    case $code in 0) ;; 124) cut=1 ;; *) broken=1 ;; esac
  done
  pids=()
  merge_tests
  grep -E '^(FAILED|ERROR)|(passed|failed|error|collected).* in ' "$out/tests.txt" || true
  # What failed before the end of the time is a failure all the same.
  [ -z "$broken" ] && ! grep -qE '^(FAILED|ERROR) ' "$out/tests.txt" || exit 1
  [ -z "$cut" ] || exit 124
}

merge_tests() {
  if compgen -G "$out/tests-*.txt" > /dev/null; then
    cat "$out"/tests-*.txt >> "$out/tests.txt"
    rm "$out"/tests-*.txt
  fi
}

# A program is told to begin nothing in its last 30 seconds, as what it has begun goes on: less where there is
# little time. Where the GPU refuses a process after a bad access, a new one takes up the rest.
bench() {
  local margin=$((limit / 4)) code=75 left began=$SECONDS options=()
  [ "$margin" -le 30 ] || margin=30
  if [ "$1" = train ] && [ -n "$(missing pydantic)" ]; then PYTHONPATH=$work/stand-in:$PYTHONPATH; fi
  [ -z "$dry_run" ] || options+=(--dry-run)
  while [ "$code" = 75 ]; do
    code=0 left=$((limit - (SECONDS - began)))
    [ "$left" -gt "$margin" ] || exit 124
    limited "$left" "$PYTHON" "bench/gpu_$1.py" --out "$out" --seconds $((left - margin)) "${options[@]}" \
      || code=$?
    [ "$code" != 75 ] || { echo "the GPU refuses this process: a new one goes on"; options+=(--go-on); }
  done
  exit "$code"
}

failed='' cut_off='' left_out=''
# Run a phase, by itself so that it may end at any point, and note how it ended.
run() {
  echo "== $1, at most $limit s"
  local began=$SECONDS code=0
  set +e
  (
    set -e
    case $1 in
      build) build ;;
      test) rm -f "$out"/tests*.txt; check ;;
      *) rm -f "$out/$1.json" "$out/$1.md"; bench "$1" ;;
    esac
  )
  code=$?
  set -e
  case $code in
    0) echo "== $1 took $((SECONDS - began)) s" ;;
    124) cut_off="$cut_off $1"
         echo "== $1 was cut off after $((SECONDS - began)) s: what is written counts" ;;
    *) failed="$failed $1"; echo "== $1 failed ($code) after $((SECONDS - began)) s" ;;
  esac
}

# Run a phase in its share of what is left: its name, its weight, and the weights of it and all behind it.
run_in_share() {
  limit=$(((seconds - SECONDS) * $2 / $3))
  if [ "$limit" -ge 20 ]; then run "$1"; else left_out="$left_out $1"; echo "== $1 is left out: $limit s"; fi
}

limit=$((seconds - SECONDS))
run build
if [ "$phase" = all ]; then
  seconds=$((seconds - 8)) # for the summary, and for what has to be killed
  run_in_share test 24 100
  run_in_share ops 40 76
  run_in_share train 30 36
  run_in_share tune 6 6
elif [ "$phase" != build ]; then
  limit=$((seconds - SECONDS))
  run "$phase"
fi
note="all phases ended"
if [ -n "$failed$cut_off$left_out" ]; then
  note="${failed:+failed:$failed; }${cut_off:+cut off, what is written counts:$cut_off; }"
  note="$note${left_out:+left out, the time was over:$left_out; }"
  note=${note%; }
fi
if [ "$phase" != build ]; then
  "$PYTHON" bench/gpu_summary.py "$out" --note "$note" || echo "gpu.sh: there is no summary; $note" >&2
else
  echo "$note"
fi
echo "results: $out"
[ -z "$failed$cut_off" ]
