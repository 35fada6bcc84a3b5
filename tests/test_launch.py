"""The scripts in launch/ against a make-believe cloud, cluster and training.

What stands in for `gcloud` has a folder as home of every host and runs there what it is told to run
by ssh. What stands in for the training does what a test has written into the file `plan`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
NASTY = ["--a=two words", "it's", '"hi"', "*", "$HOME", "`id`", "a\\b", "\t", "", "é;&", "a\nb"]
TPU = ["--name=me", "--project=p", "--zone=z"]
TRAIN = ["--", "--config=c.py"]
SHARED = [*TRAIN, "--workdir=/shared/x"]
BUCKET = [*TRAIN, "--workdir=bucket/x"]

# Notes its name and arguments, in one piece as others may write too: bash writes at each newline.
NOTE = """#!/bin/bash
words=("${0##*/}" "$@" $'\\x1e')
printf '%s\\x1f' "${words[@]//$'\\n'/$'\\x1d'}" >>"$FAKE/calls"
"""

# The states of both; while there are several of the request, the first is told once.
GCLOUD = """
cd "$FAKE" || exit
case "$3 $4" in
*describe)
  if [[ -e offline ]]; then echo no network >&2 && exit 1; fi
  if [[ ! -e $3 ]]; then echo NOT_FOUND >&2 && exit 1; fi
  head -n 1 "$3"
  (($(wc -l <"$3") == 1)) || sed -i 1d "$3" ;;
*create) cp created queued-resources && echo READY >tpu-vm ;;
*delete) rm undeletable 2>/dev/null || rm -rf queued-resources tpu-vm hosts/?/* ;;
*scp) for host in hosts/*; do cp "$5" "$host"; done ;;
*ssh)
  set -m
  for host in hosts/*; do
    export HOME=$FAKE/$host HOSTNAME=t1v-n-0-w-${host##*/}
    PATH=$FAKE/remote:$PATH bash -c "cd; ${!##--command=}" &
  done
  while [[ -n $(jobs -pr) ]]; do
    sleep 0.02
    if [[ -e cut ]]; then
      for group in $(jobs -p); do kill -KILL -- "-$group"; done
      rm cut && exit 255
    fi
  done
  [[ $(cat tpu-vm) == READY ]] || exit 255
  for job in $(jobs -p); do wait "$job" || exit; done ;;
