#!/usr/bin/env bash
# Trains on a TPU VM or pod slice of Google Cloud, goes on after preemptions, cleans up at the end.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/gcp_tpu.sh --name=NAME --project=PROJECT --zone=ZONE [OPTIONS] -- ARGUMENTS

Requests a TPU as a queued resource, waits for it, installs the committed code of this checkout on
all its hosts, runs `python -m hybrid_jax.main ARGUMENTS` there, and deletes the TPU when the run is
done. If the TPU is preempted or the run is stopped, it starts again from the newest checkpoint; if
somebody deletes the TPU, it ends.

  --name=NAME               of the queued resource and of the TPU
  --project=PROJECT         of Google Cloud
  --zone=ZONE               for example us-west4-a
  --accelerator-type=TYPE   default v5litepod-16
  --runtime-version=IMAGE   default v2-alpha-tpuv5-lite
  --spot                    a cheaper TPU that may be taken away
  --bucket=BUCKET           mounted at ~/bucket on every host, for --workdir=bucket/FOLDER; best one
                            with a hierarchical namespace, where renaming is atomic
  --keep                    do not delete the TPU when the run is done
  --max-restarts=N          default 100
  --poll=SECONDS            between two looks at the state, default 30
  --dry-run                 print the commands of an undisturbed run, run none
  -h, --help                this text

Example:
  launch/gcp_tpu.sh --name=hybrid --project=my-project --zone=us-west4-a --spot --bucket=my-bucket \
    -- --config=configs/gamma_hybrid.py:base --workdir=bucket/runs/gamma_hybrid

A TPU of that name which is there already is taken as it is; a run that goes on there is stopped
after saving. Output is added to logs/NAME.log here, and logs/NAME.tar.gz is the code that runs.
With several hosts, gcloud wants its key in the agent first: ssh-add ~/.ssh/google_compute_engine

Ctrl-C ends the watching only: the run and the TPU go on, and the commands that look at it, stop it
and delete it are printed. The same command again stops the run after saving, takes the code of then
and goes on.

Exit status: 0 done; 2 a mistake in the arguments or settings, 75 no restart is left, 130 watching
ended by Ctrl-C, otherwise that of the training or 1. In all but the first the TPU is kept if there
is one, and the command that deletes it is printed.
TEXT
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

name='' project='' zone='' bucket='' spot='' keep='' dry_run=''
accelerator_type=v5litepod-16
runtime_version=v2-alpha-tpuv5-lite
max_restarts=100
poll=30
while (($#)); do
  case $1 in
  --name=*) name=${1#*=} ;;
  --project=*) project=${1#*=} ;;
  --zone=*) zone=${1#*=} ;;
  --accelerator-type=*) accelerator_type=${1#*=} ;;
  --runtime-version=*) runtime_version=${1#*=} ;;
  --bucket=*) bucket=${1#*=} ;;
  --max-restarts=*) max_restarts=${1#*=} ;;
  --poll=*) poll=${1#*=} ;;
  --spot) spot=yes ;;
  --keep) keep=yes ;;
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

