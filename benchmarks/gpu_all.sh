#!/usr/bin/env bash
# Every benchmark on one GPU, in at most twelve minutes: attention, vocabulary, training steps at the
# shape of the paper, sampling with and without the cache. Results go to benchmarks/results, named by
# device, date and command, after every row: a part whose time runs out is named, and keeps what it has.
#
#   PYTHON=.venv/bin/python benchmarks/gpu_all.sh
#   TRIAL=1 benchmarks/gpu_all.sh      # the same parts, small enough for a processor
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-.venv/bin/python}
out=${OUT:-benchmarks/results}
failed=()

part() { # SECONDS NAME ARGUMENTS...
  local seconds=$1 name=$2
  shift 2
  echo "== $name"
  timeout "$seconds" "$python" "benchmarks/$name.py" --out="$out" "$@" || failed+=("$name ($?)")
}

if [[ -n ${TRIAL:-} ]]; then
  part 120 attention --length=128 --heads=2 --repeats=2
  part 180 train_step --size=tiny --layouts=AR,flat,block --repeats=2 --no-parts
  part 60 vocab --tokens=512 --length=128 --width=64 --repeats=2
  part 120 sampling --size=tiny --cases=2 --repeats=2 --no-rounds
else
  part 150 attention --batch=8 --heads=12 --dtype=bfloat16 --repeats=5 --backends=dense,fused
  part 260 train_step --size=base --batch_size=32 --dtype=bfloat16 --steps=5 --repeats=3 --no-parts --no-plain
  part 50 vocab --batch=4 --width=768 --repeats=5
  part 240 sampling --size=base --dtype=bfloat16 --cases=1 --repeats=3 --no-rounds
fi

if ((${#failed[@]})); then
  echo "not finished (status 124: its time ran out): ${failed[*]}" >&2
  exit 1
fi
