#!/usr/bin/env bash
# Every benchmark on one GPU, in at most eight minutes: attention, vocabulary, training steps at the
# shape of the paper, sampling with and without the cache. Results go to benchmarks/results, named by
# device and date. A part that does not finish in its time is named, and the others still run.
#
#   PYTHON=.venv/bin/python benchmarks/gpu_all.sh
#
# For a smaller device, or a trial on a processor:
#   SIZE=tiny BATCH=2 LENGTH=128 DTYPE=float32 benchmarks/gpu_all.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-.venv/bin/python}
out=${OUT:-benchmarks/results}
size=${SIZE:-base}
batch=${BATCH:-32}
length=${LENGTH:-1024}
dtype=${DTYPE:-bfloat16}
failed=()

part() { # SECONDS NAME ARGUMENTS...
  local seconds=$1 name=$2
  shift 2
  echo "== $name"
  timeout "$seconds" "$python" "benchmarks/$name.py" --out="$out" "$@" || failed+=("$name ($?)")
}

part 90 attention --length="$length" --batch=8 --heads=12 --dtype="$dtype" --repeats=5
part 180 train_step --size="$size" --batch_size="$batch" --length="$length" --dtype="$dtype" \
  --steps=5 --repeats=3
part 60 vocab --length="$length" --batch=4 --width=768 --repeats=5
part 150 sampling --repeats=3

if ((${#failed[@]})); then
  echo "not finished: ${failed[*]}" >&2
  exit 1
fi
