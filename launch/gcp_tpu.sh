#!/usr/bin/env bash
# Usage: launch/gcp_tpu.sh --name=NAME --project=PROJECT --zone=ZONE [OPTIONS] -- ARGUMENTS
#
# Requests a TPU, installs the committed code of this checkout on all its hosts, runs
# `python -m hybrid_jax.main ARGUMENTS` there, and deletes the TPU when the run has ended, well or
# not. After a preemption another TPU goes on from the newest checkpoint. Output is added to
# logs/NAME.log here. Ctrl-C ends the watching only: the run and the TPU go on. The same command
# then makes the run save and stop, takes the code of then and goes on.
#
#   --type=TYPE       of the TPU, default v5litepod-16
#   --version=IMAGE   what its hosts run, default v2-alpha-tpuv5-lite
#   --spot            a cheaper TPU that may be taken away
#   --bucket=BUCKET   for --workdir=bucket/FOLDER; best one with a hierarchical namespace
#   --keep            do not delete the TPU
#
# With several hosts, gcloud wants its key in the agent: ssh-add ~/.ssh/google_compute_engine
# Exit status: the training's; 2 after a mistake in the arguments, 1 if there is no TPU to be had.
# Environment: POLL, seconds between two looks at the TPU, default 30.

set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2 && exit 2; }

name='' project='' zone='' type=v5litepod-16 version=v2-alpha-tpuv5-lite bucket='' spot='' keep=''
while (($#)); do
  case $1 in
  -h | --help) exec sed -n '/^# Usage/,/^$/s/^# \{0,1\}//p' "$0" ;;
  --name=* | --project=* | --zone=* | --type=* | --version=* | --bucket=*)
    option=${1%%=*} && printf -v "${option#--}" %s "${1#*=}" ;;
  --spot | --keep) printf -v "${1#--}" yes ;;
  --) shift && break ;;
  *) fail "Unknown argument '$1': what follows -- goes to the training (see --help)." ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  fail "Give --name=NAME, of small letters, digits and hyphens, with a letter first."
