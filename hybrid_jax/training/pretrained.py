"""A trained model, opened from its workdir. Nothing else is needed: no data, no configuration."""

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal, Self

from jax.sharding import Mesh

from hybrid_jax.config import Experiment
from hybrid_jax.data.tokenizers.base import Tokenizer
from hybrid_jax.errors import UserError
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.settings import ScheduleConfig
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.runtime import sharding
from hybrid_jax.runtime.checkpoint import Checkpointer
from hybrid_jax.runtime.files import expanded
from hybrid_jax.runtime.processes import raise_on_all
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import archive
from hybrid_jax.training import workdir as workdirs
from hybrid_jax.training.workdir import RunData


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network with its parameters, tokenizer and experiment.

    Attributes:
      params: the averaged parameters (EMA), to evaluate and sample with.
      step: updates made.
      data: the records that it was trained on; None if they are not known.
      mesh: of the devices that hold the parameters, and among which texts are divided.
    """

    experiment: Experiment
    tokenizer: Tokenizer
    network: Transformer
    spec: Spec
    params: Any
    step: int
    data: RunData | None = None
    mesh: Mesh = dataclasses.field(default_factory=sharding.one_device)

    @classmethod
    def load(
        cls,
        workdir: str | Path,
        *,
        step: int | Literal["best"] | None = None,
        mesh: Mesh | None = None,
        schedule: str | None = None,
        strict: bool = False,
    ) -> Self:
        """Opens a workdir; safe beside a training that writes to it.

        Args:
          workdir: of the run, or an archive (see `archive`), or the folder that it unpacks to.
          step: of the checkpoint; "best" for the one with the lowest bound on validation text, None
            for the newest that is intact.
          mesh: of the devices to use (`hybrid_jax.runtime.sharding.make_mesh`), which cuts the
            parameters as in training; None for the first device alone.
          schedule: a hyperschedule in place of the trained one, such as "block:width=8:levels=4" or
            "quenched_ar". Bounds and texts are right under any, and good under those that it was
            trained for.
          strict: whether a family and width that it was not trained for are refused.

        Raises:
          UserError: if there is no run, no tokenizer or no checkpoint, or it cannot be read, or the
            hyperschedule is none for it.
        """
        with contextlib.ExitStack() as stack:
            folder = raise_on_all(stack.enter_context, archive.opened(expanded(workdir)))
            experiment = raise_on_all(workdirs.load, folder)
            tokenizer = raise_on_all(workdirs.load_tokenizer, folder)
            data = raise_on_all(workdirs.load_data, folder)
            if schedule is not None:
                experiment = _on(experiment, schedule, strict=strict)
            network = experiment.network(tokenizer.vocab_size)
            mesh = mesh or sharding.one_device()
            shapes = network.shapes
            places = sharding.like_parameters(mesh, shapes, network.axes)
            found, params = _parameters(folder, step, sharding.with_shardings(shapes, places))
        return cls(
            experiment=experiment,
            tokenizer=tokenizer,
            network=network,
            spec=experiment.spec(tokenizer.vocab_size, tokenizer.bos, tokenizer.eos),
            params=params,
            step=found,
            data=data,
            mesh=mesh,
        )


load = Pretrained.load


def _parameters(folder: Path, step: int | Literal["best"] | None, shapes: Any) -> tuple[int, Any]:
    """The step and the averaged parameters of a workdir, or of what was an archive."""
    if archive.holds(folder):
        found = raise_on_all(archive.parameters, folder, shapes)
        if step not in (None, found[0]):
            raise UserError(f"{folder} holds step {found[0]} alone: leave out the step.")
        return found
    checkpoints = folder / "checkpoints"
    with Checkpointer(checkpoints, read_only=True) as saver:
        if step == "best":
            step = saver.best_step()
            if step is None:
                raise UserError(
                    f"No checkpoint in {checkpoints} was evaluated: leave out the step."
                )
        restored = saver.restore({"ema": shapes}, step=step, partial=True)
    if restored is None:
        raise UserError(
            f"{checkpoints} holds no checkpoint yet: wait for the training's first, or run it "
            "longer."
        )
    return restored[0], restored[1]["ema"]


def asked(options: argparse.Namespace, mesh: Mesh | None = None) -> Pretrained:
    """`load` by the flags --workdir, --step, --schedule and --strict; raises as it does."""
    if options.strict and options.schedule is None:
        raise UserError("--strict has no effect without --schedule: leave it out.")
    return load(
        options.workdir, step=options.step, mesh=mesh,
        schedule=options.schedule, strict=options.strict,
    )  # fmt: skip


def _on(experiment: Experiment, schedule: str, *, strict: bool) -> Experiment:
    wanted, known = ScheduleConfig.parse(schedule), experiment.schedule.each
    if strict and wanted.window not in [own.window for own in known]:
        trained = " and ".join(own.build(experiment.data.length).name for own in known)
        raise UserError(
            f"{experiment.name} was trained on {trained}, and not on {schedule}: choose one of "
            "these, or leave out --strict."
        )
    chosen = experiment.on(wanted)
    # The run's rule need not go with it: it is checked where texts are written.
    plain = SamplingConfig(eos=chosen.sampling.eos)
    dataclasses.replace(chosen, sampling=plain).check()
    return chosen
