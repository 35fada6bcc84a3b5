"""The training loop: one function, read from top to bottom.

A batch and its noise are functions of (seed, step), so a resumed run equals the uninterrupted one,
on any devices and any number of processes.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hybrid_jax import optim
from hybrid_jax.config import Experiment
from hybrid_jax.data import inputs, pipeline, prepare, tokenizers
from hybrid_jax.data.manifest import Manifest
from hybrid_jax.data.settings import DataConfig
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.runtime import boards, sharding
from hybrid_jax.runtime import processes as distributed
from hybrid_jax.runtime.checkpoint import Checkpointer
from hybrid_jax.runtime.files import expanded, writing
from hybrid_jax.runtime.json_text import write_json
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.runtime.processes import raise_on_all
from hybrid_jax.runtime.throughput import Throughput
from hybrid_jax.training import flops
from hybrid_jax.training import workdir as workdirs
from hybrid_jax.training.likelihood import BoundEstimate, evaluate_bound
from hybrid_jax.training.run_log import Log
from hybrid_jax.training.train_step import KeyPurpose, Metrics, TrainSetup, TrainState
from hybrid_jax.training.workdir import RunData, data_folders, holds

# Steps by which the host may be ahead of the devices: enough to keep them busy, few enough to stop
# soon after a signal.
_AHEAD = 2
# Steps before a trace, of which the first is the compilation, and steps in it.
_WARM_UP, _TRACED = 5, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training set-up with its data opened, and the devices to run on.

    Attributes:
      changes: of the text since its records were made (see `inputs.changes`); only where the run
        was already trained on them.
    """

    setup: TrainSetup
    manifest: Manifest
    tokenizer: Tokenizer
    data_dir: Path
    mesh: Mesh
    changes: str = ""

    @property
    def experiment(self) -> Experiment:
        return self.setup.experiment


def open_run(
    experiment: Experiment,
    devices: Sequence[jax.Device] | None = None,
    known: RunData | None = None,
) -> Run:
    """Prepares the data where needed, and builds the experiment's parts on it.

    Args:
      devices: those to run on; None for all devices of all processes.
      known: the records that the run was trained on before.

    Raises:
      UserError: on all processes, if anything of the experiment does not work here.
    """
    raise_on_all(boards.check, experiment.train.board)
    mesh = sharding.make_mesh(experiment.mesh, devices)
    # Before the data are prepared, which may take hours; nothing here depends on them.
    TrainSetup.build(experiment, experiment.data.expected_vocab_size, bos=0, eos=0).check(mesh)
    data_dir, manifest, changes = distributed.process0_first(_prepared_data, experiment.data, known)
    tokenizer = raise_on_all(tokenizers.load_tokenizer, data_dir)
    raise_on_all(prepare.check_tokenizer, manifest, tokenizer)
    distributed.assert_same("set of prepared data", manifest.identity)
    setup = TrainSetup.build(experiment, manifest.vocab_size, manifest.bos, manifest.eos)
    return Run(
        setup=setup,
        manifest=manifest,
        tokenizer=tokenizer,
        data_dir=data_dir,
        mesh=mesh,
        changes=changes,
    )


def _prepared_data(data: DataConfig, known: RunData | None) -> tuple[Path, Manifest, str]:
    """The folder of the records, its manifest, and `Run.changes`; prepares them if missing."""
    folder = data_folders(data, known)[0]
    if known and holds(folder, known):
        manifest = Manifest.load(folder)
        return folder, manifest, inputs.changes(manifest, folder)

    def check(manifest: Manifest) -> None:
        if known:
            known.check(folder, manifest)

    return folder, prepare.prepare(**data.preparation, out=folder, check=check), ""


