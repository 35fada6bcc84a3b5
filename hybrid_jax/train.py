"""The training loop: one function, read from top to bottom.

Nothing random is kept in the state. The noise of a step is a function of (seed, step, place in the
global batch) and the batch is a function of (seed, step), so a resumed run is the run it resumes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybrid_jax import estimator, optim
from hybrid_jax.checkpoint import Checkpointer
from hybrid_jax.config import Experiment
from hybrid_jax.data import pipeline, prepare, tokenizers
from hybrid_jax.errors import UserError
from hybrid_jax.estimator import Problem
from hybrid_jax.evaluate import BoundEstimate, evaluate_bound
from hybrid_jax.metrics import MetricsWriter, Progress
from hybrid_jax.models.transformer import Transformer

# What a key is for: the second argument of the first `fold_in` after the seed.
_INIT, _NOISE, _DROPOUT, _EVALUATION, SAMPLING = range(5)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "ema", "optimizer"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, updates made so far.
      params, ema: parameters and their moving average, float32.
      optimizer: state of the optax transformation.
    """

    step: jax.Array
    params: Any
    ema: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """An experiment with its data opened and its parts built."""

    experiment: Experiment
    card: prepare.Card
    tokenizer: tokenizers.Tokenizer
    problem: Problem
    network: Transformer
    optimizer: optax.GradientTransformation
    data_dir: Path

    def key(self, purpose: int) -> jax.Array:
        """The key of one purpose."""
        return jax.random.fold_in(jax.random.key(self.experiment.train.seed), purpose)

    def init(self) -> TrainState:
        """A fresh state."""
        params = self.network.init(self.key(_INIT))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            # A copy: the step donates both trees, so they may not share buffers.
            ema=jax.tree.map(jnp.copy, params),
            optimizer=self.optimizer.init(params),
        )


def open_run(experiment: Experiment) -> Run:
    """Prepares the data where needed, and builds the experiment's parts on it."""
    data_dir, card = prepared_data(experiment)
    tokenizer = tokenizers.load_tokenizer(data_dir)
    prepare.check_tokenizer(card, tokenizer)
    network = experiment.network(card.vocab_size)
    params = jax.eval_shape(network.init, jax.random.key(0))
    return Run(
        experiment=experiment,
        card=card,
        tokenizer=tokenizer,
        problem=experiment.problem(card.vocab_size, card.bos),
        network=network,
        optimizer=optim.make_optimizer(experiment.optimizer, experiment.train.steps, params),
        data_dir=data_dir,
    )


def prepared_data(experiment: Experiment) -> tuple[Path, prepare.Card]:
    """The folder of the experiment's records and its card; prepares them if they are missing."""
    data = experiment.data
    settings = dataclasses.asdict(data)
    del settings["dir"]
    out = Path(data.dir) if data.dir else prepare.default_dir(**settings)
    card = prepare.prepare(**settings, out=out)
    return out, card


