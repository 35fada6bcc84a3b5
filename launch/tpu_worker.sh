#!/usr/bin/env bash
# What gcp_tpu.sh runs on every host of a TPU; it is copied there and not meant to be run by hand.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: tpu_worker.sh install --archive=FILE [--bucket=BUCKET]
       tpu_worker.sh run --attempt=ID -- ARGUMENTS OF hybrid_jax.main
       tpu_worker.sh stop

install  unpacks the code into ~/hybrid_jax, installs it and mounts the bucket at ~/bucket
run      trains and shows the output; run again with the same ID, it shows the same run
stop     sends SIGTERM to the run and waits until it has saved and ended
TEXT
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

code=$HOME/hybrid_jax
venv=$HOME/hybrid_jax_venv
state=$HOME/hybrid_jax_run
mount=$HOME/bucket
# The hosts of a TPU are called …-w-0, …-w-1 and so on.
worker=${HOSTNAME##*-w-}

# The run holds a lock for as long as it lives: a process number could belong to another process
# after a restart of the machine.
running() {
  ! flock --nonblock "$state/running" true
}

stop_run() {
  local tries
  running || return 0
  echo "[$worker] stopping the run that is going on"
  kill -TERM "$(cat "$state/pid")" 2>/dev/null || true
  for ((tries = 0; tries < 3000; tries++)); do
    running || return 0
    sleep 0.1
  done
  kill -KILL -- "-$(cat "$state/group")" 2>/dev/null || true
  sleep 1
}

apt_get() {
  # A machine that has just started may still be busy with its own updates.
  sudo -n apt-get -q -o DPkg::Lock::Timeout=300 "$@" >&2
}

find_python() {
  local candidate
  for candidate in python3.12 python3.13 python3.11 python3; do
    # Debian and Ubuntu have pythons that cannot make an environment: those lack ensurepip.
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

mount_bucket() {
  mkdir -p "$mount"
  if ! command -v gcsfuse >/dev/null; then
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
      sudo -n tee /usr/share/keyrings/gcsfuse.asc >/dev/null
    printf 'deb [signed-by=%s] https://packages.cloud.google.com/apt gcsfuse-%s main\n' \
      /usr/share/keyrings/gcsfuse.asc "$(lsb_release -cs)" |
      sudo -n tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    apt_get update
    apt_get install -y gcsfuse
  fi
  # A checkpoint is finished by renaming its folder, which gcsfuse refuses by default in buckets
  # without a hierarchical namespace; and what one host has written, the others must see at once.
  # The mount lives on in the background and must not keep our locks.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=1000000 \
    "$1" "$mount" </dev/null 8>&- 9>&-
}

install() {
  local python
  stop_run
  mkdir -p "$code"
  # Over the old code: a workdir in there may hold checkpoints.
  tar -xzf "$archive" -C "$code"
  if [[ ! -e $venv/complete ]]; then
    if ! python=$(find_python); then
      # The images for TPUs come with an older one.
      apt_get update || true
      apt_get install -y python3.11 python3.11-venv || true
      python=$(find_python) || fail "Worker $worker has no Python 3.11 or newer and could not" \
        "install one: choose a --runtime-version that has it, or install python3.12 and its venv" \
        "there."
    fi
    "$python" -m venv --clear "$venv"
    touch "$venv/complete"
  fi
  cd "$code"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[tpu]'
  printf '%s' "$bucket" >"$state/bucket"
  if [[ -n $bucket ]]; then
    ln -sfn "$mount" "$code/bucket"
    if mountpoint -q "$mount"; then fusermount -u "$mount"; fi
    mount_bucket "$bucket"
  fi
  echo "hybrid_jax is installed on worker $worker"
}

# Trains in the background, apart from the connection that has asked for it.
supervise() {
  local status=0
  # What a signal means is decided by the training; this shell has to live on to note its status.
  trap : HUP INT TERM
  cd "$code"
  (
    echo "$BASHPID" >"$state/pid"
    exec "$venv/bin/python" -u -m hybrid_jax.main "$@"
  ) || status=$?
  echo "$status" >"$state/status.part"
  mv "$state/status.part" "$state/status"
}

start() {
  stop_run
  # A restart of the machine takes the mount away.
  if [[ -s $state/bucket ]] && ! mountpoint -q "$mount"; then
    mount_bucket "$(cat "$state/bucket")"
  fi
  rm -f "$state/status"
  exec 8>"$state/running"
  flock 8
  # Job control gives the run a process group of its own.
  set -m
  supervise "$@" </dev/null >"$state/log" 2>&1 9>&- &
  set +m
  echo "$!" >"$state/group"
  exec 8>&-
  cat /proc/sys/kernel/random/boot_id >"$state/boot"
  echo "$attempt" >"$state/attempt"
}

show() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$worker" "$line"; done
}

# gcloud takes a broken connection for a failed start and runs its command again, while the first
# run goes on: so a run has a name, and the second time it is only shown.
run() {
  local lines=20 status
  if [[ $(cat "$state/attempt" 2>/dev/null) != "$attempt" ]]; then
    lines=+1
    start "$@"
  fi
  exec 9>&-
  if running; then
    tail -s 0.1 -n "$lines" --pid="$(cat "$state/group")" -f "$state/log" | show
  else
    tail -n "$lines" "$state/log" | show
  fi
  if ! status=$(cat "$state/status" 2>/dev/null); then
    # Killed without a word. If the machine has been restarted, that is the reason, and the run may
    # go on as after any other preemption.
    status=137
    if [[ $(cat "$state/boot") != "$(cat /proc/sys/kernel/random/boot_id)" ]]; then status=75; fi
  fi
  # Said in a line and not by this script's own status: of several hosts gcloud tells one status
  # only, and 255 from a host means a broken connection to it.
  echo "hybrid_jax exit status on worker $worker: $status"
}

command=${1-}
case $command in
-h | --help)
  usage
  exit 0
  ;;
install | run | stop) shift ;;
*) fail "Say what to do: install, run or stop (see --help)." ;;
esac
archive='' bucket='' attempt=''
while (($#)); do
  case $1 in
  --archive=*) archive=${1#*=} ;;
  --bucket=*) bucket=${1#*=} ;;
  --attempt=*) attempt=${1#*=} ;;
  --)
    shift
    break
    ;;
  *) fail "Unknown argument '$1' (see --help)." ;;
  esac
  shift
done
if [[ $command == install && -z $archive ]]; then fail "install needs --archive=FILE."; fi
if [[ $command == run && -z $attempt ]]; then fail "run needs --attempt=ID."; fi

mkdir -p "$state"
# One at a time, also when a connection breaks and the command arrives a second time.
exec 9>"$state/lock"
flock 9
case $command in
install) install ;;
run) run "$@" ;;
stop) stop_run ;;
esac
