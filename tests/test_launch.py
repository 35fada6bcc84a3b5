"""The scripts in launch/ against a make-believe cloud, cluster and training.

What stands in for `gcloud` has a folder as home of every host, runs there what it is told to run by
ssh, and notes its arguments; what stands in for Python notes its own and ends as the test says.
"""

import ast
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
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
# Isolated and without site-packages, a Python starts in a few milliseconds.
PYTHON = f"#!{sys.executable} -IS\n"
# Notes its arguments, where no more than words are expected.
NOTE = '#!/bin/bash\nprintf "[\\"%s\\"]\\n" "$*" >>"$FAKE/${0##*/}.calls"\n'
NASTY = [
    "--config.a=two words",
    "it's",
    'say "hi"',
    "*",
    "$HOME",
    "`id`",
    "a\\b",
    "tab\there",
    "",
    "é;&",
]

GCLOUD = """
import os, sys, time

cloud = os.environ["FAKE"]
arguments = sys.argv[1:]
verb = " ".join(arguments[2:4])
resource, vm, cut = f"{cloud}/resource", f"{cloud}/vm", f"{cloud}/cut"

def read(path):
    with open(path) as file:
        return file.read()

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

plan = eval(read(f"{cloud}/plan"))
with open(f"{cloud}/gcloud.calls", "a") as log:
    log.write(repr(arguments) + "\\n")
hosts = [f"{cloud}/hosts/{host}" for host in sorted(os.listdir(f"{cloud}/hosts"))]
print("noise of gcloud", file=sys.stderr)

def end(status, words=""):
    print(words, file=sys.stderr if status else sys.stdout)
    sys.exit(status)

def fails(name):
    # Whether this is one of the first calls, which the plan says fail.
    if plan.get(name, 0) <= 0:
        return False
    plan[name] -= 1
    write(f"{cloud}/plan", repr(plan))
    return True

def kill_group(group):
    try:
        os.killpg(group, 9)
    except ProcessLookupError:
        pass

def power_off():
    for process in os.listdir("/proc"):
        try:
            with open(f"/proc/{process}/environ", "rb") as file:
                if f"HOME={cloud}/hosts/".encode() in file.read():
                    os.kill(int(process), 9)
        except (OSError, ValueError):
            pass

if verb.endswith("describe") and (fails("unreachable") or "offline" in plan):
    end(1, "ERROR: there is no network")
if verb == "queued-resources create":
    if os.path.exists(resource):
        end(1, "ERROR: ALREADY_EXISTS")
    if "refuse" in plan or os.path.exists(f"{cloud}/requested") and fails("exhausted"):
        end(1, "ERROR: no such accelerator")
    write(f"{cloud}/requested", "")
    states = plan["states"].pop(0) if len(plan["states"]) > 1 else plan["states"][0]
    write(f"{cloud}/plan", repr(plan))
    write(resource, repr(states))
    write(vm, "READY")
elif verb == "queued-resources describe":
    if not os.path.exists(resource):
        end(1, "ERROR: (gcloud) NOT_FOUND: Resource was not found")
    states = eval(read(resource))
    write(resource, repr(states[1:] or states))
    end(0, states[0])
elif verb == "tpu-vm describe":
    if not os.path.exists(vm):
        end(1, "ERROR: (gcloud) NOT_FOUND: Resource was not found")
    end(0, read(vm))
elif verb == "queued-resources delete":
    import shutil
    if "--force" not in arguments or fails("undeletable"):
        end(1, "ERROR: cannot be deleted now")
    power_off()
    for host in hosts:
        shutil.rmtree(host)
        os.mkdir(host)
    os.remove(resource)
    if os.path.exists(vm):
        os.remove(vm)
elif verb == "tpu-vm scp":
    import shutil
    if fails("unsendable"):
        end(1, "ERROR: scp")
    *files, target = [part for part in arguments[4:] if not part.startswith("--")]
    assert target.endswith(":") and "--worker=all" in arguments
    for host in hosts:
        for file in files:
            shutil.copy(file, host)
elif verb == "tpu-vm ssh":
    import subprocess
    command, = [part.partition("=")[2] for part in arguments if part.startswith("--command=")]
    assert "--worker=all" in arguments
    while True:
        shells = [
            subprocess.Popen(
                ["bash", "-c", command], cwd=host, start_new_session=True, stdin=subprocess.DEVNULL,
                env=os.environ | {"HOME": host, "HOSTNAME": f"t1v-n-0-w-{host[-1]}",
                                  "PATH": f"{cloud}/remote:{os.environ['PATH']}"})
            for host in hosts]
        while any(shell.poll() is None for shell in shells):
            time.sleep(0.02)
            gone = not os.path.exists(vm) or read(vm) != "READY"
            if gone:
                power_off()
            if gone or os.path.exists(cut):
                for shell in shells:
                    kill_group(shell.pid)
                    shell.wait()
                if gone:
                    sys.exit(255)
        if not os.path.exists(cut):
            break
        # The real one starts its command again when a connection breaks.
        os.remove(cut)
    sys.exit(next((shell.returncode for shell in shells if shell.returncode), 0))
else:
    end(2, "ERROR: unknown command")
"""

