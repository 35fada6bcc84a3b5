#!/usr/bin/env bash
# Usage: launch/local_multiprocess.sh --processes=N -- ARGUMENTS
#
# Starts N processes `python -m hybrid_jax.main ARGUMENTS` on this machine that train together, as
# several hosts would, by default each with one CPU device. What process I prints begins with [I].
# Ctrl-C and SIGTERM go to all of them. If one fails, the others are killed GRACE seconds later.
#
# Exit status: that of the process that failed first; 75 after SIGTERM, 130 after Ctrl-C, else 0.
# Environment: PYTHON, default .venv/bin/python if it is there, else python3; GRACE, default 10;
# JAX_NUM_CPU_DEVICES for each process.

set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2 && exit 2; }

if [[ ${1-} == -h || ${1-} == --help ]]; then exec sed -n '/^# Usage/,/^$/s/^# \{0,1\}//p' "$0"; fi
[[ ${1-} =~ ^--processes=([1-9][0-9]*)$ && ${2-} == -- && $# -gt 2 ]] ||
  fail "Say how many train what, as in --processes=2 -- --config=configs/gamma_hybrid.py."
processes=${BASH_REMATCH[1]} grace=${GRACE:-10} && shift 2
python=${PYTHON:-$(command -v .venv/bin/python || echo python3)}
command -v "$python" >/dev/null || fail "There is no $python: name a Python as PYTHON."

ended=$(mktemp) stopped='' deadline=''
signal_all() { for group in $(jobs -p); do kill "-$1" -- "-$group" || true; done 2>/dev/null; }
# Whatever ends this script, nothing that it has started stays behind.
trap 'signal_all KILL; rm -f "$ended"' EXIT
trap 'stopped=INT; signal_all INT' INT
trap 'stopped=TERM; signal_all TERM' TERM HUP

prefixed() {
  trap '' INT TERM
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

process() {
  local status=0
  # This shell lives on to note the status.
  trap : INT TERM
  "$python" -u -m hybrid_jax.main "${@:2}" \
    --coordinator="127.0.0.1:$port" --processes="$processes" --process="$1" </dev/null || status=$?
  echo "$status" >>"$ended"
}

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-1}"
port=$("$python" -c 'import socket as s; print(s.create_server(("", 0)).getsockname()[1])')
# With job control each has a group of its own, which Ctrl-C reaches once, through the trap.
set -m
for ((index = 0; index < processes; index++)); do
  process "$index" "$@" 2>&1 | prefixed "$index" &
done
set +m
# One that has come meanwhile has not reached all of them.
if [[ -n $stopped ]]; then signal_all "$stopped"; fi

# In the order in which they have ended.
failed() { grep -vxE -m 1 '0|75|130' "$ended"; }
while [[ -n $(jobs -pr) ]]; do
  if [[ -n $deadline ]]; then
    if ((SECONDS >= deadline)); then signal_all KILL; fi
  elif status=$(failed); then
    deadline=$((SECONDS + grace))
    echo "A process has ended with status $status; the others are killed in $grace s." >&3
  fi
  sleep 0.1 || true
done 3>&2 2>/dev/null # without bash's words on those
if status=$(failed) || status=$(grep -xE -m 1 '75|130' "$ended"); then exit "$status"; fi
# All of them have to say that they are done.
(($(wc -l <"$ended") == processes))
