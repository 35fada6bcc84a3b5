"""Checkpoints when a process is killed, the disk is full, or one process of two reads damage."""

import random
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from runs import latest_step

from hybrid_jax.runtime.checkpoint import Checkpointer

TWO_PROCESSES = """
import glob, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from hybrid_jax.runtime.checkpoint import Checkpointer
mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
shardings = {"w": NamedSharding(mesh, PartitionSpec("fsdp")), "n": NamedSharding(mesh, jax.P())}
def make(n):
    w = lambda: {"w": jax.random.normal(jax.random.key(n), (4096, 4)), "n": jnp.int32(n)}
    return jax.jit(w, out_shardings=shardings)()
with Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(1, make(1))
    checkpointer.save(2, make(2))
if jax.process_index() == 0:  # damage what process 1 has written, and process 0 never reads
    file = max(glob.glob(sys.argv[1] + "/2/state/ocdbt.process_1/d/*"), key=os.path.getsize)
    os.truncate(file, os.path.getsize(file) // 2)
multihost_utils.sync_global_devices("damaged")
wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0))
with Checkpointer(sys.argv[1]) as checkpointer:
    step, state = checkpointer.restore(wanted)
    same = jax.jit(lambda a, b: (a["w"] == b["w"]).all())(state, make(1))
    checkpointer.save(2, make(2))
    checkpointer.wait()
    print("RESULT", step, bool(same), checkpointer.restore(wanted)[0])
"""

CHILD = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, jax.numpy as jnp
from hybrid_jax.runtime.checkpoint import Checkpointer
with Checkpointer(sys.argv[1], keep=2) as checkpointer:
    found = checkpointer.restore({"w": jax.ShapeDtypeStruct((400_000,), jnp.float32,
        sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))})
    step = found[0] if found else 0
    while True:
        step += 1
        checkpointer.save(step, {"w": jax.random.normal(jax.random.key(step), (400_000,))})
        print(step, flush=True)
"""

FULL_DISK = """
import os, resource, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
from hybrid_jax.runtime.checkpoint import Checkpointer
from hybrid_jax.errors import UserError
state = {"w": jax.random.normal(jax.random.key(0), (1 << 18,))}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes in one file
checkpointer = Checkpointer(sys.argv[1])
checkpointer.save(1, state)
try:
    checkpointer.wait()
except UserError as error:
    print(error)
"""


FULL_DISK_OF_SOME = """
import os, resource, shutil, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
from jax.experimental import multihost_utils
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
from jax.sharding import AxisType, NamedSharding
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.checkpoint import Checkpointer
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
make = lambda: {"w": jax.random.normal(jax.random.key(0), (1 << 18,))}
state = jax.jit(make, out_shardings=NamedSharding(mesh, jax.P("fsdp")))()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for full in "0", "1", "01":
    with Checkpointer(f"{sys.argv[1]}/{full}") as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        limit = 100_000 if sys.argv[3] in full else hard  # bytes in one file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        checkpointer.save(2, state)
        try:
            checkpointer.wait()
        except UserError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
folder = f"{sys.argv[1]}/gone"
with Checkpointer(folder) as checkpointer:
    multihost_utils.sync_global_devices("before")
    if sys.argv[3] == "0":
        shutil.rmtree(folder)
        open(folder, "w").close()
    multihost_utils.sync_global_devices("after")
    try:
        checkpointer.save(1, state)
    except UserError as error:
        print(error)
"""


def test_killed_during_saves(tmp_path):
    """SIGKILL at random moments: the steps reported before the running one are intact."""
    wait = random.Random(0)
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as child:
            first = int(child.stdout.readline())
            time.sleep(wait.uniform(0.1, 0.6))
            child.send_signal(signal.SIGKILL)
            started = [first, *map(int, child.stdout.read().split())][-1]
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {"w": jax.ShapeDtypeStruct((400_000,), jnp.float32, sharding=device)}
        with Checkpointer(tmp_path, keep=2) as checkpointer:
            found = checkpointer.restore(wanted)
            # What the kill left of the next step is removed before that step is saved again.
            again = found[0] + 1 if found else 1
            value = {"w": jax.random.normal(jax.random.key(again), (400_000,))}
            checkpointer.save(again, value)
            checkpointer.wait()
            assert checkpointer.restore(wanted)[0] == again
        assert not list(tmp_path.glob("*tmp*"))
        # save() waits for the save before it, so only the one just started may be missing.
        if started == 1 and found is None:
            continue
        step, state = found
        assert step >= started - 1
        expected = jax.random.normal(jax.random.key(step), (400_000,))
        np.testing.assert_array_equal(state["w"], expected)


def test_a_full_disk_is_reported(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(f"Cannot write {tmp_path} (")
    assert "File too large" in result.stdout
    assert latest_step(tmp_path) is None


def of_two_processes(program, directory):
    """What each of two processes of a program prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(directory), address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        return [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()


def test_two_processes_agree_to_fall_back(tmp_path):
    """Only one of them meets the damage; neither may wait for the other for ever."""
    for output in of_two_processes(TWO_PROCESSES, tmp_path):
        assert "RESULT 1 True 2" in output
    assert (tmp_path / "quarantine" / "2").is_dir()


def test_a_disk_that_is_full_for_one_process_stops_both(tmp_path):
    """At once: by Orbax they would wait for one another for twenty minutes."""
    for index, output in enumerate(of_two_processes(FULL_DISK_OF_SOME, tmp_path)):
        errors = [line for line in output.splitlines() if "Cannot write " in line]
        *of_full, of_gone = errors
        assert f"Cannot write {tmp_path}/gone (" in of_gone, output
        for full, error in zip(("0", "1", "01"), of_full, strict=True):
            elsewhere = f"On process {full[0]}: " * (full[0] != str(index))
            assert error.startswith(f"{elsewhere}Cannot write {tmp_path / full} ("), error
            assert latest_step(tmp_path / full) == 1