TRAINING = """
import os, sys, time

fake = os.environ["FAKE"]
with open(f"{fake}/plan") as file:
    plan = eval(file.read())
arguments = sys.argv[1:]
if arguments[0] == "-c" and "socket" in arguments[1]:
    os.execv(sys.executable, [sys.executable, *arguments])
index = os.environ.get("HOSTNAME", "").rpartition("-w-")[2]
for argument in arguments:
    if argument.startswith("--process="):
        index = argument.partition("=")[2]
note = {
    "index": index, "arguments": arguments, "folder": os.getcwd(), "python": sys.argv[0],
    "environment": {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "CUDA_"))},
}
with open(f"{fake}/python.calls", "a") as log:
    log.write(repr(note) + "\\n")
if arguments[0] == "-c":
    if "old" in plan:
        sys.version_info = (3, 10, 12)
        exec(arguments[1])
    sys.exit(0)
if arguments[:2] == ["-m", "venv"]:
    import shutil
    os.makedirs(f"{arguments[-1]}/bin")
    shutil.copy(sys.argv[0], f"{arguments[-1]}/bin/python")
if "hybrid_jax.main" not in arguments:
    sys.exit(0)

with open(f"{fake}/starts-{index}", "a") as starts:
    number = starts.tell()
    starts.write(".")
do = plan["runs"][min(number, len(plan["runs"]) - 1)]
if isinstance(do, list):
    do = do[int(index)]
print(f"start {number} of {index}", flush=True)
print("to stderr", file=sys.stderr, flush=True)
if do == "talk":
    print("\\n" * 30000, end="")
    sys.exit(0)
if isinstance(do, int):
    sys.stdout.write("last words without an end of line")
    sys.exit(do)
import signal
for name, status in (("SIGTERM", 75), ("SIGINT", 130)):
    def handler(number, frame, name=name, status=status):
        with open(f"{fake}/signals", "a") as signals:
            signals.write(name)
        time.sleep(0.1)
        print(f"got {name}", flush=True)
        os._exit(status)
    signal.signal(getattr(signal, name), signal.SIG_IGN if do == "hang" else handler)
if do == "preempt":
    # When all hosts are at work.
    sizes = ()
    while min(sizes, default=0) <= number:
        time.sleep(0.02)
        sizes = [os.path.exists(f) and os.path.getsize(f) for f in
                 (f"{fake}/starts-{host}" for host in os.listdir(f"{fake}/hosts"))]
    for name, text in (("resource", '["ACTIVE", "ACTIVE", "SUSPENDED"]'), ("vm", "PREEMPTED")):
        with open(f"{fake}/{name}", "w") as file:
            file.write(text)
if do == "cut" and index == "0":
    open(f"{fake}/cut", "w").close()
if do == "helper":
    import subprocess
    subprocess.Popen(["sleep", "30"])
    sys.exit(1)
open(f"{fake}/ready-{index}", "w").close()
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    time.sleep(0.02)
    if do == "cut" and not os.path.exists(f"{fake}/cut"):
        print("after the cut", flush=True)
        sys.exit(0)
sys.exit(99)
"""


class Fake:
    """Commands that stand in for real ones, what they have been called with, and their plan."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.here = folder / "a folder"
        for name in ("bin", "remote", "hosts", "a folder"):
            (folder / name).mkdir()
        self.plan(runs=[0])
        self.environment = {
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith(("SLURM_", "JAX_", "CUDA_")) and k not in ("VENV", "PYTHON")
            },
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "FAKE": str(folder),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    def plan(self, **values):
        (self.folder / "plan").write_text(repr(values))

    def command(self, name: str, text: str, folder: str = "bin") -> Path:
        path = self.folder / folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def notes(self, name: str) -> list:
        path = self.folder / f"{name}.calls"
        return (
            [ast.literal_eval(line) for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    def trainings(self) -> list[dict]:
        return [note for note in self.notes("python") if "hybrid_jax.main" in note["arguments"]]

    def arguments(self, script: str, *arguments: str) -> dict:
        return {
            "args": [str(LAUNCH / script), *arguments],
            "cwd": self.here,
            "env": self.environment,
        }

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            **self.arguments(script, *arguments), capture_output=True, text=True, timeout=30
        )

    def start(self, script: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            **self.arguments(script, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def alive(self) -> dict[int, str]:
        """Processes that descend from this test's commands."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"FAKE={self.folder}\0".encode() in (process / "environ").read_bytes():
                    words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if words:
                        found[int(process.name)] = words
            except OSError:
                continue
        return found


