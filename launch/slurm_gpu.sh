#!/usr/bin/env bash
#SBATCH --job-name=hybrid_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# A SLURM job that trains on all its GPUs and puts itself back into the queue when its time is over.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: sbatch [SBATCH OPTIONS] launch/slurm_gpu.sh [--dry-run] -- ARGUMENTS

Runs `python -m hybrid_jax.main ARGUMENTS` as a SLURM job: one process for each GPU, by default on
one node with eight. Options of sbatch change that; the workdir has to be on a shared file system:

  sbatch launch/slurm_gpu.sh -- --config=configs/gamma_hybrid.py:base --workdir=runs/gamma_hybrid
  sbatch --nodes=4 --ntasks-per-node=4 --gpus-per-node=4 launch/slurm_gpu.sh -- --config=...

Ask for as many tasks as GPUs on each node, and not for --gpus-per-task: JAX chooses the GPU of a
process by its number on the node, so every process has to see all of them.

Two minutes before the time limit every process gets SIGTERM and saves (sbatch --signal=TERM@SECONDS
gives it more time); then the job is queued again and goes on from the newest checkpoint. Otherwise
the job ends with the status of the training. Output is added to hybrid_jax-JOB.log.

  --dry-run    print the command that would start the training, and run nothing
  -h, --help   this text

Environment: VENV, the virtual environment, .venv of the folder you submit from if not set.
TEXT
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() {
  printf '%s %s\n' "$(date '+%F %T')" "$*" >&2
}

dry_run=''
while (($#)); do
  case $1 in
  --dry-run) dry_run=yes ;;
  -h | --help)
    usage
    exit 0
    ;;
  --)
    shift
    break
    ;;
  *) fail "Unknown argument '$1': options of SLURM stand before the script, and what follows --" \
    "goes to the training (see --help)." ;;
  esac
  shift
done
if ((!$#)); then
  fail "Say what to train after --, for example -- --config=configs/gamma_hybrid.py:base."
fi

cd "${SLURM_SUBMIT_DIR:-.}"
venv=${VENV:-.venv}
# The processes that have saved first must not be the end of the others: SLURM may be set up to kill
# a step with its first bad status, and 75 is one.
command=(srun --kill-on-bad-exit=0)
# srun does not take this one over from sbatch.
if [[ -n ${SLURM_CPUS_PER_TASK-} ]]; then command+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
command+=("$venv/bin/python" -u -m hybrid_jax.main "$@")

if [[ -n $dry_run ]]; then
  line=$(printf ' %q' "${command[@]}")
  printf '%s\n' "${line# }"
  exit 0
fi
if [[ -z ${SLURM_JOB_ID-} ]]; then
  fail "This runs inside a SLURM job: submit it with sbatch launch/slurm_gpu.sh -- ARGUMENTS."
fi
if [[ ! -x $venv/bin/python ]]; then
  fail "There is no $venv/bin/python (in $PWD): install hybrid_jax there, or set VENV."
fi

# SLURM signals the processes themselves before the time limit. If a site or an option makes it
# signal this shell instead, the signal is passed on by scancel: srun would kill its processes.
signalled=''
pass_on() {
  interrupted=yes
  if [[ -z $signalled ]]; then
    signalled=yes
    say "a signal: the training is told to save and stop."
    scancel --signal=TERM "$SLURM_JOB_ID" || say "scancel could not pass the signal on."
  fi
}
trap pass_on TERM USR1

# Ends with the status of the training, and with 75 puts the job back into the queue.
finish() {
  local state
  say "the training has ended with status $1."
  if (($1 == 75)); then
    state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") || state=RUNNING
    if [[ $state != RUNNING ]]; then
      # Somebody has cancelled it, or SLURM has preempted it and queues it again by itself.
      say "job $SLURM_JOB_ID is $state and is left to SLURM."
    elif scontrol requeue "$SLURM_JOB_ID"; then
      say "job $SLURM_JOB_ID is queued again."
    else
      say "job $SLURM_JOB_ID could not be queued again: the same sbatch command goes on."
    fi
  fi
  exit "$1"
}

say "job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-one node}," \
  "start $((${SLURM_RESTART_COUNT:-0} + 1)):$(printf ' %q' "${command[@]}")"
# In the background, because a shell answers signals only between its commands.
"${command[@]}" </dev/null &
step=$!
while :; do
  interrupted='' status=0
  wait "$step" || status=$?
  # After a signal that is not yet the status of srun.
  if [[ -z $interrupted ]]; then finish "$status"; fi
done
