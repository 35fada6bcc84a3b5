"""Models from elsewhere, and for elsewhere: pretrained GPT-2, Llama and Qwen, released HDLM models,
and a start from another run.

    python -m hybrid_jax.interop import hf:SmolLM2-135M --workdir=runs/smol
    python -m hybrid_jax.interop import --from=hdlm-base-gamma-0.01 --workdir=runs/gamma \\
        --tokenizer=gpt2:data/gpt2
    python -m hybrid_jax.interop export --workdir=runs/epsilon_hybrid --out=released
    python -m hybrid_jax.interop start --from=runs/ar --config=configs/slide.py --workdir=runs/slide

`import` and `start` make a workdir with a checkpoint of step 0, from which everything else goes on:
`hybrid_jax.generate`, evaluation, and training with ``hybrid_jax.main --workdir=WORKDIR``. Settings
that are to differ are given here, as ``--config.SECTION.NAME=VALUE``. See docs/interop.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hybrid_jax.errors import UserError
from hybrid_jax.runtime import command_line
from hybrid_jax.runtime.command_line import SETTINGS, path_of, step_of
from hybrid_jax.runtime.scratch import raise_when_terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""

    def work(options: argparse.Namespace) -> None:
        from hybrid_jax.runtime.quiet import quieten_orbax

        quieten_orbax()
        options.run(options)

    with raise_when_terminated():
        return command_line.run_command(_parser(), argv, work, interrupted="nothing was written")


def _import(options: argparse.Namespace) -> None:
    import jax

    from hybrid_jax.interop.workdirs import workdir_from_family, workdir_from_released

    kind, _, family = options.family.partition(":")
    if options.family:
        if options.source or options.tokenizer or options.config or kind != "hf" or not family:
            raise UserError(
                "Say what to import: hf:FOLDER alone, or --from=FOLDER and --tokenizer=NAME for a "
                "released HDLM model."
            )
        network = workdir_from_family(family, options.workdir, settings=options.settings)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        size, workdir = sum(x.size for x in jax.tree.leaves(shapes)), options.workdir
        print(
            f"{workdir} holds an autoregressive model of {size:,} parameters; generate with\n"
            f"  python -m hybrid_jax.generate --workdir={workdir}\nand start a training with\n"
            f"  python -m hybrid_jax.main --init={workdir} --workdir=DIR"
        )
        return
    if not (options.source and options.tokenizer):
        raise UserError("Say what to import: hf:FOLDER, or --from=FOLDER and --tokenizer=NAME.")
    released = workdir_from_released(
        options.source, options.workdir, tokenizer=options.tokenizer,
        config=command_line.read_config(options.config) if options.config else None,
        settings=options.settings,
    )  # fmt: skip
    for note in released.notes:
        print(f"note: {note}")
    letter = {"epsilon": "ε", "gamma": "γ"}[released.kind]
    size = sum(leaf.size for leaf in jax.tree.leaves(released.params))
    _show(options.workdir, f"holds a {letter}-hybrid of {size:,} parameters at step 0")


def _export(options: argparse.Namespace) -> None:
    from hybrid_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
    from hybrid_jax.interop import families
    from hybrid_jax.interop.released import export_released, require_empty
    from hybrid_jax.runtime.files import writing
    from hybrid_jax.training import pretrained

    require_empty(Path(options.out))
    model = pretrained.load(options.workdir, step=options.step)
    out, tokenizer = Path(options.out), model.tokenizer
    if model.network.norm == "rms" or model.network.position == "learned":
        families.export(model.experiment, model.network, model.params, out)
    else:
        export_released(model, out)
    with writing(out):
        if isinstance(tokenizer, HuggingFaceTokenizer):
            tokenizer.write(out)
        else:
            (out / "tokenizer").mkdir()
            tokenizer.save(out / "tokenizer")
    print(f"{options.out} holds the averaged parameters of step {model.step}, and the tokenizer")


def _start(options: argparse.Namespace) -> None:
    values = command_line.read_config(options.config)
    from hybrid_jax.config import Experiment
    from hybrid_jax.interop.workdirs import start_from

    experiment = Experiment.from_config(values, options.settings)
    model = start_from(options.source, experiment, options.workdir, step=options.step)
    _show(options.workdir, f"starts from step {model.step} of {options.source}")


def _show(workdir: str, content: str) -> None:
    print(
        f"{workdir} {content}; train it with\n  python -m hybrid_jax.main --workdir={workdir}\n"
        f"and generate with\n  python -m hybrid_jax.generate --workdir={workdir}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m hybrid_jax.interop",
        description="Reads and writes released HDLM models, and starts a run from another.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(
        name: str, run: Callable[..., None], text: str, epilog: str = ""
    ) -> Callable[..., Any]:
        found = commands.add_parser(name, help=text, description=text, epilog=epilog)
        found.set_defaults(run=run)
        return found.add_argument

    file, step = "FILE.py[:SIZE]", "checkpoint to use, or 'best' on validation (default: newest)"
    add = command("import", _import, "Makes a workdir of a pretrained model.", SETTINGS)
    add("family", nargs="?", default="", metavar="hf:FOLDER",
        help="GPT-2, Llama, Qwen2 or Qwen3: folder with config.json, safetensors and "
        "tokenizer.json, or a name on the Hugging Face hub")  # fmt: skip
    add(
        "--from",
        dest="source",
        type=path_of,
        metavar="FOLDER",
        help="released HDLM model: folder with config.json and weights, or a name on the hub",
    )
    add("--workdir", required=True, type=path_of, metavar="DIR", help="folder to make")
    add("--tokenizer", help="of a released model: gpt2:FOLDER, hf:NAME, byte, or the folder of "
        "a saved one")  # fmt: skip
    add("--config", metavar=file, help="what to train it for (default: as it was released)")
    add = command("export", _export, "Writes a trained model in the format that has its form.")
    add("--workdir", required=True, type=path_of, metavar="DIR", help="folder of the trained run")
    add("--out", required=True, type=path_of, metavar="FOLDER", help="folder to make")
    add("--step", type=step_of, help=step)
    add = command(
        "start", _start, "Makes a workdir that starts from the network of another.", SETTINGS
    )
    add("--from", dest="source", required=True, type=path_of, metavar="DIR",
        help="workdir of the other run")  # fmt: skip
    add("--workdir", required=True, type=path_of, metavar="DIR", help="folder to make")
    add("--config", required=True, metavar=file, help="what to train (see below)")
    add("--step", type=step_of, help=step)
    return parser


if __name__ == "__main__":
    sys.exit(main())
