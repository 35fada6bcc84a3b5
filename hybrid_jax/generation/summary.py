"""The first and the last words of a run: the work ahead, the result, and some texts of it."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from hybrid_jax import optim
from hybrid_jax.data import pipeline
from hybrid_jax.generation import driver, generator, requests
from hybrid_jax.generation.requests import Request, Text
from hybrid_jax.generation.terminal import shown
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.json_text import file_name, write_json
from hybrid_jax.runtime.processes import on_process0, raise_on_all
from hybrid_jax.training import loop as train
from hybrid_jax.training.likelihood import BoundEstimate
from hybrid_jax.training.pretrained import Pretrained
from hybrid_jax.training.train_step import TrainState

_BATCH = 32  # texts at a time


def introduction(run: train.Run, workdir: Path) -> str:
    """One paragraph: model, data, devices and workdir."""
    spec = run.setup.spec
    state = run.setup.abstract_state(run.mesh)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    held = sharding.bytes_per_device(state) / 2**20
    mesh = " × ".join(f"{name} {number}" for name, number in run.mesh.shape.items() if number > 1)
    splits = run.manifest.train, run.manifest.valid
    steps, warmup_steps = run.experiment.train.steps, run.experiment.optimizer.warmup_steps
    shortened = (
        f"\nwarm-up: shortened from optimizer.warmup_steps={warmup_steps} to the {steps} steps of "
        "the training"
        if optim.warmup(run.experiment.optimizer, steps) < warmup_steps
        else ""
    )
    others = [own.schedule.name for own in run.setup.others]
    also = f"\nsteps also on: {', '.join(others)}" if others else ""
    tokens = " + ".join(f"{split.records * run.manifest.length:,}" for split in splits)
    changes = (
        f"the text has changed since ({run.changes}); the run goes on with the records it began "
        f"with, in {run.data_dir}\n"
        if run.changes
        else ""
    )
    return (
        f"{run.experiment.name}: {spec.kernel.name} noise on {spec.schedule.name}, "
        f"{spec.layout.alignment} rows, {size:,} parameters{also}\n"
        f"data: {run.manifest.source}, {tokens} tokens (train + valid) of "
        f"{run.manifest.vocab_size} kinds in records of {run.manifest.length}\n{changes}"
        f"devices: {run.mesh.size} × {jax.devices()[0].device_kind}{f' ({mesh})' if mesh else ''}, "
        f"{held:,.0f} MiB of state on each; processes: {jax.process_count()}; workdir: {workdir}"
        f"{shortened}"
    )


def finish(run: train.Run, workdir: Path, state: TrainState) -> None:
    """Evaluates the averaged parameters, samples from them, prints and stores both."""
    estimate = train.evaluate(run, state.ema, final=True)
    texts, settings = sample_texts(run, workdir, state)
    on_process0(_publish, workdir, int(state.step), estimate, texts, settings)


def _publish(
    workdir: Path,
    step: int,
    estimate: BoundEstimate,
    texts: Sequence[Text],
    settings: Mapping[str, Any],
) -> None:
    for text in texts:
        print(f"\nsample {text.number + 1}:")
        print(textwrap.indent(shown(text.text), "  | ", lambda _: True))
    print(f"\nvalidation {estimate}")
    ratio = estimate.perplexity / estimate.unigram_perplexity
    print(
        f"unigram perplexity of the same tokens: {estimate.unigram_perplexity:.2f} "
        f"(the model's bound is {ratio:.2f} of it)"
    )

    # Now that they have been seen.
    if texts:
        # A finished run may be sampled from again, with another rule.
        name = file_name(f"step-{step}", {**settings, "workdir": "", "count": len(texts)})
        requests.write(workdir / "samples" / f"{name}.jsonl", texts, settings)
    values = {"step": step, "bound": estimate.bound, "records": estimate.records,
              "draws": estimate.draws, **estimate.values()}  # fmt: skip
    write_json(workdir / "result.json", values)


def sample_texts(
    run: train.Run, workdir: Path, state: TrainState
) -> tuple[list[Text], dict[str, Any]]:
    """Texts generated with the experiment's update rule, and their settings.

    They begin with nothing, or with prompts of the validation records where these are pairs.
    `hybrid_jax.generate` writes the same with `--num_samples` of `sampling.count` and the seed of
    training.
    """
    setup, sampling, seed = run.setup, run.experiment.sampling, run.experiment.train.seed
    model = Pretrained(
        experiment=run.experiment,
        tokenizer=run.tokenizer,
        network=setup.network,
        spec=setup.spec,
        params=state.ema,
        step=int(state.step),
        mesh=run.mesh,
    )
    own = generator.build(model)
    length, count = setup.spec.schedule.length, sampling.count
    wanted = [Request(prompt="", ids=[], stop=length)] * count
    if run.manifest.pairs:
        records = raise_on_all(pipeline.Records, run.data_dir, "valid")
        pairs = records.read(range(min(count, len(records))))
        starts = [t[:n].tolist() for t, n in zip(pairs["tokens"], pairs["given"], strict=True)]
        wanted = [Request(prompt=run.tokenizer.decode(s), ids=s, stop=length) for s in starts]
    texts = driver.run(own, wanted, seed=seed, batch_size=_BATCH)
    return texts, own.settings(workdir, seed)
