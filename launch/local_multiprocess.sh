#!/usr/bin/env bash
# Trains with several processes on this machine, as several hosts would.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/local_multiprocess.sh --processes=N [OPTIONS] -- ARGUMENTS

Starts N processes `python -m hybrid_jax.main ARGUMENTS` on this machine that train together. What
process I prints begins with [I]. SIGINT (Ctrl-C) and SIGTERM go to all of them.

  --processes=N             how many
  --devices-per-process=K   default 1
  --platform=cpu|cuda       default cpu; with cuda, process I gets GPUs I*K to I*K+K-1 of those in
                            CUDA_VISIBLE_DEVICES, or of the machine
  --restart                 if a SIGTERM to one of the processes has stopped the run, start it again
  --grace=SECONDS           after a crash of one process, the others are killed so much later;
                            default 30
  --dry-run                 print the commands, one for each process, and run none
  -h, --help                this text

Example:
  launch/local_multiprocess.sh --processes=2 -- --config=configs/gamma_hybrid.py --workdir=runs/two

Exit status: 0 if all are done, otherwise that of the process that failed first; 75 (stopped by
SIGTERM) and 130 (by Ctrl-C), with everything saved, only if none has failed otherwise.

Environment: PYTHON, .venv/bin/python if not set and there, else python3.
TEXT
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

processes='' devices=1 platform=cpu restart='' grace=30 dry_run=''
while (($#)); do
  case $1 in
  --processes=*) processes=${1#*=} ;;
  --devices-per-process=*) devices=${1#*=} ;;
  --platform=*) platform=${1#*=} ;;
  --grace=*) grace=${1#*=} ;;
  --restart) restart=yes ;;
  --dry-run) dry_run=yes ;;
  -h | --help)
    usage
    exit 0
    ;;
  --)
    shift
    break
    ;;
  *) fail "Unknown argument '$1': options are written --name=VALUE, and what follows -- goes to" \
    "the training (see --help)." ;;
  esac
  shift
done

if [[ ! $processes =~ ^[1-9][0-9]*$ ]]; then
  fail "Say how many processes to start, for example --processes=2."
fi
if [[ ! $devices =~ ^[1-9][0-9]*$ ]]; then
  fail "--devices-per-process takes a number from 1, not '$devices'."
fi
if [[ $platform != cpu && $platform != cuda ]]; then
  fail "--platform is cpu or cuda, not '$platform'."
fi
if [[ ! $grace =~ ^[0-9]+$ ]]; then fail "--grace takes whole seconds, not '$grace'."; fi
if ((!$#)); then
  fail "Say what to train after --, for example -- --config=configs/gamma_hybrid.py."
fi

python=${PYTHON-}
if [[ -z $python ]]; then
  if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else python=python3; fi
fi
command -v "$python" >/dev/null || fail "There is no $python: name a Python as PYTHON."

visible=()
if [[ $platform == cuda && -n ${CUDA_VISIBLE_DEVICES-} ]]; then
  IFS=, read -r -a visible <<<"$CUDA_VISIBLE_DEVICES"
  if ((${#visible[@]} < processes * devices)); then
    fail "CUDA_VISIBLE_DEVICES names ${#visible[@]} GPUs, which is too few for $processes" \
      "processes with $devices each."
  fi
fi

# Sets `command` to that of process $1.
set_command() {
  local gpus='' device
  command=(env)
  if [[ $platform == cpu ]]; then
    command+=(JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices")
  else
    for ((device = $1 * devices; device < ($1 + 1) * devices; device++)); do
      gpus+=,${visible[device]-$device}
    done
    command+=(JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES="${gpus#,}")
  fi
  command+=("$python" -u -m hybrid_jax.main "${arguments[@]}"
    --coordinator="127.0.0.1:$port" --processes="$processes" --process="$1")
}

free_port() {
  "$python" -c 'import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    print(probe.getsockname()[1])'
}

arguments=("$@")
if [[ -n $dry_run ]]; then
  port=12345
  for ((index = 0; index < processes; index++)); do
    set_command "$index"
    line=$(printf ' %q' "${command[@]}")
    printf '%s\n' "${line# }"
  done
  exit 0
fi

say() {
  printf '%s\n' "$*" >&2
}

folder=$(mktemp -d)
pids=() printers=() stopping=''

# Whatever ends this script, nothing that it has started stays behind.
clean_up() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"} ${printers[@]+"${printers[@]}"}; do
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
  wait
  rm -rf "$folder"
}
trap clean_up EXIT

forward() {
  local pid
  stopping=yes
  for pid in ${pids[@]+"${pids[@]}"}; do kill -"$1" "$pid" 2>/dev/null || true; done
}
trap 'forward INT' INT
trap 'forward TERM' TERM HUP

prefixed() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

start() {
  local index
  port=$(free_port)
  pids=() printers=()
  # With job control, every process has a group of its own: Ctrl-C reaches it once, through
  # `forward`, and its helpers can be killed with it. Without, it would also ignore SIGINT.
  set -m
  for ((index = 0; index < processes; index++)); do
    set_command "$index"
    if [[ ! -p $folder/$index ]]; then mkfifo "$folder/$index"; fi
    prefixed "$index" <"$folder/$index" &
    printers+=("$!")
    "${command[@]}" </dev/null >"$folder/$index" 2>&1 &
    pids+=("$!")
  done
  set +m
  # A signal that has come meanwhile has not reached all of them.
  if [[ -n $stopping ]]; then forward TERM; fi
}

# Sets `result`.
wait_for_all() {
  local index code alive deadline='' ended=()
  result=0
  while :; do
    alive=0
    for ((index = 0; index < processes; index++)); do
      if [[ -n ${ended[index]-} ]]; then continue; fi
      if kill -0 "${pids[index]}" 2>/dev/null; then
        alive=$((alive + 1))
        continue
      fi
      code=0
      wait "${pids[index]}" || code=$?
      ended[index]=yes
      # A helper that has outlived its process would keep the output open.
      kill -KILL -- "-${pids[index]}" 2>/dev/null || true
      case $code in
      0) ;;
      75 | 130) if ((result == 0)); then result=$code; fi ;;
      *)
        if ((result == 0 || result == 75 || result == 130)); then result=$code; fi
        # After a mistake (2) all end by themselves.
        if ((code != 2)) && [[ -z $deadline ]]; then
          deadline=$((SECONDS + 10#$grace))
          say "process $index has ended with status $code; the others are killed in $grace s."
        fi
        ;;
      esac
    done
    if ((alive == 0)); then break; fi
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
      for ((index = 0; index < processes; index++)); do
        if [[ -z ${ended[index]-} ]]; then kill -KILL -- "-${pids[index]}" 2>/dev/null || true; fi
      done
    fi
    sleep 0.1 || true
  done
  # Their last lines.
  wait "${printers[@]}" || true
  pids=() printers=()
}

while :; do
  start
  wait_for_all
  if [[ -z $restart || $result != 75 || -n $stopping ]]; then exit "$result"; fi
  say "stopped after saving; starting again."
done