def train(
    run: Run,
    workdir: Path,
    signals: Signals,
    *,
    params: Any = None,
    origin: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    profile: Path | None = None,
) -> TrainState:
    """Trains until `train.steps`, resuming from the newest checkpoint in `workdir`.

    The workdir becomes the run's with its first step. Until then, whatever refuses the start leaves
    it as it was.

    Args:
      params: to start from where there is no checkpoint, which they become at step 0; None for
        fresh ones.
      origin: of `params`, which the workdir keeps as JSON.
      say: shows a line.
      profile: folder for a trace of a few steps, by each process.

    Raises:
      UserError: if the loss stops being finite (the last good checkpoint stays), something cannot
        be read or written, or there are too few steps left to trace.
      Interrupted: after a signal, when the state is saved.
    """
    workdir = expanded(workdir)
    config, setup, mesh = run.experiment.train, run.setup, run.mesh
    learning_rate = optim.learning_rate_at(run.experiment.optimizer, config.steps)
    size = config.batch_size
    rows = sharding.local_rows(mesh, size)
    records = raise_on_all(_records, run, "train")
    stream = pipeline.Stream(
        records, batch_size=size, seed=config.seed, rows=rows,
        weights=run.experiment.data.weights or "",
    )  # fmt: skip
    settings = dataclasses.asdict(run.experiment)
    throughput = Throughput(
        tokens=size * run.manifest.length,
        devices=mesh.size,
        peak=flops.peak_flops(mesh.devices.flat[0]),
    )
    work = [size * flops.training_flops(own.network, own.spec) for own in setup.each]

    def claim() -> None:
        if origin is not None:  # before config.json, with which the run has begun
            write_json(workdir / workdirs.ORIGIN, origin)
        workdirs.claim(workdir, run.experiment, run.tokenizer, (run.data_dir, run.manifest))

    with contextlib.ExitStack() as stack:
        lead = distributed.is_process0()
        started: Callable[[], object] = stack.enter_context(
            workdirs.tentative(workdir) if lead else contextlib.nullcontext(lambda: None)
        )
        raise_on_all(workdirs.check_tokenizer, workdir, run.tokenizer)
        raise_on_all(_records, run, "valid")
        stack.enter_context(sharding.use(mesh))
        folder = workdir / "checkpoints"
        saver = raise_on_all(Checkpointer, folder, keep=config.keep, config=settings)
        stack.enter_context(saver)
        restored = saver.restore(setup.abstract_state(mesh))
        if restored is None:
            start, state = 0, setup.compile_init(mesh)(params)
            if params is not None:
                saver.save(0, state)
        else:
            start, state = restored
            say(f"resuming at step {start} from {folder}")
        traced = range(start + _WARM_UP + 1, start + _WARM_UP + _TRACED + 1)
        if profile is not None:
            raise_on_all(_check_profile, profile, traced, config.steps)
        if start >= config.steps:
            distributed.on_process0(claim)
            started()
            say(f"already trained for {start} steps")
            return state
        updates = [own.compile_step(mesh) for own in setup.each]
        saved = start
        pending: list[tuple[int, Metrics]] = []  # of which of `updates`
        ahead: collections.deque[jax.Array] = collections.deque()
        log = raise_on_all(Log, workdir, run.experiment, start=start)
        tracing = contextlib.ExitStack()
        with log, tracing, signals.deferred():
            if start and start % config.eval_every == 0 and not log.has(start, "valid"):
                # The run was stopped between a checkpoint and the evaluation that belongs to it.
                estimate = evaluate(run, state.ema, final=False)
                raise_on_all(log.valid, start, estimate)
            batches = stream.iterate(start)
            for done in range(start + 1, config.steps + 1):
                with throughput.waiting():
                    _, batch = next(batches)
                placed = {
                    name: sharding.place_rows(mesh, rows, size) for name, rows in batch.items()
                }
                if profile is not None and done == traced[0]:
                    tracing.enter_context(jax.profiler.trace(str(profile)))
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    turn = setup.turn(done - 1)
                    state, metrics = updates[turn](state, placed)
                if done == start + 1:
                    jax.block_until_ready(metrics)
                    distributed.on_process0(claim)
                    started()
                pending.append((turn, metrics))
                ahead.append(metrics["loss"])
                if len(ahead) > _AHEAD:
                    ahead.popleft().block_until_ready()
                if profile is not None and done == traced[-1]:
                    jax.block_until_ready(metrics)
                    with throughput.paused():
                        tracing.close()
                    say(
                        f"trace of steps {traced[0]}–{traced[-1]} in {profile}: open its "
                        "*.trace.json.gz at https://ui.perfetto.dev, or pip install xprof and run "
                        f"xprof --logdir={profile}"
                    )

                stops = signals.reached(done)
                last = done == config.steps
                saves = stops or last or done % config.checkpoint_every == 0
                if saves or done % config.log_every == 0:
                    values = _collect(pending, done, saved, run.experiment)
                    values["learning_rate"] = float(learning_rate(done - 1))
                    values |= throughput.read(len(pending), sum(work[turn] for turn, _ in pending))
                    pending = []
                    raise_on_all(log.train, done, values)
                score = None
                with throughput.paused():
                    if done % config.eval_every == 0 and not stops:
                        estimate = evaluate(run, state.ema, final=False)
                        score = estimate.nll
                        raise_on_all(log.valid, done, estimate)
                    if saves:
                        saver.save(done, state, score=score)
                        saved = done
                if stops and not last:
                    saver.wait()
                    raise signals.stopped(done)
        saver.wait()
    return state


