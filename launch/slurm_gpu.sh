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

# Usage: sbatch [SBATCH OPTIONS] launch/slurm_gpu.sh -- ARGUMENTS
#
# Runs `python -m hybrid_jax.main ARGUMENTS` with one process for each GPU, by default of one node
# with eight. For others, give for example --nodes=4 --ntasks-per-node=4 --gpus-per-node=4 (and no
# --gpus-per-task: JAX picks the GPU of a process by its number, so each has to see all of them).
# Two minutes before the time limit the training saves; then the job is queued again and goes on.
# Exit status: the training's. Environment: VENV, default .venv of the folder you submit from.

set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2 && exit 2; }

if [[ ${1-} == -h || ${1-} == --help ]]; then exec sed -n '/^# Usage/,/^$/s/^# \{0,1\}//p' "$0"; fi
[[ ${1-} == -- && $# -gt 1 ]] ||
  fail "Say what to train after --, for example -- --config=configs/gamma_hybrid.py:base (options" \
    "of SLURM stand before the script)."
[[ -n ${SLURM_JOB_ID-} ]] || fail "Submit this: sbatch launch/slurm_gpu.sh -- ARGUMENTS."
cd "${SLURM_SUBMIT_DIR:-.}"
python=${VENV:-.venv}/bin/python
[[ -x $python ]] || fail "There is no $python in $PWD: install hybrid_jax there, or set VENV."

# A site or an option may make SLURM signal this shell, not the processes; srun would kill them.
trap 'signalled=yes; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM USR1
# The first process that has saved must not end the others, and sbatch's number of processors counts
# for srun only if it is repeated.
srun --kill-on-bad-exit=0 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "$python" -u -m hybrid_jax.main "${@:2}" </dev/null &
# In the background, because a shell answers signals only between its commands.
signalled=yes
while [[ -n $signalled ]]; do
  signalled='' status=0
  wait "$!" || status=$?
done
# Otherwise it has been cancelled, or preempted and is queued again by SLURM itself.
if ((status == 75)) && [[ $(squeue -h -o %T -j "$SLURM_JOB_ID" || echo RUNNING) == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID" || echo "Not queued again: give the same command again." >&2
fi
exit "$status"
