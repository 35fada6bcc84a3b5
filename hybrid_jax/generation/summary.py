"""What a run tells its user: what starts, how good the result is, and some text of it."""

from __future__ import annotations

import functools
import json
import textwrap
from pathlib import Path

import jax
import numpy as np

from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.files import unwritable, write_atomic
from hybrid_jax.runtime.processes import is_process0, raise_on_all
from hybrid_jax.sampling import prompts
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training import loop as train
from hybrid_jax.training.likelihood import BoundEstimate
from hybrid_jax.training.train_step import KeyPurpose, TrainState


def introduction(run: train.Run, workdir: Path) -> str:
    """One paragraph on what is about to be trained on what."""
    spec = run.setup.spec
    state = run.setup.abstract_state(run.mesh)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    held = sharding.bytes_per_device(state) / 2**20
    mesh = " × ".join(f"{name} {number}" for name, number in run.mesh.shape.items() if number > 1)
    splits = run.manifest.train, run.manifest.valid
    tokens = " + ".join(f"{split.records * run.manifest.length:,}" for split in splits)
    return (
        f"{run.experiment.name}: {spec.kernel.name} noise on {spec.schedule.name}, "
        f"{spec.layout.alignment} rows, {size:,} parameters\n"
        f"data: {run.manifest.source}, {tokens} tokens (train + valid) of "
        f"{run.manifest.vocab_size} kinds in records of {run.manifest.length}\n"
        f"devices: {run.mesh.size} × {jax.devices()[0].device_kind}{f' ({mesh})' if mesh else ''}, "
        f"{held:,.0f} MiB of state on each; processes: {jax.process_count()}; workdir: {workdir}"
    )


def finish(run: train.Run, workdir: Path, state: TrainState) -> None:
    """Evaluates the averaged parameters, samples from them, prints and stores both."""
    estimate = train.evaluate(run, state.ema, final=True)
    texts = sample_texts(run, state.ema, run.experiment.sampling.count)
    step = int(state.step)
    raise_on_all(lambda: _publish(workdir, step, estimate, texts) if is_process0() else None)


def _publish(workdir: Path, step: int, estimate: BoundEstimate, texts: list[str]) -> None:
    folder = workdir / "samples"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    lines = [json.dumps({"step": step, "text": text}, ensure_ascii=False) for text in texts]
    write_atomic(folder / f"step-{step}.jsonl", "\n".join(lines) + "\n")
    values = {"step": step, "bound": estimate.bound, "records": estimate.records,
              "draws": estimate.draws, **estimate.values()}  # fmt: skip
    write_atomic(workdir / "result.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    for number, text in enumerate(texts, 1):
        print(f"\nsample {number}:")
        print(textwrap.indent(text, "  | ", lambda _: True))
    print(f"\nvalidation {estimate}")
    ratio = estimate.perplexity / estimate.unigram_perplexity
    print(
        f"unigram perplexity of the same tokens: {estimate.unigram_perplexity:.2f} "
        f"(the model's bound is {ratio:.2f} of it)"
    )


def sample_texts(run: train.Run, params, count: int) -> list[str]:
    """Text generated from nothing with the experiment's update rule."""
    if not count:
        return []
    setup, sampling = run.setup, run.experiment.sampling
    given = prompts.nothing(count, setup.spec.schedule.length)
    eos = run.tokenizer.eos if sampling.eos == "stop" else None
    sampler = Sampler(spec=setup.spec, network=setup.network, eos=eos)

    @functools.partial(jax.jit, out_shardings=sharding.everywhere(run.mesh))
    def sample(params):
        keys = jax.random.split(setup.key(KeyPurpose.SAMPLING), count)
        texts = generate(sampler, sampling.build(), params, keys, given)
        return texts.tokens, texts.length

    with sharding.use(run.mesh):
        tokens, lengths = jax.tree.map(np.asarray, sample(params))
    return [run.tokenizer.decode(row[:n]) for row, n in zip(tokens, lengths, strict=True)]
