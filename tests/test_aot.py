"""Compiling for absent accelerators: what is read from programs, the search, and the command."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
import unittest.mock
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from hybrid_jax.aot import __main__ as command
from hybrid_jax.aot import collectives, programs, search, topology
from hybrid_jax.aot.collectives import Collective
from hybrid_jax.aot.programs import Memory, Program
from hybrid_jax.aot.report import report
from hybrid_jax.config import Experiment, ScheduleConfig
from hybrid_jax.errors import UserError
from hybrid_jax.presets import sized
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.sharding import MeshConfig
from hybrid_jax.training import flops
from hybrid_jax.training.train_step import TrainSetup

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "configs" / "gamma_hybrid.py"
SMALL = ["model.layers=1", "model.width=32", "data.vocab_size=200", "optimizer.name=adamw"]


def experiment(**mesh: int) -> Experiment:
    config = sized("small", "tiny")
    config.noise.kernel = "gamma"
    config.objective.time = "continuous"
    config.data.vocab_size = 100
    config.data.length = 16
    config.model.update(dict(layers=1, width=32, unroll=1))
    config.optimizer.name = "adamw"
    return dataclasses.replace(Experiment.from_config(config), mesh=MeshConfig(**mesh))


# ---------------------------------------------------------------------------------------------
# Communication.


def test_collectives_of_a_program_are_counted():
    mesh = sharding.make_mesh(MeshConfig(fsdp=8))

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(P("fsdp"), P("fsdp")), out_specs=(P(), P("fsdp")))
    def program(x, weights):
        def layer(_, x):
            whole = jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)  # [16, 8] of 2 rows each
            return jnp.tanh(x @ (whole.T @ whole)) + weights

        x = jax.lax.fori_loop(0, 3, layer, x)
        ring = [(i, (i + 1) % 8) for i in range(8)]
        turned = jax.lax.ppermute(x.astype(jnp.bfloat16), "fsdp", ring)
        return jax.lax.psum(x, "fsdp"), turned

    text = program.lower(jnp.ones((16, 8)), jnp.ones((8, 8))).compile().as_text()
    found = {(c.kind, c.result.split("[")[1], c.in_loop): c for c in collectives.count(text)}
    gather = found["all-gather", "16,8]", True]
    assert (gather.bytes, gather.count) == (16 * 8 * 4, 1)
    total = found["all-reduce", "2,8]", False]
    assert (total.bytes, total.count) == (2 * 8 * 4, 1)
    assert found["collective-permute", "2,8]", False].count == 1
    assert len(found) == 3


TEXT = """
HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%part.1 (p: bf16[4,8]) -> bf16[64,8] {
  ROOT %all-gather.1 = bf16[64,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%part.2 (p: bf16[4,8]) -> bf16[64,8] {
  ROOT %all-gather.2 = bf16[64,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%inner (p: s8[5]) -> s8[5] {
  %all-to-all.1 = (s8[5]{0}, /*index=1*/pred[3]{0}) all-to-all(%p, %q), channel_id=3
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = s8[5]{0} fusion(%p), kind=kLoop, calls=%inner
  %start = (bf16[2,3]{1,0}, bf16[2,3]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a)
  %done = bf16[2,3]{1,0} collective-permute-done(%start)
}

%condition (s: (s32[], f32[8])) -> pred[] {
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %fusion.2 = bf16[64,8]{1,0} fusion(%p), kind=kCustom, calls=%part.1
  %fusion.3 = bf16[64,8]{1,0} fusion(%p), kind=kCustom, calls=%part.2
  %while.1 = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %r.1 = (f32[8]{0}, f32[]) all-reduce-start(%p, %q), channel_id=4, to_apply=%add
  %r.2 = ((bf16[6], f32[2]), (bf16[12], f32[4])) all-gather-start(%p, %q), channel_id=5
  %r.3 = f32[8]{0} all-reduce(%p), channel_id=8, to_apply=%add
  %r.4 = f32[8]{0} all-reduce(%p), channel_id=9, to_apply=%add
}
"""


def test_collectives_of_a_text():
    def item(kind, result, bytes, in_loop=False, count=1):
        return Collective(kind=kind, result=result, bytes=bytes, in_loop=in_loop, count=count)

    assert collectives.count(TEXT) == (
        item("all-gather", "bf16[64,8]", 1024),  # two parts of one operation
        item("all-gather", "bf16[12], f32[4]", 40),
        item("all-reduce", "f32[8], f32[]", 36),
        item("all-reduce", "f32[8]", 32, count=2),
        item("collective-permute", "bf16[2,3]", 12, in_loop=True),
        item("all-to-all", "s8[5], pred[3]", 8, in_loop=True),
    )
    assert collectives.count("") == ()


# ---------------------------------------------------------------------------------------------
# Programs.


def test_the_step_is_the_one_that_trains():
    small = experiment(fsdp=2, tensor=2, data=2)
    devices = sharding.make_mesh(small.mesh)
    setup = TrainSetup.build(small, 100, bos=0)
    shape = small.train.batch_size, small.data.length
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "index": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }
    with sharding.use(devices):
        used = setup.compile_step(devices).lower(setup.abstract_state(devices), batch)
    assert lines(programs.lower_training(setup, devices)) == lines(used)


def lines(lowered: jax.stages.Lowered) -> set[str]:
    """Lines of a program without the numbers of its functions, which may be there twice."""
    return set(re.sub(r"(@\w+?)_\d+\b", r"\1", lowered.as_text()).splitlines())


def test_numbers_of_a_training_step():
    small = experiment(fsdp=4, tensor=2)
    mesh = sharding.make_mesh(small.mesh)
    program = programs.build(small, mesh, "train", None)
    state = sharding.bytes_per_device(TrainSetup.build(small, 100, bos=0).abstract_state(mesh))
    batch = 32 // 4 * (16 + 1) * 4  # tokens and index, int32
    assert program.memory.arguments == state + batch
    assert program.memory.output < 1000  # the state, far larger, is donated
    assert program.memory.temporaries > 0
    assert program.memory.peak > 0
    assert program.batch == 32
    forward = flops.forward_flops(small.network(100), small.spec(100, bos=0)).total
    assert program.flops == 3 * 32 * forward
    assert program.collectives


def test_batch_of_a_device_counts_what_it_holds_at_a_time(monkeypatch):
    small = experiment(fsdp=4, tensor=2)
    small = dataclasses.replace(small, train=dataclasses.replace(small.train, accumulation=2))
    monkeypatch.setattr(programs, "lower_training", lambda changed, mesh: changed)
    monkeypatch.setattr(
        programs,
        "compile_program",
        lambda setup, *, batch, flops: (setup.experiment.train.batch_size, batch),
    )
    mesh = sharding.make_mesh(small.mesh)
    assert programs.build(small, mesh, "train", 3) == (3 * 4 * 2, 3 * 4 * 2)
    assert programs.build(small, mesh, "train", None) == (32, 32)


def test_numbers_of_the_sampling_loop():
    schedule = ScheduleConfig(family="slide", width=4, levels=4)
    small = dataclasses.replace(experiment(fsdp=8), schedule=schedule)
    mesh = sharding.make_mesh(small.mesh)
    program = programs.build(small, mesh, "sample", 2)
    assert program.batch == 2 * 8
    params = TrainSetup.build(small, 100, bos=0).abstract_state(mesh).params
    assert program.memory.arguments > sharding.bytes_per_device(params)
    assert any(item.in_loop for item in program.collectives)


def refuse(reason: str):
    def compile():
        raise jax.errors.JaxRuntimeError(reason)

    return types.SimpleNamespace(compile=compile)


def test_a_program_that_does_not_fit_is_one_sentence():
    reason = (
        "XLA:TPU compile permanent error. RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total "
        "memory required (39.07G) exceeds available HBM (15.75G).\n\nLargest program allocations:"
    )
    with pytest.raises(programs.DoesNotFit) as caught:
        programs.compile_program(refuse(reason), batch=1)
    assert str(caught.value) == (
        "The program does not fit: Ran out of memory on HBM, the total memory required (39.07G) "
        "exceeds available HBM (15.75G)."
    )
    with pytest.raises(jax.errors.JaxRuntimeError):  # anything else is a fault, and not hidden
        programs.compile_program(refuse("INTERNAL: no"), batch=1)


# ---------------------------------------------------------------------------------------------
# The largest batch.

SENSIBLE = [
    n
    for n in range(1, 4096 + 1)
    if n == n >> max(0, n.bit_length() - 3) << max(0, n.bit_length() - 3)
]


@pytest.mark.parametrize("fixed", [0, 10, 700])
@pytest.mark.parametrize("slope", [0.07, 1, 3.3, 20, 90, 101, 301])
@pytest.mark.parametrize("bend", [0, 0.3, -0.002])
def test_search_finds_the_largest_sensible_batch(fixed, slope, bend):
    """Also where memory does not grow evenly, and where the compiler refuses without a number."""
    capacity = 1000

    def needs(batch):
        total = round(fixed + slope * batch + bend * batch**2 * slope / 100)
        return total if total <= 1.1 * capacity else None

    best, tried = search.largest_batch(needs, capacity)
    good = [n for n in SENSIBLE if all((needs(m) or 1001) <= capacity for m in SENSIBLE if m <= n)]
    assert best == max(good, default=0)
    assert {n: needs(n) for n in tried} == tried
    assert len(tried) <= 9
    if not bend:
        assert len(tried) <= 6


def test_search_without_any_that_fits():
    assert search.largest_batch(lambda batch: None, 10) == (0, {1: None})


def test_search_stops_somewhere():
    best, tried = search.largest_batch(lambda batch: 5, 10, most=100)
    assert best == max(tried) == 100


def test_fit_tells_every_trial(monkeypatch, capsys):
    def build(experiment, mesh, step, each):
        if each > 8:
            raise programs.DoesNotFit("The program does not fit: far too large.")
        return program(peak=each * 2**30)

    monkeypatch.setattr(programs, "build", build)
    mesh = sharding.make_mesh(MeshConfig(tensor=2))
    best, tried = search.fit(experiment(), mesh, "train", 6 * 2**30)
    assert best.memory.peak == 6 * 2**30
    assert tried[6] == best.memory.peak
    said = capsys.readouterr().err
    assert "s] 1 on every 2 devices: 1.00 GiB of 6.00 GiB\n" in said
    assert said.endswith("largest that fits: 6 on every 2 devices at a time\n")
    with pytest.raises(UserError, match="Not even one example"):
        search.fit(experiment(), mesh, "train", 1000)


# ---------------------------------------------------------------------------------------------
# The report and the command.


def program(peak: int = 3 * 2**30, **changes) -> Program:
    items = [
        Collective(kind="all-reduce", result="f32[100]", bytes=400, in_loop=False, count=3),
        Collective(kind="all-gather", result="bf16[1]", bytes=2, in_loop=True, count=1),
    ]
    memory = Memory(arguments=2**20, temporaries=2**23, output=0, peak=peak)
    known = dict(batch=64, seconds=12.34, memory=memory, collectives=tuple(items), flops=1.97e12)
    return Program(**(known | changes))


def kinds(kind: str, count: int):
    return [types.SimpleNamespace(device_kind=kind)] * count


def test_report():
    assert report(program(peak=2**33), "train", kinds("TPU v5 lite", 4)).split("\n") == [
        "training step: batch 64 (16 a device), compiled in 12.3 s",
        "  memory of a device",
        "    arguments                  1 MiB",
        "    temporaries                8 MiB",
        "    output, not aliased        0 B  ",
        "    at the peak             8.00 GiB of 15.75 GiB  ██████████░░░░░░░░░░ 51%",
        "  model FLOPs            1.97e+12 a step, 4.92e+11 a device",
        "    step time            2.5 ms at 100%, 5 ms at 50%, 6.25 ms at 40% of 197 TFLOP/s",
        "  communication of a device, by size of result (what is in loops runs more often)",
        "        400 B   × 3  all-reduce                    f32[100]",
        "          2 B   × 1  all-gather         in a loop  bf16[1]",
    ]


def test_report_of_an_unknown_device_and_of_much():
    items = [
        Collective(kind="all-reduce", result=f"f32[{n}]", bytes=4 * n, in_loop=False, count=2)
        for n in range(40, 20, -1)
    ]
    text = report(program(collectives=tuple(items), flops=None), "sample", kinds("cpu", 128))
    assert "sampling loop: batch 64 (0.5 a device)" in text
    assert "step time" not in text
    assert "at the peak             3.00 GiB\n" in text
    assert text.endswith("    and 8 of at most 96 B")
    assert report(program(collectives=()), "train", kinds("cpu", 1)).endswith("    none")
    large = report(program(peak=2**35), "train", kinds("TPU v4", 1))
    assert "32.00 GiB of 30.75 GiB  ████████████████████ 104%: does not fit\n" in large


def test_compilers_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"for TPUs is not installed: pip install 'hybrid_jax\[tpu"):
        topology.devices("v5e:4x4")
    with pytest.raises(UserError, match=r"for GPUs is not installed: pip install 'hybrid_jax\[cud"):
        topology.devices("h100:8")
    assert topology.compiler() == f"jax {jax.__version__}"


@pytest.fixture
def mistake(capsys):
    """The one line with which the command refuses its arguments."""

    def mistake(*arguments: str) -> str:
        with unittest.mock.patch.dict(os.environ):
            assert command.main([f"--config={CONFIG}", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
        return said.err

    return mistake


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: The following arguments are required: --topology (see --help)."),
        (["--topology=v5e:4x4", "--step=none"], "error: Argument --step: invalid choice: 'none'"),
        (["--topology=v5e:4x4", "--sample_batch=0"], "error: Argument --sample_batch: '0' is"),
        (["--topology=v5e:4x4", "--sample_batch=4"], "error: --sample_batch has no effect"),
        (["--topology=v5e:4x4", "--json=/proc/no/x.json"], "error: Cannot write /proc/no/x.json"),
        (["--topology=v5e:4x4", "--config.mesh.fdsp=2"], "error: config.mesh.fdsp is not"),
    ],
)
def test_command_line_mistakes_end_in_one_sentence(mistake, arguments, message):
    assert mistake(*arguments).startswith(message)


def test_without_libtpu_the_command_says_what_to_install(mistake, monkeypatch):
    monkeypatch.setattr(topology, "_TPU", ("no_such_package",))
    said = mistake("--topology=v5e:4x4")
    assert said == "error: The compiler for TPUs is not installed: pip install 'hybrid_jax[tpu]'.\n"


def in_a_process(program: str) -> subprocess.CompletedProcess:
    """Runs Python with libtpu, which stays loaded in a process."""
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is not installed: pip install 'hybrid_jax[tpu]'")
    program = f"from hybrid_jax.aot.__main__ import main\n{program}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_unknown_topologies_are_refused_with_examples():
    names = ["v5e", "v5e:3x3", "v99:2x2", "v5litepod-16"]
    done = in_a_process(
        f"for name in {names}: assert main(['--config={CONFIG}', f'--topology={{name}}']) == 2"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for said, name in zip(done.stderr.splitlines(), names, strict=True):
        assert said.startswith(f"error: The compiler knows no topology {name!r}: write for example")


def test_compiling_for_a_tpu(tmp_path):
    file = tmp_path / "found.json"
    settings = [f"--config.{setting}" for setting in (*SMALL, "mesh.tensor=2")]
    flags = ["--topology=v5e:2x2", "--step=both", f"--json={file}", *settings]
    done = in_a_process(f"assert main({[f'--config={CONFIG}', *flags]}) == 0")
    assert done.returncode == 0, done.stderr
    assert "4 × TPU v5 lite, data=1, fsdp=2, tensor=2; jax" in done.stdout
    assert "of 15.75 GiB" in done.stdout
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["train"]["fits"]
    assert found["sample"]["fits"]
    assert found["train"]["batch"] == 32
    assert found["sample"]["batch"] == 8 * 2
    assert found["train"]["memory"]["arguments"] > 1000
    assert {"all-reduce", "all-gather"} <= {c["kind"] for c in found["train"]["collectives"]}
    assert found["experiment"]["model"]["width"] == 32
