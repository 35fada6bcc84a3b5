"""Draws the paper's pictures from the package's own functions.

    python -m hybrid_jax.figures --out=docs/figures
    python -m hybrid_jax.figures hyperschedules noise --out=docs/figures
    python -m hybrid_jax.figures --workdir=runs/ar --workdir=runs/mdlm --out=docs/figures

All pictures that need no trained model are drawn, or those that are named; each --workdir adds a
text to the animation, which is written as GIF and as one HTML file.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hybrid_jax.errors import UserError
from hybrid_jax.figures import canvas, gif, hyperschedules, masks, noise, page
from hybrid_jax.generation import frames, generator, requests
from hybrid_jax.generation.frames import Recording
from hybrid_jax.runtime import command_line
from hybrid_jax.runtime.command_line import path_of, seed_of
from hybrid_jax.runtime.decode import nearest
from hybrid_jax.runtime.files import check_writable, labels, write_atomic
from hybrid_jax.training import pretrained

PICTURES: Mapping[str, Callable[[], bytes]] = {
    "hyperschedules": hyperschedules.draw,
    "noise": noise.draw,
    "training_masks": masks.draw_training,
    "inference_masks": masks.draw_inference,
}
ANIMATION, OTHERS = "animation", "the other pictures"
MODES = {ANIMATION: ("workdir", "prompt", "seed"), OTHERS: ()}


def names_of(options: argparse.Namespace) -> list[str]:
    """The pictures to draw, first the animation, whose runs may be refused.

    Raises:
      UserError: for unknown names, an animation of nothing, or flags without an effect.
    """
    known = [*PICTURES, ANIMATION]
    for name in options.names:
        if name not in known:
            raise UserError(f"There is no picture {name!r}: {nearest(name, known)}")
    if ANIMATION in options.names and not options.workdir:
        raise UserError(f"The {ANIMATION} shows trained runs: say which with --workdir=DIR.")
    chosen = options.names or [*PICTURES, *([ANIMATION] if options.workdir else [])]
    command_line.check_mode(options, ANIMATION if ANIMATION in chosen else OTHERS, MODES)
    command_line.distinct("--workdir", [Path(workdir).resolve() for workdir in options.workdir])
    return sorted(dict.fromkeys(chosen), key=lambda name: name != ANIMATION)


def files_of(name: str, options: argparse.Namespace) -> dict[str, bytes | str]:
    """The files of a picture, by name."""
    if name != ANIMATION:
        return {f"{name}.png": PICTURES[name]()}
    workdirs = [Path(workdir).resolve() for workdir in options.workdir]
    recordings = [
        record_run(workdir, title=title, prompt=options.prompt, seed=options.seed)
        for workdir, title in zip(workdirs, labels(workdirs), strict=True)
    ]
    return {f"{name}.gif": gif.draw(recordings), f"{name}.html": page.draw(recordings)}


def record_run(workdir: str | Path, *, title: str, prompt: str = "", seed: int = 0) -> Recording:
    """A text of a trained run, with the run's own rule.

    Raises:
      UserError: if the run cannot be opened, or the prompt does not fit.
    """
    model = pretrained.load(workdir)
    spec = model.spec
    return frames.record(
        generator.build(model),
        requests.beginning(prompt, model.tokenizer, stop=spec.schedule.length), seed=seed,
        title=title,
        settings=f"{spec.schedule.name}, {spec.kernel.name}, {model.experiment.sampling.rule}",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Draws the pictures of the options one after the other, and prints their files."""
    names = names_of(options)
    folder = Path(options.out)
    check_writable(folder, folder=True)
    canvas.module("matplotlib")  # before any work
    for name in names:
        files = files_of(name, options)
        for file, content in files.items():
            write_atomic(folder / file, content)
            print(folder / file)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m hybrid_jax.figures",
        description="Draws the paper's pictures from the package's own functions.",
        compiles=True,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME",
        help=f"pictures: {', '.join(PICTURES)}, {ANIMATION} (default: all, the last of them "
        "with --workdir)")  # fmt: skip
    add("--out", default="figures", type=path_of, metavar="DIR",
        help="folder to write to (default: %(default)s)")  # fmt: skip
    add("--workdir", action="append", default=[], type=path_of, metavar="DIR",
        help="trained run to animate; may be repeated, for runs side by side")  # fmt: skip
    add("--prompt", default="", metavar="TEXT", help="beginning of the animated texts")
    add("--seed", type=seed_of, default=0, help="of the animated texts")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command_line.run_command(
        _parser(), argv, run, interrupted="pictures that were written stay"
    )


if __name__ == "__main__":
    sys.exit(main())