bucket=${bucket#gs://}
bucket=${bucket%/}

if [[ -z $name ]]; then fail "Give the TPU a name with --name=NAME."; fi
if [[ ! $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]]; then
  fail "The name '$name' will not do: use small letters, digits and hyphens, a letter first."
fi
if [[ -z $project ]]; then fail "Say which project pays, with --project=PROJECT."; fi
if [[ -z $zone ]]; then fail "Say where the TPU is to be, for example --zone=us-west4-a."; fi
if [[ -z $accelerator_type || -z $runtime_version ]]; then
  fail "Leave out --accelerator-type and --runtime-version, or give them values."
fi
if [[ ! $max_restarts =~ ^[0-9]+$ ]]; then
  fail "--max-restarts takes a number of restarts, not '$max_restarts'."
fi
if [[ ! $poll =~ ^[0-9]+(\.[0-9]+)?$ ]]; then fail "--poll takes seconds, not '$poll'."; fi
if ((!$#)); then
  fail "Say what to train after --, for example -- --config=configs/gamma_hybrid.py:base."
fi

workdir=''
previous=''
for argument in "$@"; do
  case $argument in
  --workdir=* | -workdir=*) workdir=${argument#*=} ;;
  esac
  case $previous in
  --workdir | -workdir) workdir=$argument ;;
  esac
  previous=$argument
done
# Every type with more than eight chips or cores is spread over several hosts.
size=${accelerator_type##*-}
if [[ -n $spot ]] || { [[ $size =~ ^[0-9]+$ ]] && ((10#$size > 8)); }; then
  if [[ $workdir != /* && ! (-n $bucket && $workdir == bucket/?*) ]]; then
    fail "With --spot or several hosts, checkpoints need a folder that all hosts share and that" \
      "outlives them: give --bucket=BUCKET and --workdir=bucket/FOLDER, or an absolute --workdir" \
      "on a file system that every host mounts."
  fi
fi

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$launch")
logs=$PWD/logs
log=$logs/$name.log
archive=$logs/$name.tar.gz

where=(--project="$project" --zone="$zone" --quiet)
tpus=(gcloud compute tpus)
pack=(git -C "$root" archive --format=tar.gz --output="$archive" HEAD)
create=("${tpus[@]}" queued-resources create "$name" "${where[@]}" --node-id="$name"
  --accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
if [[ -n $spot ]]; then create+=(--spot); fi
describe=("${tpus[@]}" queued-resources describe "$name" "${where[@]}"
  '--format=value(state.state)')
describe_vm=("${tpus[@]}" tpu-vm describe "$name" "${where[@]}" '--format=value(state)')
copy=("${tpus[@]}" tpu-vm scp "$archive" "$launch/tpu_worker.sh" "$name:" "${where[@]}"
  --worker=all)
ssh=("${tpus[@]}" tpu-vm ssh "$name" "${where[@]}")
install_words="bash tpu_worker.sh install --archive=$name.tar.gz"
if [[ -n $bucket ]]; then install_words+=$(printf ' --bucket=%q' "$bucket"); fi
install=("${ssh[@]}" --worker=all --command="$install_words")
delete=("${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force)
run_words=$(printf ' %q' "$@")

set_run() {
  attempt=$(date '+%Y%m%d-%H%M%S')-$$-$restarts
  run=("${ssh[@]}" --worker=all --command="bash tpu_worker.sh run --attempt=$attempt --$run_words")
}

show() {
  local line
  line=$(printf ' %q' "$@")
  printf '%s\n' "${line# }"
}

restarts=0
if [[ -n $dry_run ]]; then
  set_run
  show mkdir -p "$logs"
  show "${pack[@]}"
  show "${describe[@]}"
  show "${create[@]}"
  show "${describe[@]}"
  show "${describe_vm[@]}"
  show "${copy[@]}"
  show "${install[@]}"
  show "${run[@]}"
  if [[ -z $keep ]]; then show "${delete[@]}"; fi
  exit 0
fi

command -v gcloud >/dev/null ||
  fail "There is no gcloud here: install it from https://cloud.google.com/sdk and log in."
git -C "$root" rev-parse --verify --quiet HEAD >/dev/null ||
  fail "$root is not a git checkout with a commit: what is trained is the newest commit."
if [[ -n $(git -C "$root" status --porcelain -- . ':(exclude)logs') ]]; then
  printf 'warning: %s has uncommitted changes, which are not copied: the run is of commit %s.\n' \
    "$root" "$(git -C "$root" rev-parse --short HEAD)" >&2
fi

mkdir -p "$logs"
"${pack[@]}"
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
job='' requested='' seen='' was_ready='' prepared='' attempt='' hosts=0 state='' asked=''
# How often in a row a question or a deletion may fail: an hour, at the usual interval.
patience=120

say() {
  printf '%s %s\n' "$(date '+%F %T')" "$*" | tee -a "$log" >&2 || true
}

commands() {
  {
    printf 'See its output:  '
    show "${ssh[@]}" --worker=0 --command='tail -n 100 -f hybrid_jax_run/log'
    printf 'Log in:          '
    show "${ssh[@]}" --worker=0
    printf 'Save and stop:   '
    show "${ssh[@]}" --worker=all --command='bash tpu_worker.sh stop'
    printf 'Delete the TPU:  '
    show "${delete[@]}"
  } | tee -a "$log" >&2 || true
}

stop() {
  local status=$1
  shift
  say "$*"
  if [[ -n $requested ]]; then
    say "$name is not deleted, and costs money for as long as it is there."
    commands
  fi
  exit "$status"
}

interrupted() {
  trap '' HUP INT TERM
  if [[ -n $job ]]; then kill -TERM -- "-$job" 2>/dev/null || true; fi
  stop "$1" "This ends the watching only${requested:+: the TPU, and a run on it, go on}."
}
trap 'interrupted 129' HUP
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

# A shell answers a signal only after its command in the foreground has ended, so longer ones run in
# the background; with job control, as a group that can be ended as a whole.
attend() {
  local status=0
  set -m
  "$@" </dev/null &
  job=$!
  set +m
  wait "$job" || status=$?
  job=''
  return "$status"
}

into_log() { "$@" 2>&1 | tee -a "$log"; }
logged() { attend into_log "$@"; }
pause() { attend sleep "$poll"; }

answer() {
  local output
  if output=$("$@" 2>"$errors" </dev/null) && [[ -n $output ]]; then
    echo "$output"
  elif grep -q NOT_FOUND "$errors"; then
    echo NOT_FOUND
  else
    echo UNREACHABLE
  fi
}

# The request says ACTIVE for a while after its TPU has been taken away, so both are asked.
look() {
  state=$(answer "${describe[@]}")
  if [[ $state == ACTIVE ]]; then
    state=$(answer "${describe_vm[@]}")
    if [[ $state == NOT_FOUND ]]; then state=VM_NOT_FOUND; fi
  fi
}

count_restart() {
  if ((restarts >= 10#$max_restarts)); then
    stop 75 "$1, and --max-restarts=$max_restarts leaves no restart: the same command goes on."
  fi
  restarts=$((restarts + 1))
  say "$1: $2 (restart $restarts of at most $max_restarts)."
}

remove() {
  local tries
  prepared='' attempt='' seen=''
  for ((tries = 0; tries < patience; tries++)); do
    # A request that is just being suspended cannot be deleted yet.
    logged "${delete[@]}" || true
    look
    if [[ $state == NOT_FOUND ]]; then
      requested=''
      return
    fi
    pause
  done
  requested=yes
  stop 1 "$name could not be deleted."
}

acquire() {
  local before='' failures=0 start=$SECONDS
  while :; do
    look
    if [[ $state != "$before" ]]; then
      say "$name: $state (after $((SECONDS - start)) s)"
      before=$state
    fi
    if [[ $state != UNREACHABLE ]]; then
      failures=0 asked=yes
    fi
    # Google leaves a request in the list after taking the TPU away. Who deletes it, wants an end.
    if [[ -n $seen && ($state == NOT_FOUND || $state == DELETING) ]]; then
      requested=''
      stop 1 "Somebody has deleted $name, so it is not requested again."
    fi
    case $state in
    NOT_FOUND | UNREACHABLE) ;;
    *) if [[ -n $requested ]]; then seen=yes; fi ;;
    esac
    case $state in
    READY)
      if [[ -z $requested ]]; then say "$name was there already and is taken as it is."; fi
      requested=yes seen=yes was_ready=yes
      return
      ;;
    NOT_FOUND)
      if [[ -n $requested ]]; then
        # It was requested a moment ago and is not in the list yet.
        pause
        continue
      fi
      # Before the command: the request may be in already when a signal comes.
      requested=yes
      if ! logged "${create[@]}"; then
        look
        if [[ $state == NOT_FOUND ]]; then requested=''; fi
        # The first time it is most likely a mistake; later there may be none to be had for a while.
        if [[ -z $was_ready ]]; then
          stop 1 "The TPU could not be requested: see gcloud's words above."
        fi
        count_restart "The TPU could not be requested" "trying again"
        pause
      fi
      ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING | VM_NOT_FOUND | PREEMPTED | TERMINATED | STOPPED | \
      STOPPING | HIDING | HIDDEN)
      # A first request that fails is most likely wrong; a later one has met a shortage.
      if [[ $state == FAILED && -n $requested && -z $was_ready ]]; then
        logged "${describe[@]/#--format=*/--format=yaml(state)}" || true
        stop 1 "The request for $name has failed for the reason above."
      fi
      if [[ -n $requested ]]; then count_restart "$name is gone ($state)" "another TPU goes on"; fi
      remove
      ;;
    UNREACHABLE)
      failures=$((failures + 1))
      if [[ -z $asked ]] || ((failures >= patience)); then
        tee -a "$log" <"$errors" >&2
        stop 1 "gcloud could not say how $name is: see its words above."
      fi
      pause
      ;;
    *) pause ;;
    esac
  done
}

# What the hosts have said since the log had $1 bytes. Lines of the training begin with [worker].
heard() {
  tail -c "+$(($1 + 1))" "$log" | grep -o "$2" || true
}

log_size() {
  wc -c <"$log" | tr -d ' '
}

prepare() {
  local tries=0 begin status
  until [[ -n $prepared ]]; do
    begin=$(log_size)
    status=0
    logged "${copy[@]}" || status=$?
    if ((status == 0)); then logged "${install[@]}" || status=$?; fi
    if ((status == 0)); then
      hosts=$(heard "$begin" 'hybrid_jax is installed on worker [^ ]*' | sort -u | wc -l)
      prepared=yes
      return 0
    fi
    # It may have been taken away meanwhile, which its state tells a little later.
    tries=$((tries + 1))
    if ((status == 2 || tries >= 3)); then stop "$status" "The code could not be installed."; fi
    pause
    look
    if [[ $state != READY ]]; then return 1; fi
  done
}

# Which of several statuses says most: a mistake, a crash, a kill (often only the echo of a crash
# elsewhere), Ctrl-C, a stop, and least of all the end.
weight() {
  case $1 in
  0) echo 0 ;;
  75) echo 1 ;;
  130) echo 2 ;;
  2) echo 5 ;;
  *) if (($1 < 128)); then echo 4; else echo 3; fi ;;
  esac
}