esac
"""

TRAINING = """
if [[ $1 == -c ]]; then exec python3 "$@"; fi
index=${HOSTNAME##*-w-}
for word; do if [[ $word == --process=* ]]; then index=${word#*=}; fi; done
start=$(cat "$FAKE/starts-$index" 2>/dev/null | wc -l)
echo >>"$FAKE/starts-$index"
got() { echo "got $1" | tee -a "$FAKE/got" && exit "$2"; }
trap 'got TERM 75' TERM
trap 'got INT 130' INT
await() { until [[ -e $FAKE/$1 ]]; do sleep 0.02; done; }
echo "start $start of $index"
echo "to stderr" >&2
touch "$FAKE/ready-$index"
source "$FAKE/plan"
"""


class Fake:
    """Commands that stand in for real ones, and what they have been called with."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.scripts = LAUNCH
        self.write("plan", "exit 0")
        self.command("bin/gcloud")
        unwanted = ("SLURM_", "JAX_", "VENV", "PYTHON")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        path = f"{folder}/bin:{os.environ['PATH']}"
        self.environment = kept | {"PATH": path, "FAKE": str(folder), "POLL": "0.05"}

    def write(self, name: str, *lines: str):
        (self.folder / name).write_text("\n".join([*lines, ""]))

    def command(self, name: str, text: str = "") -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NOTE + text)
        path.chmod(0o755)
        return str(path)

    def calls(self, name: str) -> list[list[str]]:
        file = self.folder / "calls"
        text = file.read_text().replace("\x1d", "\n") if file.exists() else ""
        every = text.split("\x1e\x1f")[:-1]
        return [words for first, *words in (c.split("\x1f")[:-1] for c in every) if first == name]

    def steps(self) -> str:
        """The commands that gcloud was given, without the questions."""
        calls = [call for call in self.calls("gcloud") if call[3] != "describe"]
        ssh = ["train" if "train ()" in call[-1] else "install" for call in calls]
        return " ".join(w if c[3] == "ssh" else c[3] for c, w in zip(calls, ssh, strict=True))

    def start(self, script: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [self.scripts / script, *arguments], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, script: str, *arguments: str) -> tuple[int, str, str]:
        return end(self.start(script, *arguments))

    def ready(self):
        wait_for(lambda: all((self.folder / f"ready-{index}").exists() for index in (0, 1)))

    def alive(self) -> list[str]:
        """Processes that descend from this test's commands."""
        grep = f"grep -lsxzF 'FAKE={self.folder}' /proc/[0-9]*/environ"
        found = subprocess.run(["bash", "-c", grep], capture_output=True, text=True).stdout
        return re.findall(r"\d+", found)


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    output, words = process.communicate(timeout=30)
    return process.returncode, output, words


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def fake(tmp_path):
    fake = Fake(tmp_path)
    yield fake
    subprocess.run(["kill", "-KILL", *fake.alive()], capture_output=True)


def test_shellcheck_and_help():
    program = Path(sys.executable).with_name("shellcheck")
    assert program.exists(), "install the development tools: pip install -e '.[dev]'"
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.parent.glob("benchmarks/*.sh")]
    done = subprocess.run([program, *scripts], capture_output=True)
    assert (done.returncode, done.stdout.decode()) == (0, "")
    for script in LAUNCH.glob("*.sh"):
        output = subprocess.run([script, "--help"], capture_output=True, check=True).stdout
        assert output.startswith(b"Usage: ")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("gcp_tpu.sh", [], "Give --name=NAME"),
        ("gcp_tpu.sh", [*TPU, "--zone=", *SHARED], "--zone=us-west4-a"),
        ("gcp_tpu.sh", [*TPU, "--config=c.py"], "Unknown argument '--config=c.py'"),
        ("gcp_tpu.sh", [*TPU, "--"], "Say what to train after --"),
        ("gcp_tpu.sh", [*TPU, *BUCKET], "give --bucket=BUCKET"),
        ("gcp_tpu.sh", [*TPU, "--bucket=b", *TRAIN, "--workdir=runs"], "--workdir=bucket/FOLDER"),
        ("gcp_tpu.sh", [*TPU, "--bucket=gs://b/c", *BUCKET], "Give --bucket=b alone: folders"),
        ("gcp_tpu.sh", [*TPU, "--keep", "--spot", *TRAIN], "--keep without --spot"),
        ("slurm_gpu.sh", ["--config=c.py"], "Say what to train after --"),
        ("slurm_gpu.sh", TRAIN, "Submit this: sbatch"),
        ("local_multiprocess.sh", TRAIN, "--processes=2"),
        ("local_multiprocess.sh", ["--processes=0", *TRAIN], "--processes=2"),
        ("local_multiprocess.sh", ["--processes=2"], "-- --config="),
    ],
)
def test_mistakes_are_told_in_one_sentence(fake, script, arguments, message):
    status, output, words = fake.run(script, *arguments)
    assert (status, output) == (2, "")
    assert re.fullmatch(r"error: .*\.\n", words)
    assert message in words
    assert fake.calls("gcloud") == []