def wait_for(condition, seconds: float = 10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def fake(tmp_path):
    fake = Fake(tmp_path)
    yield fake
    for process in fake.alive():
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


# All scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_it(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert os.access(LAUNCH / script, os.X_OK)


def test_shellcheck():
    program = Path(sys.executable).with_name("shellcheck")
    assert program.exists(), "install the development tools: pip install -e '.[dev]'"
    scripts = [*(LAUNCH / script for script in SCRIPTS), *LAUNCH.parent.glob("benchmarks/*.sh")]
    done = subprocess.run([program, *scripts], capture_output=True)
    assert (done.returncode, done.stdout.decode()) == (0, "")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help(fake, script, flag):
    done = fake.run(script, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


TPU = ["--name=me", "--project=p", "--zone=z", "--accelerator-type=v5litepod-8"]
TRAIN = ["--", "--config=c.py"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("gcp_tpu.sh", [], "Give the TPU a name with --name=NAME"),
        ("gcp_tpu.sh", ["--name=me"], "--project=PROJECT"),
        ("gcp_tpu.sh", ["--name=me", "--project=p"], "--zone=us-west4-a"),
        ("gcp_tpu.sh", ["--name=Me/x"], "The name 'Me/x' will not do"),
        ("gcp_tpu.sh", [*TPU, "--nmae=x"], "Unknown argument '--nmae=x'"),
        ("gcp_tpu.sh", [*TPU, "--config=c.py"], "what follows -- goes to the training"),
        ("gcp_tpu.sh", TPU, "Say what to train after --"),
        ("gcp_tpu.sh", [*TPU, "--"], "Say what to train after --"),
        ("gcp_tpu.sh", [*TPU, "--max-restarts=many", *TRAIN], "not 'many'"),
        ("gcp_tpu.sh", [*TPU, "--poll=-1", *TRAIN], "not '-1'"),
        ("gcp_tpu.sh", [*TPU, "--zone=", *TRAIN], "--zone="),
        ("gcp_tpu.sh", [*TPU, "--spot", *TRAIN], "give --bucket=BUCKET and --workdir=bucket/"),
        ("gcp_tpu.sh", [*TPU, "--spot", *TRAIN, "--workdir=bucket/x"], "give --bucket=BUCKET"),
        ("gcp_tpu.sh", [*TPU, "--spot", "--bucket=b", *TRAIN], "--workdir=bucket/"),
        ("gcp_tpu.sh", [*TPU, "--spot", "--bucket=b", *TRAIN, "--workdir=runs"], "=bucket/"),
        ("gcp_tpu.sh", [*TPU, "--accelerator-type=v4-16", *TRAIN], "several hosts"),
        ("slurm_gpu.sh", [], "Say what to train after --"),
        ("slurm_gpu.sh", ["--config=c.py"], "Unknown argument '--config=c.py'"),
        ("slurm_gpu.sh", TRAIN, "submit it with sbatch"),
        ("local_multiprocess.sh", TRAIN, "for example --processes=2"),
        ("local_multiprocess.sh", ["--processes=0", *TRAIN], "for example --processes=2"),
        ("local_multiprocess.sh", ["--processes=2"], "Say what to train after --"),
        ("local_multiprocess.sh", ["--processes=2", "-x", *TRAIN], "Unknown argument '-x'"),
        ("local_multiprocess.sh", ["--processes=2", "--platform=tpu", *TRAIN], "not 'tpu'"),
        ("local_multiprocess.sh", ["--processes=2", "--grace=soon", *TRAIN], "not 'soon'"),
        ("local_multiprocess.sh", ["--processes=2", "--devices-per-process=", *TRAIN], "not ''"),
        ("tpu_worker.sh", [], "install, run or stop"),
        ("tpu_worker.sh", ["install"], "--archive=FILE"),
        ("tpu_worker.sh", ["run", *TRAIN], "--attempt=ID"),
        ("tpu_worker.sh", ["stop", "now"], "Unknown argument 'now'"),
    ],
)
def test_mistakes_are_told_in_one_sentence(fake, script, arguments, message):
    fake.command("gcloud", PYTHON + GCLOUD)
    done = fake.run(script, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(".\n")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert fake.notes("gcloud") == []
    assert list(fake.here.iterdir()) == []


# TPUs


class Cloud(Fake):
    """A make-believe Google Cloud, and a checkout of its own to launch from."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.hosts(1)
        self.plan(states=[["ACTIVE"]], runs=[0])
        self.command("gcloud", PYTHON + GCLOUD)
        self.command("python3.12", PYTHON + TRAINING, "remote")
        self.command("gcsfuse", NOTE + 'touch "${!#}/mounted"\n', "remote")
        self.command("fusermount", NOTE + 'rm "${!#}/mounted"\n', "remote")
        self.command("mountpoint", "#!/bin/bash\n[[ -e ${!#}/mounted ]]\n", "remote")
        self.checkout = folder / "check out"
        shutil.copytree(LAUNCH, self.checkout / "launch")
        (self.checkout / "code.txt").write_text("committed")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "m")

    def git(self, *arguments: str):
        subprocess.run(["git", *arguments], cwd=self.checkout, check=True, env=self.environment)

    def hosts(self, count: int):
        for host in range(count):
            (self.folder / "hosts" / str(host)).mkdir(exist_ok=True)

    def arguments(self, script: str, *arguments: str) -> dict:
        given = super().arguments(script, *arguments)
        return given | {"args": [str(self.checkout / "launch" / script), *given["args"][1:]]}

    def launch(self, *options: str, train=TRAIN) -> subprocess.CompletedProcess:
        return self.run("gcp_tpu.sh", *TPU, "--poll=0.05", *options, *train)

    def steps(self) -> list[str]:
        """What was asked of gcloud, without the questions."""
        steps = []
        for arguments in self.notes("gcloud"):
            step = arguments[3]
            if step == "ssh":
                step = arguments[-1].split()[2]
            if step != "describe":
                steps.append(step)
        return steps

    def log(self) -> str:
        return (self.here / "logs" / "me.log").read_text()


@pytest.fixture
def cloud(fake, tmp_path_factory):
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    yield cloud
    wait_for(lambda: not [kill(process) for process in cloud.alive()])


def kill(process: int):
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def expected(cloud: Cloud, *, spot=False, bucket="", train="--config=c.py") -> dict[str, list[str]]:
    where = ["--project=p", "--zone=z", "--quiet"]
    queue, vm = ["compute", "tpus", "queued-resources"], ["compute", "tpus", "tpu-vm"]
    ssh = [*vm, "ssh", "me", *where, "--worker=all"]
    install = "bash tpu_worker.sh install --archive=me.tar.gz"
    return {
        "state": [*queue, "describe", "me", *where, "--format=value(state.state)"],
        "vm": [*vm, "describe", "me", *where, "--format=value(state)"],
        "create": [*queue, "create", "me", *where, "--node-id=me",
                   "--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite",
                   *(["--spot"] if spot else [])],
        "scp": [*vm, "scp", f"{cloud.here}/logs/me.tar.gz",
                f"{cloud.checkout}/launch/tpu_worker.sh", "me:", *where, "--worker=all"],
        "install": [*ssh, f"--command={install}{bucket and f' --bucket={bucket}'}"],
        "run": [*ssh, f"--command=bash tpu_worker.sh run --attempt=ID -- {train}"],
        "delete": [*queue, "delete", "me", *where, "--force"],
    }  # fmt: skip


def without_id(nfe: list[list[str]]) -> list[list[str]]:
    attempt = r"(?<=--attempt=)\d{8}-\d{6}-\d+-\d+"
    return [[re.sub(attempt, "ID", argument) for argument in call] for call in nfe]


def test_tpu_the_whole_way(cloud):
    cloud.plan(states=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]], runs=[0])
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    nfe = expected(cloud)
    order = "state create state state state vm scp install run delete state"
    assert without_id(cloud.notes("gcloud")) == [nfe[step] for step in order.split()]
    states = re.findall(r"me: (\w+) \(after \d+ s\)", done.stderr)
    assert states == ["NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "READY"]
    assert "[0] start 0 of 0\n[0] to stderr\n[0] last words without an end of line\n" in done.stdout
    assert done.stdout in cloud.log() or set(done.stdout.splitlines()) <= set(
        cloud.log().splitlines()
    )
    assert "The run is done and me is deleted." in done.stderr
    assert "warning" not in done.stderr


def test_tpu_code_environment_and_arguments_of_the_run(cloud):
    done = cloud.launch("--keep", train=["--", *NASTY])
    assert done.returncode == 0, done.stderr
    home = cloud.folder / "hosts" / "0"
    assert (home / "hybrid_jax" / "code.txt").read_text() == "committed"
    notes = cloud.notes("python")
    assert [note["arguments"] for note in notes[1:]] == [
        ["-m", "venv", "--clear", f"{home}/hybrid_jax_venv"],
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", ".[tpu]"],
        ["-u", "-m", "hybrid_jax.main", *NASTY],
    ]
    assert {note["folder"] for note in notes[2:]} == {f"{home}/hybrid_jax"}
    assert {note["python"] for note in notes[2:]} == {f"{home}/hybrid_jax_venv/bin/python"}
    # Kept, and said how to get rid of it.
    assert cloud.steps() == ["create", "scp", "install", "run"]
    assert "gcloud compute tpus queued-resources delete me --project=p" in done.stderr


def test_tpu_spot_bucket_and_several_hosts(cloud):
    cloud.hosts(2)
    train = ["--", "--config=c.py", "--workdir=bucket/x"]
    done = cloud.launch("--spot", "--bucket=gs://b/", train=train)
    assert done.returncode == 0, done.stderr
    nfe = expected(cloud, spot=True, bucket="b", train="--config=c.py --workdir=bucket/x")
    order = "state create state vm scp install run delete state"
    assert without_id(cloud.notes("gcloud")) == [nfe[step] for step in order.split()]
    mounts = [f"{cloud.folder}/hosts/{host}/bucket" for host in (0, 1)]
    options = "--implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=1000000"
    assert sorted(cloud.notes("gcsfuse")) == [[f"{options} b {mount}"] for mount in mounts]
    assert sorted(note["index"] for note in cloud.trainings()) == ["0", "1"]
    assert {"[0] start 0 of 0", "[1] start 0 of 1"} <= set(done.stdout.splitlines())


def test_tpu_bucket_is_mounted_whenever_a_run_starts(cloud):
    home = cloud.folder / "hosts" / "0"
    assert cloud.launch("--keep", "--bucket=b").returncode == 0
    assert (home / "hybrid_jax" / "bucket").readlink() == home / "bucket"
    # Another one, on a TPU that was there already.
    assert cloud.launch("--keep", "--bucket=c").returncode == 0
    assert cloud.notes("fusermount") == [[f"-u {home}/bucket"]]
    assert [note[0].split()[-2] for note in cloud.notes("gcsfuse")] == ["b", "c"]
    # After a restart of the machine.
    (home / "bucket" / "mounted").unlink()
    worker = ["bash", home / "tpu_worker.sh", "run", "--attempt=1", "--"]
    path = f"{cloud.folder}/remote:{os.environ['PATH']}"
    environment = cloud.environment | {"HOME": str(home), "PATH": path}
    subprocess.run(worker, env=environment, check=True, capture_output=True)
    assert [note[0].split()[-2] for note in cloud.notes("gcsfuse")] == ["b", "c", "c"]


def test_tpu_dry_run_prints_what_a_run_does(cloud):
    cloud.hosts(2)
    options = ["--spot", "--bucket=b c"]
    train = ["--", *NASTY, "--workdir=bucket/x"]
    dry = cloud.launch("--dry-run", *options, train=train)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert cloud.notes("gcloud") == []
    assert list(cloud.here.iterdir()) == []
    lines = dry.stdout.splitlines()
    assert lines[:2] == [
        f"mkdir -p {cloud.here}/logs".replace("a folder", "a\\ folder"),
        f"git -C {cloud.checkout} archive --format=tar.gz --output={cloud.here}/logs/me.tar.gz HEAD"
        .replace("a folder", "a\\ folder").replace("check out", "check\\ out"),
    ]  # fmt: skip
    done = cloud.launch(*options, train=train)
    assert done.returncode == 0, done.stderr
    nfe, trainings = cloud.notes("gcloud"), cloud.trainings()
    for log in ("gcloud", "python"):
        (cloud.folder / f"{log}.calls").unlink()
    # Pasted into a shell one after the other, they train too.
    for line in lines:
        subprocess.run(
            ["bash", "-c", line], env=cloud.environment, cwd=cloud.here, capture_output=True
        )
    # All but the look whether it is deleted.
    assert without_id(cloud.notes("gcloud")) == without_id(nfe[:-1])
    assert len(trainings) == 2
    assert sorted(cloud.trainings(), key=str) == sorted(trainings, key=str)


def test_tpu_dry_run_needs_no_gcloud(cloud):
    tools = cloud.folder / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "date", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    cloud.environment["PATH"] = str(tools)
    done = cloud.launch("--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 10
    done = cloud.launch()
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no gcloud here")
    assert len(done.stderr.splitlines()) == 1


def test_tpu_uncommitted_changes_are_warned_of(cloud):
    (cloud.checkout / "code.txt").write_text("changed")
    done = cloud.launch("--keep")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ")
    assert "uncommitted changes" in done.stderr.splitlines()[0]
    assert (cloud.folder / "hosts/0/hybrid_jax/code.txt").read_text() == "committed"


def test_tpu_preempted_in_the_middle(cloud):
    cloud.hosts(2)
    cloud.plan(
        states=[["ACTIVE"], ["WAITING_FOR_RESOURCES", "ACTIVE"]], runs=[["wait", "preempt"], 0]
    )
    done = cloud.launch("--spot", train=["--", "--config=c.py", "--workdir=/shared/x"])
    assert done.returncode == 0, done.stderr
    once = ["create", "scp", "install", "run", "delete"]
    assert cloud.steps() == once * 2, done.stderr
    first, second = (call[-1] for call in cloud.notes("gcloud") if "run" in call[-1].split())
    assert first != second
    assert without_id([[first]]) == without_id([[second]])
    assert "me is gone (PREEMPTED): another TPU goes on (restart 1 of at most 100)." in done.stderr
    wait_for(lambda: not cloud.alive())


def test_tpu_taken_away_before_it_was_used(cloud):
    """What is left of an older request is removed, and a later one that fails is tried again."""
    states = [["ACTIVE"], ["SUSPENDED"], ["FAILED"], ["PROVISIONING", "SUSPENDING"], ["ACTIVE"]]
    cloud.plan(states=states, runs=["preempt", 0], undeletable=2, exhausted=1)
    (cloud.folder / "resource").write_text('["FAILED"]')
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    run = ["create", "scp", "install", "run", "delete"]
    again = ["create", *["create", "delete"] * 3]
    assert cloud.steps() == ["delete"] * 3 + run + again + run
    assert re.findall(r"restart (\d)", done.stderr) == ["1", "2", "3", "4", "5"]


def test_tpu_stopped_while_the_machine_is_fine(cloud):
    cloud.hosts(2)
    cloud.plan(states=[["ACTIVE"]], runs=[75, 0], undeletable=1)
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    assert cloud.steps() == ["create", "scp", "install", "run", "run", "delete", "delete"]
    assert len(cloud.trainings()) == 4
    assert "The run was stopped and has saved" in done.stderr


@pytest.mark.parametrize(
    ("run", "status"), [([1, 134], 1), ([134, 3], 3), ([0, 2], 2), ([130, 75], 130)]
)
def test_tpu_is_kept_after_a_failure(cloud, run, status):
    cloud.hosts(2)
    cloud.plan(states=[["ACTIVE"]], runs=[run])
    done = cloud.launch()
    assert done.returncode == status, done.stderr
    assert cloud.steps() == ["create", "scp", "install", "run"]
    for command in (
        "gcloud compute tpus queued-resources delete me --project=p --zone=z --quiet --force",
        "gcloud compute tpus tpu-vm ssh me --project=p --zone=z --quiet --worker=0\n",
    ):
        assert command in done.stderr
        assert command in cloud.log()
    assert ("The training was refused" in done.stderr) == (status == 2)


@pytest.mark.parametrize(("run", "limit"), [("preempt", 0), (75, 1)])
def test_tpu_restarts_have_a_limit(cloud, run, limit):
    cloud.plan(states=[["ACTIVE"]], runs=[run])
    done = cloud.launch(f"--max-restarts={limit}")
    assert done.returncode == 75, done.stderr
    assert cloud.steps().count("run") == limit + 1
    assert f"--max-restarts={limit} leaves no restart" in done.stderr
    assert "queued-resources delete me" in done.stderr


def test_tpu_connection_breaks_and_the_run_goes_on(cloud):
    """gcloud gives its command a second time; the run must not be started twice."""
    cloud.hosts(2)
    cloud.plan(states=[["ACTIVE"]], runs=["cut"])
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    assert cloud.steps() == ["create", "scp", "install", "run", "delete"]
    assert sorted(note["index"] for note in cloud.trainings()) == ["0", "1"]
    assert "[0] after the cut" in done.stdout


def test_tpu_network_and_machine_are_away_for_a_while(cloud):
    cloud.plan(states=[["ACTIVE"]], runs=["preempt", 0], unsendable=2)
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    assert cloud.steps()[:5] == ["create", "scp", "scp", "scp", "install"]
    cloud.plan(states=[["ACTIVE"]], runs=[0], offline=True)
    done = cloud.launch()
    assert done.returncode == 1
    assert "there is no network" in done.stderr
    assert "Delete" not in done.stderr


def test_tpu_state_unknown_during_the_wait(cloud):
    cloud.plan(states=[["PROVISIONING", "PROVISIONING", "ACTIVE"]], runs=[0])
    (cloud.folder / "resource").write_text(repr(["PROVISIONING"] * 3 + ["ACTIVE"]))
    (cloud.folder / "vm").write_text("READY")
    script = cloud.start("gcp_tpu.sh", *TPU, "--poll=0.05", *TRAIN)
    wait_for(lambda: cloud.notes("gcloud"))
    cloud.plan(states=[["ACTIVE"]], runs=[0], unreachable=2)
    _, words = script.communicate(timeout=20)
    assert script.returncode == 0, words
    assert "me: UNREACHABLE" in words
    assert cloud.steps() == ["scp", "install", "run", "delete"]


def test_tpu_deleted_by_somebody_else(cloud):
    cloud.plan(states=[["ACTIVE"]], runs=["wait"])
    script = cloud.start("gcp_tpu.sh", *TPU, "--poll=0.05", *TRAIN)
    wait_for((cloud.folder / "ready-0").exists)
    delete = [cloud.bin / "gcloud", *expected(cloud)["delete"]]
    subprocess.run(delete, env=cloud.environment, check=True, capture_output=True)
    _, words = script.communicate(timeout=10)
    assert script.returncode == 1
    assert "Somebody has deleted me, so it is not requested again." in words
    assert "costs money" not in words
    assert cloud.steps() == ["create", "scp", "install", "run", "delete"]


def test_tpu_request_is_refused_or_fails(cloud):
    cloud.plan(states=[["FAILED"]], runs=[0])
    done = cloud.launch()
    assert done.returncode == 1
    assert "The request for me has failed" in done.stderr
    assert "queued-resources delete me" in done.stderr
    assert cloud.steps() == ["create"]
    (cloud.folder / "resource").unlink()
    cloud.plan(states=[["ACTIVE"]], runs=[0], refuse=True)
    done = cloud.launch()
    assert done.returncode == 1
    assert "no such accelerator" in done.stdout
    assert "costs money" not in done.stderr


def test_tpu_without_a_new_enough_python(cloud):
    cloud.plan(states=[["ACTIVE"]], runs=[0], old=True)
    for python in ("python3.13", "python3.11", "python3"):
        cloud.command(python, PYTHON + TRAINING, "remote")
    cloud.command("sudo", NOTE, "remote")
    done = cloud.launch()
    assert done.returncode == 2
    assert "Worker 0 has no Python 3.11 or newer" in done.stdout
    assert len(cloud.notes("python")) == 8
    assert cloud.notes("sudo")[1][0].endswith("install -y python3.11 python3.11-venv")
    assert cloud.steps() == ["create", "scp", "install"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_tpu_ctrl_c_ends_the_watching_and_the_same_command_goes_on(cloud, number):
    cloud.plan(states=[["ACTIVE"]], runs=["wait", 0])
    script = cloud.start("gcp_tpu.sh", *TPU, "--poll=0.05", *TRAIN)
    wait_for((cloud.folder / "ready-0").exists)
    if number == signal.SIGINT:
        # As a terminal does.
        os.killpg(script.pid, number)
    else:
        script.send_signal(number)
    _, words = script.communicate(timeout=10)
    assert script.returncode == 128 + number, words
    assert "a run on it, go on" in words
    assert "queued-resources delete me" in words
    assert "tpu_worker.sh" in words
    wait_for(lambda: not [name for name in cloud.alive().values() if "gcloud" in name])
    assert any("hybrid_jax.main" in name for name in cloud.alive().values())
    if number != signal.SIGINT:
        return
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    assert "me was there already" in done.stderr
    # Before the code changes under it.
    stopped = done.stdout.index("[0] stopping the run that is going on")
    assert stopped < done.stdout.index("hybrid_jax is installed")
    assert (cloud.folder / "signals").read_text() == "SIGTERM"
    assert cloud.steps() == ["create", "scp", "install", "run", "scp", "install", "run", "delete"]
    wait_for(lambda: not cloud.alive())


def test_tpu_ctrl_c_while_it_waits(cloud):
    cloud.plan(states=[["WAITING_FOR_RESOURCES"]], runs=[0])
    script = cloud.start("gcp_tpu.sh", *TPU, "--poll=30", *TRAIN)
    wait_for(lambda: len(cloud.notes("gcloud")) == 3)
    time.sleep(0.2)
    script.send_signal(signal.SIGINT)
    _, words = script.communicate(timeout=5)
    assert script.returncode == 130
    assert "queued-resources delete me" in words
    wait_for(lambda: not cloud.alive())


@pytest.mark.parametrize(
    ("number", "boot", "statuses"),
    [
        (signal.SIGTERM, "same", [75, 75]),
        (signal.SIGKILL, "same", [137, 137]),
        # A restart of the machine is a preemption; anything else that kills is a crash.
        (signal.SIGKILL, "other", [137, 75]),
    ],
)
def test_worker_tells_how_a_run_has_ended_that_was_killed(cloud, number, boot, statuses):
    home = cloud.folder / "hosts" / "0"
    environment = cloud.environment | {"HOME": str(home), "HOSTNAME": "t1v-n-0-w-0"}
    bin = home / "hybrid_jax_venv" / "bin"
    bin.mkdir(parents=True)
    (home / "hybrid_jax").mkdir()
    shutil.copy(cloud.folder / "remote" / "python3.12", bin / "python")
    cloud.plan(runs=["wait"])
    command = [LAUNCH / "tpu_worker.sh", "run", "--attempt=1", *TRAIN]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as shell:
        wait_for((cloud.folder / "ready-0").exists)
        # The whole group, as a machine that shuts down does.
        os.killpg(int((home / "hybrid_jax_run" / "group").read_text()), number)
        output, _ = shell.communicate(timeout=10)
    assert output.endswith(f"hybrid_jax exit status on worker 0: {statuses[0]}\n")
    if boot == "other":
        (home / "hybrid_jax_run" / "boot").write_text("another")
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10)
    assert again.stdout.endswith(f"hybrid_jax exit status on worker 0: {statuses[1]}\n")
    assert len(cloud.trainings()) == 1


# SLURM


SLURM = """
import os, sys, time
from pathlib import Path

fake, name = Path(os.environ["FAKE"]), Path(sys.argv[0]).name
plan = eval((fake / "plan").read_text())
with open(fake / "slurm.calls", "a") as log:
    log.write(repr([name, *sys.argv[1:]]) + "\\n")
if name == "squeue":
    print(plan.get("state", "RUNNING"))
if name == "scancel":
    (fake / "signalled").touch()
if name == "srun":
    if "run" in plan:
        sys.exit(plan["run"])
    (fake / "ready-0").touch()
    while not (fake / "signalled").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    sys.exit(75)
"""


@pytest.fixture
def slurm(fake):
    for name in ("srun", "scontrol", "scancel", "squeue"):
        fake.command(name, PYTHON + SLURM)
    fake.environment |= {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(fake.here)}
    (fake.here / ".venv" / "bin").mkdir(parents=True)
    fake.command("python", PYTHON + TRAINING, "a folder/.venv/bin")
    return fake


SRUN = ["srun", "--kill-on-bad-exit=0", ".venv/bin/python", "-u", "-m", "hybrid_jax.main"]
SQUEUE = ["squeue", "--noheader", "--format=%T", "--jobs=7"]


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_slurm_passes_the_status_on(slurm, status):
    slurm.plan(run=status)
    done = slurm.run("slurm_gpu.sh", "--", *NASTY)
    assert done.returncode == status
    assert slurm.notes("slurm") == [[*SRUN, *NASTY]]
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert all(re.match(stamp, line) for line in done.stderr.splitlines())
    assert f"the training has ended with status {status}." in done.stderr


def test_slurm_saved_jobs_are_queued_again(slurm):
    slurm.plan(run=75)
    done = slurm.run("slurm_gpu.sh", *TRAIN)
    assert done.returncode == 75
    assert slurm.notes("slurm") == [[*SRUN, "--config=c.py"], SQUEUE, ["scontrol", "requeue", "7"]]


def test_slurm_cancelled_jobs_are_not(slurm):
    slurm.plan(run=75, state="COMPLETING")
    done = slurm.run("slurm_gpu.sh", *TRAIN)
    assert done.returncode == 75
    assert slurm.notes("slurm") == [[*SRUN, "--config=c.py"], SQUEUE]


def test_slurm_signals_to_the_script_reach_the_training(slurm):
    slurm.plan()
    script = slurm.start("slurm_gpu.sh", *TRAIN)
    wait_for((slurm.folder / "ready-0").exists)
    script.send_signal(signal.SIGTERM)
    wait_for((slurm.folder / "signalled").exists)
    # SLURM may repeat itself.
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=10)
    assert script.returncode == 75
    assert slurm.notes("slurm") == [
        [*SRUN, "--config=c.py"],
        ["scancel", "--signal=TERM", "7"],
        SQUEUE,
        ["scontrol", "requeue", "7"],
    ]


def test_slurm_dry_run_and_environment(slurm):
    del slurm.environment["SLURM_JOB_ID"]
    slurm.environment |= {"VENV": "/other venv", "SLURM_CPUS_PER_TASK": "8"}
    done = slurm.run("slurm_gpu.sh", "--dry-run", "--", *NASTY)
    assert (done.returncode, done.stderr) == (0, "")
    assert slurm.notes("slurm") == []
    slurm.plan(run=0)
    subprocess.run(["bash", "-c", done.stdout], env=slurm.environment, check=True)
    python = "/other venv/bin/python"
    assert slurm.notes("slurm") == [
        [*SRUN[:2], "--cpus-per-task=8", python, *SRUN[3:], *NASTY],
    ]
    slurm.environment["SLURM_JOB_ID"] = "7"
    done = slurm.run("slurm_gpu.sh", *TRAIN)
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no /other venv/bin/python")


def test_slurm_defaults():
    lines = (LAUNCH / "slurm_gpu.sh").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    # sbatch reads them up to the first command.
    assert lines[1 : len(options) + 1] == [f"#SBATCH {option}" for option in options]
    assert {"--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--signal=TERM@120"} <= set(
        options
    )


# Several processes on one machine


@pytest.fixture
def local(fake):
    fake.environment["PYTHON"] = str(fake.command("some python", PYTHON + TRAINING))
    return fake


def test_local_processes_are_told_of_each_other(local):
    done = local.run(
        "local_multiprocess.sh", "--processes=3", "--devices-per-process=4", "--", *NASTY
    )
    assert (done.returncode, done.stderr) == (0, "")
    notes = sorted(local.trainings(), key=lambda note: note["index"])
    (port,) = {note["arguments"][-3] for note in notes}
    assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d{4,5}", port)
    for index, note in enumerate(notes):
        flags = [port, "--processes=3", f"--process={index}"]
        assert note["arguments"] == ["-u", "-m", "hybrid_jax.main", *NASTY, *flags]
        assert note["environment"] == {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
        own = [line for line in done.stdout.splitlines() if line.startswith(f"[{index}] ")]
        assert own == [
            f"[{index}] start 0 of {index}",
            f"[{index}] to stderr",
            f"[{index}] last words without an end of line",
        ]
    assert len(notes) == 3
    assert len(done.stdout.splitlines()) == 9


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, ["0,1", "2,3"]), ("7,5,GPU-x,1,0", ["7,5", "GPU-x,1"])]
)
def test_local_processes_share_the_gpus(local, visible, gpus):
    if visible:
        local.environment["CUDA_VISIBLE_DEVICES"] = visible
    options = ["--processes=2", "--devices-per-process=2", "--platform=cuda"]
    done = local.run("local_multiprocess.sh", *options, *TRAIN)
    assert done.returncode == 0, done.stderr
    notes = sorted(local.trainings(), key=lambda note: note["index"])
    assert [note["environment"] for note in notes] == [
        {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": own} for own in gpus
    ]


def test_local_too_few_gpus(local):
    local.environment["CUDA_VISIBLE_DEVICES"] = "3"
    done = local.run("local_multiprocess.sh", "--processes=2", "--platform=cuda", *TRAIN)
    assert done.returncode == 2
    assert "names 1 GPUs, which is too few for 2 processes" in done.stderr


def test_local_dry_run(local):
    done = local.run("local_multiprocess.sh", "--processes=2", "--dry-run", "--", *NASTY)
    assert (done.returncode, done.stderr) == (0, "")
    assert local.notes("python") == []
    for line in done.stdout.splitlines():
        subprocess.run(["bash", "-c", line], env=local.environment, check=True, capture_output=True)
    flags = [note["arguments"][-3:] for note in local.trainings()]
    assert flags == [
        ["--coordinator=127.0.0.1:12345", "--processes=2", f"--process={index}"] for index in (0, 1)
    ]
    assert all(note["arguments"][3:-3] == NASTY for note in local.trainings())


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("options", [[], ["--restart"]])
def test_local_signals_reach_every_process(local, number, status, options):
    local.plan(runs=["wait"])
    script = local.start("local_multiprocess.sh", "--processes=2", *options, *TRAIN)
    wait_for(lambda: all((local.folder / f"ready-{index}").exists() for index in (0, 1)))
    script.send_signal(number)
    output, words = script.communicate(timeout=10)
    assert script.returncode == status, words
    name = "SIGINT" if number == signal.SIGINT else "SIGTERM"
    assert {f"[0] got {name}", f"[1] got {name}"} <= set(output.splitlines())
    assert len(local.trainings()) == 2
    wait_for(lambda: not local.alive(), seconds=5)


def test_local_ctrl_c_in_a_terminal(local):
    """A terminal sends SIGINT to the whole group, and each process may get it once only."""
    local.plan(runs=["wait"])
    script = local.start("local_multiprocess.sh", "--processes=2", *TRAIN)
    wait_for(lambda: all((local.folder / f"ready-{index}").exists() for index in (0, 1)))
    os.killpg(script.pid, signal.SIGINT)
    output, words = script.communicate(timeout=10)
    assert script.returncode == 130, words
    assert output.count("got SIGINT") == 2
    wait_for(lambda: not local.alive(), seconds=5)


def test_local_crash_of_one_does_not_leave_the_others_waiting(local):
    local.plan(runs=[["hang", "helper", "hang"]])
    start = time.monotonic()
    done = local.run("local_multiprocess.sh", "--processes=3", "--grace=1", *TRAIN)
    assert done.returncode == 1
    assert 0.3 < time.monotonic() - start < 8
    assert done.stderr.startswith(
        "process 1 has ended with status 1; the others are killed in 1 s.\n"
    )
    wait_for(lambda: not local.alive(), seconds=5)


def test_local_nothing_outlives_the_script(local):
    """Here it fails between the start of the first process and that of the second."""
    local.plan(runs=["hang"])
    local.command("mkfifo", '#!/bin/bash\n[[ $1 == */0 ]] && exec /usr/bin/mkfifo "$1"\n')
    script = local.start("local_multiprocess.sh", "--processes=2", *TRAIN)
    assert script.wait(timeout=10) == 1
    wait_for(lambda: not local.alive(), seconds=5)
    script.communicate()


def test_local_output_is_complete_when_the_script_ends(local):
    local.plan(runs=["talk"])
    output = local.folder / "output"
    with output.open("w") as file:
        given = local.arguments("local_multiprocess.sh", "--processes=2", *TRAIN)
        assert subprocess.run(**given, stdout=file, timeout=30).returncode == 0
    assert len(output.read_text().splitlines()) == 2 * (2 + 30000)


@pytest.mark.parametrize(
    ("run", "status"),
    [([2, 2], 2), ([75, 75], 75), ([75, 1], 1), ([0, 3], 3), ([130, 2], 2)],
)
def test_local_status(local, run, status):
    local.plan(runs=[run])
    done = local.run("local_multiprocess.sh", "--processes=2", *TRAIN)
    assert done.returncode == status
    assert len(local.trainings()) == 2


def test_local_restart(local):
    local.plan(runs=[75, 75, 0])
    done = local.run("local_multiprocess.sh", "--processes=2", "--restart", *TRAIN)
    assert done.returncode == 0
    assert len(local.trainings()) == 6
    assert done.stderr == "stopped after saving; starting again.\n" * 2
    assert "[1] start 2 of 1" in done.stdout.splitlines()