def train_step(
    run: Run, state: TrainState, tokens: jax.Array, index: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      tokens: int32 [B, L], the global batch.
      index: int32 [B], place of each example in it.

    Returns:
      the new state, and "loss" (nats per token) and "grad_norm" as float32 scalars.
    """
    config = run.experiment.train
    time = run.problem.objective.time
    noise_key = jax.random.fold_in(run.key(_NOISE), state.step)
    dropout_key = jax.random.fold_in(run.key(_DROPOUT), state.step)

    def loss(params, tokens, index, dropout):
        terms = estimator.batch_terms(
            run.problem,
            run.network,
            params,
            tokens,
            index,
            noise_key,
            count=config.batch_size,
            time=time,
            loss=True,
            dropout_key=dropout if run.network.dropout else None,
        )
        return terms.mean()

    def accumulate(total, part):
        number, tokens, index = part
        value = jax.value_and_grad(loss)(
            state.params, tokens, index, jax.random.fold_in(dropout_key, number)
        )
        return jax.tree.map(jnp.add, total, value), None

    rounds = config.accumulation
    if rounds == 1:
        value, gradient = jax.value_and_grad(loss)(state.params, tokens, index, dropout_key)
    else:
        parts = (
            jnp.arange(rounds),
            tokens.reshape(rounds, -1, tokens.shape[-1]),
            index.reshape(rounds, -1),
        )
        zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, state.params))
        summed, _ = jax.lax.scan(accumulate, zero, parts)
        value, gradient = jax.tree.map(lambda x: x / rounds, summed)

    updates, optimizer = run.optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(
        step=state.step + 1,
        params=params,
        ema=optim.ema_update(state.ema, params, config.ema_decay, state.step),
        optimizer=optimizer,
    )
    return new, {"loss": value, "grad_norm": optax.tree.norm(gradient)}


def train(run: Run, workdir: Path, *, say: Callable[[str], None] = print) -> TrainState:
    """Trains until `train.steps`, resuming from the newest checkpoint in `workdir`.

    Raises:
      UserError: if the loss stops being finite; the last good checkpoint stays.
    """
    config = run.experiment.train
    learning_rate = optim.learning_rate_at(run.experiment.optimizer, config.steps)
    records = pipeline.Records(run.data_dir, "train")
    stream = pipeline.Stream(records, batch_size=config.batch_size, seed=config.seed)
    settings = dataclasses.asdict(run.experiment)
    with Checkpointer(workdir / "checkpoints", keep=config.keep, config=settings) as saver:
        state = jax.jit(run.init)()
        restored = saver.restore_latest(abstract(state))
        if restored is not None:
            start, state = restored
            say(f"resuming at step {start} from {workdir / 'checkpoints'}")
        start = int(state.step)
        if start >= config.steps:
            say(f"already trained for {start} steps")
            return state
        step_fn = jax.jit(functools.partial(train_step, run), donate_argnums=0)
        saved = start
        pending: list[dict[str, jax.Array]] = []
        tokens = config.batch_size * run.card.length
        with (
            MetricsWriter(workdir, resume_step=start) as writer,
            Progress(total=config.steps, start=start, tokens_per_step=tokens) as progress,
        ):
            for step, batch in stream.iterate(start):
                state, metrics = step_fn(state, batch["tokens"], batch["index"])
                pending.append(metrics)
                done = step + 1
                last = done == config.steps
                logs = last or done % config.log_every == 0
                saves = last or done % config.checkpoint_every == 0
                if logs or saves:
                    # The only place where the host waits for the device.
                    values = _collect(pending, done, saved, run.experiment)
                    pending = []
                    values["learning_rate"] = float(learning_rate(step))
                    steps_per_second = progress.update(done, values)
                    if math.isfinite(steps_per_second):
                        values["tokens_per_second"] = steps_per_second * tokens
                    writer.write(done, "train", values)
                if saves:
                    saver.save(done, state)
                    saved = done
                if last:
                    break
                if done % config.eval_every == 0:
                    estimate = evaluate(run, state.ema, final=False)
                    writer.write(done, "valid", estimate.values())
                    progress.note(f"step {done}: valid {estimate}")
        saver.wait()
    return state


def evaluate(run: Run, params, *, final: bool) -> BoundEstimate:
    """The experiment's bound on its validation records; `final` for the full protocol."""
    config = run.experiment.evaluation
    limit = config.final_records if final else config.records
    batches = pipeline.evaluation_batches(
        pipeline.Records(run.data_dir, "valid"), config.batch_size, limit=limit or None
    )
    return evaluate_bound(
        run.problem,
        run.network,
        params,
        batches,
        run.experiment.bound(run.card.vocab_size),
        key=run.key(_EVALUATION),
        draws=config.draws if final else 1,
        bytes_per_token=run.card.valid.bytes_per_token,
    )


def abstract(state):
    """Shapes, types and placements of a state's leaves."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _collect(pending, done: int, saved: int, experiment: Experiment) -> dict[str, float]:
    """Means of the metrics since the last call, refused if any is not finite."""
    fetched = jax.device_get(pending)
    for offset, values in enumerate(fetched):
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            step = done - len(fetched) + offset + 1
            kept = f"the checkpoint of step {saved} is kept" if saved else "no checkpoint was saved"
            raise UserError(
                f"{bad[0]} became {float(values[bad[0]])} at step {step}; {kept}: "
                f"lower optimizer.learning_rate (now {experiment.optimizer.learning_rate:g})."
            )
    return {name: float(np.mean([v[name] for v in fetched])) for name in fetched[0]}
