"""Command lines: argparse whose mistakes are one sentence, and `--config` with its settings.

Light: nothing here imports JAX, so that a mistake in a flag shows at once.
"""

import argparse
import importlib.util
import inspect
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import ml_collections

import hybrid_jax
from hybrid_jax.errors import MOST_SEED, MOST_WHOLE, UserError, exit_status
from hybrid_jax.runtime import allocator, compilation_cache
from hybrid_jax.runtime.decode import nearest
from hybrid_jax.runtime.files import expanded, one_line

SETTINGS = (
    "--config is the name of a config of the package or a file FILE.py, with :SIZE where it has "
    "sizes (tiny, small, base). Any setting of it is replaced by --config.SECTION.NAME=VALUE. "
    "Settings are the fields of the dataclasses of hybrid_jax.config: python -m pydoc "
    "hybrid_jax.config lists them."
)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError` for a mistake, and knows no abbreviations."""

    def __init__(self, *, compiles: bool = False, **settings: Any) -> None:
        """`compiles`: whether the command runs compiled programs, and keeps them and the memory
        that they free (see `compilation_cache` and `allocator`)."""
        super().__init__(allow_abbrev=False, **settings)
        if compiles:
            self.add_argument(
                "--no_compilation_cache", action="store_true", help="compile every program anew"
            )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:].rstrip('.')} (see --help).")


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], object],
    *,
    interrupted: str,
) -> int:
    """Runs a command: its options (see `parse`), what a process is set up with, and its work.

    Returns its exit status (see `exit_status`).
    """

    def command() -> None:
        options = parse(parser, argv)
        if "no_compilation_cache" in options:
            allocator.keep_freed_memory()
            (compilation_cache.avoid if options.no_compilation_cache else compilation_cache.use)()
        work(options)

    return exit_status(command, interrupted=interrupted)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command.

    Args:
      argv: the words behind the program; None for those that it was started with.

    Returns:
      the options; `given`, the names of those flags that were; and where `--config` is an option,
      `settings`, a dict of the texts of `--config.NAME=VALUE` by name, such as
      {"noise.gamma": "0.05"}.

    Raises:
      UserError: for a mistake, a word that the parser does not know, or a flag given twice that
        does not add up.
    """
    given = [_text(word) for word in (sys.argv[1:] if argv is None else argv)]
    flags = Counter(word.partition("=")[0] for word in given if word.startswith("--"))
    options, rest = parser.parse_known_args(given)
    options.given = frozenset(flag.removeprefix("--") for flag in flags)
    for flag, times in flags.items():
        several = isinstance(getattr(options, flag.removeprefix("--"), None), list)
        if times > 1 and not several:
            parser.error(f"{flag} is given {times} times")
    if "config" in options:
        options.settings = {}
    words = iter(rest)
    for word in words:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--config.") or "config" not in options:
            parser.error(f"unexpected argument {word!r}")
        if not equals:
            value = next(words, "--")
        if value.startswith("--"):
            parser.error(f"{flag} needs a value: write {flag}=VALUE")
        options.settings[flag.removeprefix("--config.")] = value
    return options


def _text(word: str) -> str:
    """A word of the command line, UTF-8 whatever the locale. Raises UserError if it is none."""
    try:
        word.encode("utf-8")
        return word
    except UnicodeEncodeError:  # Python keeps bytes that it cannot read as half characters
        try:
            return os.fsencode(word).decode("utf-8")
        except UnicodeError as error:
            raise UserError(f"The argument {word!a} is not UTF-8: convert it.") from error


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `processes.start`."""
    group = parser.add_argument_group("not needed on one machine, on TPU pods and under SLURM")
    add = group.add_argument
    add("--coordinator", default="", metavar="HOST:PORT", help="address of process 0")
    add("--processes", type=int, metavar="N", help="number of processes that share the run")
    add("--process", type=int, metavar="N", help="number of this process, from 0")


def add_model(add: Callable[..., Any]) -> None:
    """Adds the flags of `pretrained.asked`: the model, and its hyperschedule."""
    add("--workdir", required=True, type=path_of, metavar="DIR",
        help="folder of the trained run, or an archive where nothing is stored in it")  # fmt: skip
    add("--step", type=step_of, help="checkpoint to use, or 'best' on validation (default: newest)")
    add("--schedule", metavar="NAME", help="hyperschedule in place of the trained one, such as "
        "block:width=8:levels=4, slide:width=8, flat, dilated:levels=8 or quenched_ar")  # fmt: skip
    add("--strict", action="store_true", help="refuse a --schedule that was not trained for")


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `processes.join`."""
    parser.add_argument("--tensor", type=within(1), default=1, metavar="N",
        help="devices that share a copy of the model, where one cannot hold it")  # fmt: skip
    add_processes(parser)


def within(least: float, most: float = MOST_WHOLE, kind: type = int) -> Callable[[str], Any]:
    """A reader of numbers in a range, both ends included. For `type` of flags."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted} in {least} … {most}")
        return value

    return read


seed_of = within(0, MOST_SEED)


def check_mode(
    options: argparse.Namespace, mode: str, modes: Mapping[str, Collection[str]]
) -> None:
    """Refuses flags without an effect.

    Args:
      options: of `parse`.
      mode: in which the command runs.
      modes: by the name of a mode, the flags that it reads besides those that no mode names, which
        all read.

    Raises:
      UserError: for the first flag that was given and that `mode` does not read.
    """
    for name in sorted(options.given - set(modes[mode])):
        if homes := [home for home, flags in modes.items() if name in flags]:
            choose = "" if f"--{name}" in homes else f", or choose {' or '.join(homes)}"
            raise UserError(f"--{name} has no effect with {mode}: leave it out{choose}.")


def distinct(flag: str, values: Sequence[Any]) -> None:
    """Raises UserError if a flag names something twice."""
    for value, times in Counter(values).items():
        if times > 1:
            raise UserError(f"{flag} names {value} {times} times: leave out all but one.")


def step_of(text: str) -> int | Literal["best"]:
    """A step as the command line names it. Raises UserError for neither a number nor "best"."""
    if text == "best":
        return "best"
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"The step {text!r} is neither a number nor 'best'.") from error


def path_of(text: str) -> str:
    """A path of the command line: "~" is the home folder, also behind "=", where shells leave it.

    For `type` of flags.
    """
    return str(expanded(text)) if text else ""


def read_config(value: str) -> Mapping[str, Any]:
    """The settings of a config, for `--config=FILE.py[:SIZE]` or `--config=NAME[:SIZE]`.

    Raises:
      UserError: if there is no such file, or it does not return settings.
    """
    path, size = _find(value)
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"The config file {path} has no function get_config: define one.")
        _check_size(get_config, size, path)
        values: Any = get_config(*size)
        if isinstance(values, ml_collections.ConfigDict):
            values = values.to_dict()
    except UserError:
        raise
    # A config file is a program, which may raise anything, or exit.
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {one_line(error)}".rstrip(".")
        raise UserError(f"The config file {path} fails with {reason}: correct it.") from error
    if not isinstance(values, Mapping):
        raise UserError(
            f"get_config of {path} returns {type(values).__name__}: return a ConfigDict or a dict."
        )
    return values


def _check_size(get_config: Callable[..., Any], size: list[str], path: Path) -> None:
    """Raises UserError if a size is given that the config does not have, or needed and not given.

    Errors of the function itself are told apart from these.
    """
    try:
        inspect.signature(get_config).bind(*size)
    except TypeError as error:
        advice = (
            f"leave out :{size[0]}" if size else f"write --config={path}:SIZE, as get_config asks"
        )
        raise UserError(
            f"The config file {path} has {'no sizes' if size else 'no default size'}: {advice}."
        ) from error


def _find(value: str) -> tuple[Path, list[str]]:
    """The config file that a value of `--config` means, and its size if one is given."""
    if file := re.fullmatch(r"(.*\.py)(?::(.*))?", value, re.DOTALL):
        path, size = expanded(file[1]), file[2]
        if path.is_dir():
            raise UserError(f"--config={value} is a folder: name a file in it.")
        if not os.path.isfile(path):
            raise UserError(f"There is no config file {value!r}: see the folder configs/.")
    else:
        name, colon, rest = value.partition(":")
        size = rest if colon else None
        package = Path(hybrid_jax.__file__).parent
        folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
        known = sorted(path.stem for path in folder.glob("[a-z]*.py"))
        if name not in known and os.path.exists(expanded(value)):
            raise UserError(f"--config={value} is no Python file: name a FILE.py with get_config.")
        if name not in known:
            raise UserError(f"There is no config {name!r}: {nearest(name, known)}")
        path = folder / f"{name}.py"
    return path, [] if size is None else [size]
