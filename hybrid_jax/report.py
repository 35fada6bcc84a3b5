"""What a run tells its user: what starts, how good the result is, and some text of it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import jax

from hybrid_jax import train
from hybrid_jax.atomic import write_atomic
from hybrid_jax.sampling import prompts
from hybrid_jax.sampling.loop import generate
from hybrid_jax.sampling.state import Sampler


def introduction(run: train.Run, workdir: Path) -> str:
    """One paragraph on what is about to be trained on what."""
    shapes = jax.eval_shape(run.network.init, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    splits = run.card.train, run.card.valid
    tokens = " + ".join(f"{split.records * run.card.length:,}" for split in splits)
    return (
        f"{run.experiment.name}: {run.problem.kernel.name} noise on {run.problem.schedule.name}, "
        f"{run.problem.layout.alignment} rows, {size:,} parameters\n"
        f"data: {run.card.source}, {tokens} tokens (train + valid) of {run.card.vocab_size} kinds "
        f"in records of {run.card.length}\n"
        f"workdir: {workdir}; devices: {len(jax.devices())} × {jax.devices()[0].device_kind}"
    )


def finish(run: train.Run, workdir: Path, state: train.TrainState) -> None:
    """Evaluates the averaged parameters, samples from them, prints and stores both."""
    estimate = train.evaluate(run, state.ema, final=True)
    texts = sample_texts(run, state.ema, run.experiment.sampling.count)
    step = int(state.step)
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
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
    sampling = run.experiment.sampling
    given = prompts.nothing(count, run.problem.schedule.length)
    keys = jax.random.split(run.key(train.SAMPLING), count)
    eos = run.tokenizer.eos if sampling.eos == "stop" else None
    sampler = Sampler(problem=run.problem, network=run.network, eos=eos)
    texts = generate(sampler, sampling.build(), params, keys, given)
    return [
        run.tokenizer.decode(row[:length])
        for row, length in zip(*jax.device_get((texts.tokens, texts.length)), strict=True)
    ]