[[ -n $project && -n $zone ]] || fail "Give --project=PROJECT and, for example, --zone=us-west4-a."
(($#)) || fail "Say what to train after --, for example --config=configs/gamma_hybrid.py."
bucket=${bucket#gs://} bucket=${bucket%/} poll=${POLL:-30}
[[ $bucket != */* ]] || fail "Give --bucket=${bucket%%/*} alone: folders in it are for --workdir."
lasting=" --?workdir[= ](/${bucket:+|bucket/.})"
if [[ (-n $spot || -z $keep) && ! " $*" =~ $lasting ]]; then
  fail "Checkpoints have to outlive the TPU: give --bucket=BUCKET and --workdir=bucket/FOLDER (or" \
    "an absolute --workdir on a file system that the hosts share), or --keep without --spot."
fi
command -v gcloud >/dev/null || fail "There is no gcloud: see https://cloud.google.com/sdk."
cd "$(dirname "$0")/.."
commit=$(git rev-parse --short HEAD 2>/dev/null) ||
  fail "$PWD has no git commit: what is trained is the newest one."

# Functions for the hosts. gcloud takes a broken connection for a failed start and gives its command
# again while the first is still at work: so `install_code` waits, and a run starts once only.

mount_bucket() {
  if [[ -z $1 ]] || mountpoint -q ~/hybrid_jax/bucket; then return; fi
  # A checkpoint is finished by renaming its folder, which gcsfuse refuses by default in buckets
  # without a hierarchical namespace; and what one host has written, the others must see at once.
  # It stays in the background, where it must not hold the lock.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=1000000 \
    "$1" ~/hybrid_jax/bucket </dev/null 9>&-
}

install_code() {
  local archive=$1 bucket=$2 keys=/usr/share/keyrings/gcsfuse.asc run
  set -e
  mkdir -p ~/hybrid_jax/bucket ~/hybrid_jax_runs
  exec 9>~/hybrid_jax_runs.lock
  flock 9
  # A run holds its lock for as long as it lives; after a reboot its number may be another's.
  for run in ~/hybrid_jax_runs/*; do
    if [[ ! -e $run/lock ]] || flock --nonblock "$run/lock" true; then continue; fi
    pkill -TERM -P "$(cat "$run/pid")" || true
    flock --wait=600 "$run/lock" true || pkill -KILL -P "$(cat "$run/pid")" || true
  done
  # Over the old code, as a workdir may be in there.
  tar -xzf "$archive" -C ~/hybrid_jax
  cd ~/hybrid_jax
  # The Python of the images is too old; uv brings one.
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -e .venv ]] || uv venv --quiet --python=3.12
  uv pip install --quiet -e '.[tpu]'
  if [[ -n $bucket ]] && ! command -v gcsfuse >/dev/null; then
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee $keys >/dev/null
    echo "deb [signed-by=$keys] https://packages.cloud.google.com/apt" \
      "gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
    # A machine that has just started may still be busy with its own updates.
    sudo apt-get -q -o DPkg::Lock::Timeout=300 update
    sudo apt-get -q -o DPkg::Lock::Timeout=300 install -y gcsfuse
  fi
  # Another bucket may be there from before.
  ! mountpoint -q bucket || fusermount -u bucket
  mount_bucket "$bucket"
}

train() {
  local run=~/hybrid_jax_runs/$1 follow=()
  if ! mount_bucket "$2" || ! cd ~/hybrid_jax; then return 1; fi # a reboot unmounts
  if mkdir "$run" 2>/dev/null; then
    exec 9>"$run/lock" && flock 9 && touch "$run/log"
    # With job control it gets a group of its own, apart from the connection.
    set -m
    {
      # What a signal means is decided by the training; this shell lives on to note the status.
      trap : HUP INT TERM
      .venv/bin/python -u -m hybrid_jax.main "${@:3}" 9>&-
      echo "$?" >"$run/status"
    } </dev/null >>"$run/log" 2>&1 &
    echo "$!" >"$run/pid"
    set +m
    exec 9>&-
  fi
  if ! flock --nonblock "$run/lock" true; then follow=(-s 0.1 -f --pid="$(cat "$run/pid")"); fi
  tail -n 1000 "${follow[@]}" "$run/log" | sed -u "s/^/[${HOSTNAME##*-w-}] /"
  # Whatever became of tail, a run that still lives is not reported.
  flock "$run/lock" true
  # Without a status it has ended with the machine, and may go on. In a line of its own, as gcloud
  # tells the status of one host only, and takes 255 for a broken connection.
  printf '\nhybrid_jax has ended with status %s\n' "$(cat "$run/status" 2>/dev/null || echo 75)"
}

tmp=$(mktemp -d) log=logs/$name.log code=hybrid_jax_$name.tar.gz
tpus=(gcloud compute tpus) where=("$name" --project="$project" --zone="$zone" --quiet)
delete=("${tpus[@]}" queued-resources delete "${where[@]}" --force)
there='' was_ready='' prepared='' id='' failures=0 # there: '', asked (for) or yes

say() { printf '%s %s\n' "$(date '+%F %T')" "$*" | tee -a "$log" >&2; }
logged() { "$@" </dev/null 2>&1 | tee -a "$log"; }

goodbye() {
  pkill -P $$ || true
  rm -rf "$tmp"
  if [[ -z $there ]]; then return; fi
  say "$name is not deleted and costs money: the same command goes on with it, this one deletes it:"
  say "${delete[@]}"
}

finish() {
  say "$2"
  if [[ -n $there && -z $keep ]]; then remove; fi
  exit "$1"
}

on_hosts() {
  logged "${tpus[@]}" tpu-vm ssh "${where[@]}" --worker=all \
    --command="$(declare -f mount_bucket "$1"); $(printf ' %q' "$@")" | tee "$tmp/output"
}

ask() {
  "${tpus[@]}" "$1" describe "${where[@]}" --format="value($2)" </dev/null 2>"$tmp/errors" && return
  if grep -q NOT_FOUND "$tmp/errors"; then echo ABSENT; else echo UNKNOWN; fi
}

# The request says ACTIVE for a while after its TPU has been taken away, so both are asked.
look() {
  state=$(ask queued-resources state.state)
  if [[ $state == ACTIVE ]]; then state=$(ask tpu-vm state | sed s/ABSENT/TAKEN_AWAY/); fi
}

remove() {
  # A request that is just being suspended cannot be deleted yet.
  until look && [[ $state == ABSENT ]]; do logged "${delete[@]}" || sleep "$poll"; done
  there='' prepared=''
}

acquire() {
  local before=''
  while look; do
    if [[ $state != "$before" ]]; then say "$name: $state"; fi
    before=$state
    case $state/$there in
    READY/*) there=yes was_ready=yes && return ;;
    # The first time it is most likely a mistake, later the network.
    UNKNOWN/) [[ -n $was_ready ]] || finish 1 "gcloud does not answer: $(cat "$tmp/errors")" ;;
    ABSENT/yes) there='' && finish 1 "Somebody has deleted $name, so this ends." ;;
    ABSENT/)
      # Set first: the request may be in already when a signal comes.
      there=asked
      logged "${tpus[@]}" queued-resources create "${where[@]}" --node-id="$name" ${spot:+--spot} \
        --accelerator-type="$type" --runtime-version="$version" ||
        if [[ -z $was_ready ]]; then finish 1 "The TPU could not be requested."; else there=''; fi
      ;;
    FAILED/* | SUSPEND* | TAKEN_AWAY/* | PREEMPTED/* | TERMINATED/* | STOPP* | HID*)
      # A first request that fails is most likely wrong; a later one has met a shortage.
      if [[ $state/$was_ready == FAILED/ && -n $there ]]; then
        finish 1 "The request has failed: $("${tpus[@]}" queued-resources describe "${where[@]}")"
      fi
      remove
      ;;
    UNKNOWN/* | ABSENT/*) ;;
    *) there=yes ;;
    esac
    sleep "$poll"
  done
}

# Returns if the run is to go on.
attempt() {
  if [[ -z $prepared ]]; then
    logged "${tpus[@]}" tpu-vm scp "$tmp/$code" "$name:" "${where[@]:1}" --worker=all || return 1
    on_hosts install_code "$code" "$bucket" || return 1
    prepared=yes id='' failures=0
  fi
  id=${id:-$(date '+%Y%m%d-%H%M%S')-$RANDOM}
  on_hosts train "$id" "$bucket" "$@" || return 1
  failures=0
  # A run that was stopped may go on, whatever other hosts say. Of failures the lowest counts: from
  # 128 on it is often the echo of a crash elsewhere.
  status=$(sed -n 's/.*hybrid_jax has ended with status //p' "$tmp/output" | sort -nu)
  if [[ -z $status ]]; then return 1; fi
  if grep -qx 75 <<<"$status"; then say "The run was stopped and goes on." && id='' && return; fi
  status=$(grep -vx -m 1 0 <<<"$status" || echo 0)
  # A TPU that was taken away is replaced; if the network is away, the same run is asked for again.
  look
  if [[ $state != READY && $status != 0 ]]; then return; fi
  finish "$status" "The training has ended with status $status."
}

mkdir -p logs
trap goodbye EXIT
# Or bash would go on after a gcloud that answers Ctrl-C by ending in good order.
trap 'exit 130' INT
git archive --format=tar.gz --output="$tmp/$code" HEAD
if [[ -n $(git status --porcelain) ]]; then say "warning: uncommitted changes are not copied."; fi
say "commit $commit for $name:$(printf ' %q' "$@")"
while acquire; do
  # If it was taken away, its state tells a little later.
  attempt "$@" || say "$name has refused this, or the connection is lost: trial $((++failures))."
  if ((failures == 10)); then finish 1 "$name is given up."; fi
  sleep "$poll"
done