def evaluate(run: Run, params: Any, *, final: bool) -> BoundEstimate:
    """The experiment's bound on its validation records; `final` for the full protocol."""
    config = run.experiment.evaluation
    limit = config.final_records if final else config.records
    records = raise_on_all(_records, run, "valid")
    batches = pipeline.evaluation_batches(records, config.batch_size, limit=limit or None)
    return evaluate_bound(
        run.setup.spec,
        run.setup.network,
        params,
        batches,
        run.experiment.bound(run.manifest.vocab_size),
        key=run.setup.key(KeyPurpose.EVALUATION),
        draws=config.draws if final else 1,
        bytes_per_token=run.manifest.valid.bytes_per_token,
        mesh=run.mesh,
    )


def _records(run: Run, split: str) -> pipeline.Records:
    return pipeline.Records(run.data_dir, split, padded=run.experiment.data.is_padded)


def _check_profile(folder: Path, traced: range, steps: int) -> None:
    if traced[-1] > steps:
        raise UserError(
            f"A trace takes the steps {traced[0]}–{traced[-1]}, but the training ends after step "
            f"{steps}: set train.steps to at least {traced[-1]}, or leave out the profile."
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _collect(
    pending: list[tuple[int, Metrics]], done: int, saved: int, experiment: Experiment
) -> dict[str, float]:
    """Means of the metrics since the last call. Raises UserError if any is not finite.

    Where steps are given to several hyperschedules, the loss of each is there too.

    Only here does the host wait for the devices to finish all steps.
    """
    fetched = jax.device_get([metrics for _, metrics in pending])
    for offset, values in enumerate(fetched):
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            step = done - len(fetched) + offset + 1
            kept = f"the checkpoint of step {saved} is kept" if saved else "no checkpoint was saved"
            raise UserError(
                f"{bad[0]} became {float(values[bad[0]])} at step {step}; {kept}: "
                f"lower optimizer.learning_rate (now {experiment.optimizer.learning_rate:g})."
            )
    means = {name: float(np.mean([v[name] for v in fetched])) for name in fetched[0]}
    every = experiment.each if len(experiment.each) > 1 else ()
    for number, own in enumerate(every):
        turns = (turn for turn, _ in pending)
        losses = [v["loss"] for v, turn in zip(fetched, turns, strict=True) if turn == number]
        if losses:
            name = own.schedule.build(experiment.data.length).name
            means[f"loss of {name}"] = float(np.mean(losses))
    return means
