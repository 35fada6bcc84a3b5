"""Models from elsewhere, and for elsewhere: pretrained GPT-2, Llama and Qwen, released HDLM models,
and archives to pass on.

    python -m hybrid_jax.interop import hf:SmolLM2-135M --workdir=runs/smol
    python -m hybrid_jax.interop import --from=hdlm-base-gamma-0.01 --workdir=runs/gamma \\
        --tokenizer=gpt2:data/gpt2
    python -m hybrid_jax.interop export --workdir=runs/epsilon_hybrid --out=released
    python -m hybrid_jax.interop archive --workdir=runs/demo --licence=MIT --out=demo.zip

`import` makes a workdir with a checkpoint of step 0, from which everything else goes on:
`hybrid_jax.generate`, evaluation, and training. Settings that are to differ are given here, as
``--config.SECTION.NAME=VALUE``. `archive` makes one file that opens as a workdir does. See
docs/interop.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hybrid_jax.errors import UserError
from hybrid_jax.runtime import command_line
from hybrid_jax.runtime.command_line import SETTINGS, path_of, step_of
from hybrid_jax.runtime.files import check_writable, writing
from hybrid_jax.runtime.scratch import raise_when_terminated, scratch_folder


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
        size, workdir = sum(x.size for x in jax.tree.leaves(network.shapes)), options.workdir
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
    print(
        f"{options.workdir} holds a {letter}-hybrid of {size:,} parameters at step 0; train it "
        f"with\n  python -m hybrid_jax.main --workdir={options.workdir}\nand generate with\n"
        f"  python -m hybrid_jax.generate --workdir={options.workdir}"
    )


def _export(options: argparse.Namespace) -> None:
    from hybrid_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
    from hybrid_jax.interop import families
    from hybrid_jax.interop.released import export_released, require_empty
    from hybrid_jax.training import pretrained

    out = Path(options.out)
    require_empty(out)
    model = pretrained.load(options.workdir, step=options.step)
    with writing(out), scratch_folder(out) as folder:
        if model.network.norm == "rms" or model.network.position == "learned":
            families.export(model.experiment, model.network, model.params, folder)
        else:
            export_released(model, folder)
        if isinstance(model.tokenizer, HuggingFaceTokenizer):
            model.tokenizer.write(folder)
        else:
            (folder / "tokenizer").mkdir()
            model.tokenizer.save(folder / "tokenizer")
        folder.rename(out)
    print(f"{options.out} holds the averaged parameters of step {model.step}, and the tokenizer")


def _archive(options: argparse.Namespace) -> None:
    from hybrid_jax.interop.card import card
    from hybrid_jax.runtime.files import expanded
    from hybrid_jax.training import archive, pretrained

    file, workdir = expanded(options.out), expanded(options.workdir)
    check_writable(file)
    archive.require_folder(workdir)
    model = pretrained.load(workdir)
    text = card(model, workdir, file, licence=options.licence, text_terms=options.text_terms)
    archive.write(file, workdir, model.params, card=text)
    print(f"{file} holds step {model.step} of {workdir}, with this card:\n\n{text}", end="")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m hybrid_jax.interop",
        description="Reads and writes models in the formats of others, and archives to pass on.",
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
    add = command("archive", _archive, "Writes a finished run as one file to pass on.")
    add("--workdir", required=True, type=path_of, metavar="DIR", help="folder of the finished run")
    add("--out", required=True, type=path_of, metavar="FILE.zip", help="file to write")
    add("--licence", required=True, metavar="NAME", help="of the weights, such as MIT")
    add("--text_terms", default="", metavar="TEXT",
        help="of the training text (default: known of pydocs and pysource)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