@pytest.fixture
def cloud(fake):
    """A make-believe Google Cloud with a TPU of two hosts, and a checkout to launch from."""
    for host in "01":
        (fake.folder / "hosts" / host).mkdir(parents=True)
    fake.write("created", "ACTIVE")
    fake.command("bin/gcloud", GCLOUD)
    fake.command("training", TRAINING)
    fake.command("remote/uv", '[[ $1 == pip ]] || install -D "$FAKE/training" .venv/bin/python')
    fake.command("remote/gcsfuse", 'touch "${!#}/mounted"')
    fake.command("remote/fusermount", 'rm "${!#}/mounted"')
    fake.command("remote/mountpoint", "[[ -e ${!#}/mounted ]]")
    fake.scripts = fake.folder / "check out" / "launch"
    shutil.copytree(LAUNCH, fake.scripts)
    fake.write("check out/code.txt", "committed")
    identity = "-c user.name=n -c user.email=e"
    git = f"git init && git add . && git {identity} commit --no-gpg-sign -m m"
    subprocess.run(["bash", "-c", git], cwd=fake.scripts.parent, check=True, capture_output=True)
    return fake


ONCE = "create scp install train delete"
DELETE = "gcloud compute tpus queued-resources delete me --project=p --zone=z --quiet --force"