train() {
  local begin line status=0 ended=0
  if [[ -z $attempt ]]; then set_run; fi
  begin=$(log_size)
  # Its own status tells little (see tpu_worker.sh).
  logged "${run[@]}" || true
  # A host that was asked twice has answered twice.
  while read -r line; do
    ended=$((ended + 1))
    if (($(weight "${line##* }") > $(weight "$status"))); then status=${line##* }; fi
  done < <(heard "$begin" 'hybrid_jax exit status on worker [^:]*: [0-9][0-9]*' |
    awk -F ': ' '{ last[$1] = $2 } END { for (host in last) print host, last[host] }')

  if ((status == 2)); then
    stop 2 "The training was refused for the reason above: mend it and run this again."
  fi
  if ((ended < hosts)); then
    # The connection or the TPU is gone. The same attempt is only shown again where it goes on.
    pause
    look
    if [[ $state == READY ]]; then count_restart "$name has gone silent" "asking again"; fi
    return
  fi
  if ((status == 0)); then
    if [[ -n $keep ]]; then stop 0 "The run is done."; fi
    remove
    say "The run is done and $name is deleted."
    exit 0
  fi
  look
  # What became of a TPU that is gone is dealt with where it is looked for next.
  if [[ $state != READY ]]; then return; fi
  if ((status != 75)); then
    stop "$status" "The training has ended with status $status: see above."
  fi
  count_restart "The run was stopped and has saved" "it goes on"
  attempt=''
}

say "commit $(git -C "$root" rev-parse --short HEAD) for $name:$run_words"
while :; do
  acquire
  if prepare; then train; fi
done