def test_tpu_the_whole_way(cloud):
    cloud.write("created", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    cloud.write("check out/code.txt", "changed")
    cloud.write("plan", "cat code.txt")
    train = [*NASTY, "--workdir=bucket/x"]
    options = ["--spot", "--type=v6e-8", "--bucket=gs://b/"]
    status, output, words = cloud.run("gcp_tpu.sh", *TPU, *options, "--", *train)
    assert status == 0, words
    assert cloud.steps() == ONCE
    create = cloud.calls("gcloud")[1]
    assert {
        "queued-resources",
        "--node-id=me",
        "--accelerator-type=v6e-8",
        "--spot",
        *TPU[1:],
    } < set(create)
    assert cloud.calls("python") == [["-u", "-m", "hybrid_jax.main", *train]] * 2
    assert cloud.calls("uv")[-1] == ["pip", "install", "--quiet", "-e", ".[tpu]"]
    mounts = sorted(call[-2:] for call in cloud.calls("gcsfuse"))
    assert mounts == [["b", f"{cloud.folder}/hosts/{i}/hybrid_jax/bucket"] for i in (0, 1)]
    log = (cloud.folder / "check out/logs/me.log").read_text()
    for index in "01":
        for line in (f"start 0 of {index}", "to stderr", "committed"):
            assert f"[{index}] {line}\n" in output
            assert f"[{index}] {line}\n" in log
    assert "warning: uncommitted changes are not copied" in words
    assert "costs money" not in words


def test_tpu_that_is_there_is_taken_and_kept(cloud):
    for bucket in "bc":
        status, _, words = cloud.run("gcp_tpu.sh", *TPU, "--keep", f"--bucket={bucket}", *BUCKET)
        assert status == 0
        assert DELETE in words
    assert cloud.steps() == "create scp install train scp install train"
    assert [call[-2] for call in cloud.calls("gcsfuse")] == ["b", "b", "c", "c"]


def test_tpu_preempted_in_the_middle(cloud):
    """Remains are deleted, the machines go without a word, and no other can be had at once."""
    cloud.write("queued-resources", "FAILED")
    gone = 'await failing; echo PREEMPTED >"$FAKE/tpu-vm"; kill -KILL $PPID $$'
    cloud.write("plan", f"((start)) || {{ {gone}; }}")
    script = cloud.start("gcp_tpu.sh", *TPU, "--spot", *SHARED)
    cloud.ready()
    for name in ("created", "failing", "undeletable"):
        cloud.write(name, "FAILED")
    wait_for(lambda: "create delete create delete" in cloud.steps())
    (cloud.folder / "created").unlink()
    wait_for(lambda: "create create" in cloud.steps())
    cloud.write("created", "ACTIVE")
    status, output, words = end(script)
    assert status == 0, words
    assert cloud.steps().startswith(f"delete {ONCE} delete create delete")
    assert cloud.steps().endswith(f"create {ONCE}")
    assert "[0] start 1 of 0" in output


@pytest.mark.parametrize(("first", "status"), [("75 1", 0), ("1 134", 1), ("134 3", 3), ("0 2", 2)])
def test_tpu_status(cloud, first, status):
    """A run that was stopped goes on where it is; a failure is told, and the TPU deleted."""
    cloud.write("plan", f"statuses=({first}); ((start)) || exit ${{statuses[index]}}")
    assert cloud.run("gcp_tpu.sh", *TPU, *SHARED)[0] == status
    assert cloud.steps() == ONCE.replace("train", "train" if status else "train train")


def test_tpu_connection_breaks_and_the_run_goes_on(cloud):
    cloud.write("plan", "await finished")
    script = cloud.start("gcp_tpu.sh", *TPU, *SHARED)
    cloud.ready()
    cloud.write("cut")
    wait_for(lambda: "train train" in cloud.steps())
    cloud.write("offline")
    cloud.write("cut")
    log = cloud.folder / "check out/logs/me.log"
    wait_for(lambda: "UNKNOWN" in log.read_text())
    (cloud.folder / "offline").unlink()
    cloud.write("finished")
    assert end(script)[0] == 0
    assert cloud.steps() == ONCE.replace("train", "train train train")
    assert len(cloud.calls("python")) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tpu_ctrl_c_ends_the_watching_and_the_same_command_goes_on(cloud, number):
    cloud.write("plan", "((start)) || await never")
    with cloud.start("gcp_tpu.sh", *TPU, *SHARED) as script:
        cloud.ready()
        os.killpg(script.pid, number)
        assert script.wait(timeout=30) in (130, -number)
        words = script.stderr.read()
    assert "costs money" in words
    assert DELETE in words
    assert cloud.run("gcp_tpu.sh", *TPU, *SHARED)[0] == 0
    assert (cloud.folder / "got").read_text() == "got TERM\n" * 2
    assert cloud.steps() == f"create scp install train {ONCE[7:]}"
    wait_for(lambda: not cloud.alive())


@pytest.mark.parametrize(
    ("what", "text", "steps", "message"),
    [
        ("offline", "", "", "no network"),
        ("created", "FAILED", "create delete", "The request has failed: FAILED"),
        ("created", None, "create", "The TPU could not be requested"),
        ("remote/uv", "exit 1", f"create{' scp install' * 10} delete", "me is given up"),
    ],
)
def test_tpu_that_cannot_be_had(cloud, what, text, steps, message):
    cloud.write(what, text) if text is not None else (cloud.folder / what).unlink()
    status, _, words = cloud.run("gcp_tpu.sh", *TPU, *SHARED)
    assert (status, cloud.steps()) == (1, steps)
    assert message in words
    assert "costs money" not in words


def test_tpu_deleted_by_somebody_else(cloud):
    cloud.write("plan", "await never")
    script = cloud.start("gcp_tpu.sh", *TPU, *SHARED)
    cloud.ready()
    (cloud.folder / "queued-resources").unlink()
    cloud.write("cut")
    status, _, words = end(script)
    assert (status, cloud.steps()) == (1, "create scp install train")
    assert "Somebody has deleted me" in words
    assert "costs money" not in words


@pytest.fixture
def slurm(fake):
    fake.command("bin/srun", 'source "$FAKE/plan"')
    fake.command("bin/squeue", 'cat "$FAKE/state"')
    fake.command("bin/scancel", 'touch "$FAKE/signalled"')
    fake.command("bin/scontrol")
    fake.command(".venv/bin/python")
    fake.write("state", "RUNNING")
    fake.environment |= {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    return fake


@pytest.mark.parametrize(
    ("status", "state", "again"),
    [(0, "RUNNING", 0), (1, "RUNNING", 0), (75, "RUNNING", 1), (75, "COMPLETING", 0)],
)
def test_slurm_status_and_requeue(slurm, status, state, again):
    slurm.write("plan", f"exit {status}")
    slurm.write("state", state)
    assert slurm.run("slurm_gpu.sh", "--", *NASTY)[0] == status
    options = ["--kill-on-bad-exit=0", "--cpus-per-task=8"]
    command = [*options, ".venv/bin/python", "-u", "-m", "hybrid_jax.main", *NASTY]
    assert slurm.calls("srun") == [command]
    assert slurm.calls("scontrol") == [["requeue", "7"]] * again
    # sbatch reads options up to the first command.
    text = (LAUNCH / "slurm_gpu.sh").read_text().partition("\n\n")[0]
    for option in ("--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--signal=TERM@120"):
        assert f"\n#SBATCH {option}\n" in text


def test_slurm_signals_to_the_script_reach_the_training(slurm):
    slurm.write("plan", "echo start; until [[ -e $FAKE/signalled ]]; do :; done; exit 75")
    script = slurm.start("slurm_gpu.sh", *TRAIN)
    assert script.stdout.readline() == "start\n"
    script.send_signal(signal.SIGTERM)
    assert end(script)[0] == 75
    assert slurm.calls("scancel") == [["--signal=TERM", "7"]]
    assert slurm.calls("scontrol") == [["requeue", "7"]]


@pytest.fixture
def local(fake):
    fake.environment |= {"PYTHON": fake.command("bin/some python", TRAINING), "GRACE": "1"}
    return fake


def test_local_processes_are_told_of_each_other(local):
    local.write("plan", 'echo "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES"; seq 3000; printf last')
    status, output, words = local.run("local_multiprocess.sh", "--processes=3", "--", *NASTY)
    assert (status, words) == (0, "")
    calls = sorted(local.calls("some python")[1:], key=lambda call: call[-1])
    port = calls[0][-3]
    assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d{4,5}", port)
    for index, call in enumerate(calls):
        flags = [port, "--processes=3", f"--process={index}"]
        assert call == ["-u", "-m", "hybrid_jax.main", *NASTY, *flags]
        own = [line[4:] for line in output.splitlines() if line.startswith(f"[{index}] ")]
        assert own[:3] == [f"start 0 of {index}", "to stderr", "cpu 1"]
        assert own[3:] == [*map(str, range(1, 3001)), "last"]
    assert len(calls) == 3


@pytest.mark.parametrize(("name", "status"), [("TERM", 75), ("HUP", 75), ("INT", 130)])
def test_local_signals_reach_every_process_once(local, name, status):
    local.write("plan", "await never")
    script = local.start("local_multiprocess.sh", "--processes=2", *TRAIN)
    local.ready()
    assert "start 0" in script.stdout.readline()
    # Ctrl-C in a terminal goes to the group.
    send = os.killpg if name == "INT" else os.kill
    send(script.pid, signal.Signals[f"SIG{name}"])
    assert end(script)[0] == status
    assert (local.folder / "got").read_text() == f"got {name.replace('HUP', 'TERM')}\n" * 2
    wait_for(lambda: not local.alive())


@pytest.mark.parametrize(
    ("ends", "status"), [("75 75", 75), ("75 1", 1), ("0 3", 3), ("130 2", 2), ("3 hang", 3)]
)
def test_local_status(local, ends, status):
    """After a failure the others are not waited for, even if they heed no signal."""
    hang = "[[ $end != hang ]] || { trap '' TERM INT; await never; }"
    local.write("plan", f"ends=({ends}); end=${{ends[index]}}; {hang}; exit $end")
    done, _, words = local.run("local_multiprocess.sh", "--processes=2", *TRAIN)
    assert done == status
    told = f"A process has ended with status {status}; the others are killed in 1 s.\n"
    assert words == told or ends != "3 hang"
    assert len(local.calls("some python")) == 3
    wait_for(lambda: not local.alive())
