"""Command lines: argparse whose mistakes are one sentence, and `--config` with its settings.

Light: nothing here imports JAX, so that a mistake in a flag shows at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import ml_collections

import hybrid_jax
from hybrid_jax.errors import MOST_SEED, MOST_WHOLE, UserError
from hybrid_jax.runtime.decode import nearest
from hybrid_jax.runtime.files import one_line

SETTINGS = (
    "--config is the name of a config of the package or a file FILE.py, with :SIZE where it has "
    "sizes (tiny, small, base). Any setting of it is replaced by --config.SECTION.NAME=VALUE. "
    "Settings are the fields of the dataclasses of hybrid_jax.config: python -m pydoc "
    "hybrid_jax.config lists them."
)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError` for a mistake, and knows no abbreviations."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:].rstrip('.')} (see --help).")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command.

    Args:
      argv: the words behind the program; None for those that it was started with.

    Returns:
      the options; where `--config` is one of them, `settings` is a dict of the texts of
      `--config.NAME=VALUE` by name, such as {"noise.gamma": "0.05"}.

    Raises:
      UserError: for a mistake, a word that the parser does not know, or a flag given twice that
        does not add up.
    """
    given = [_text(word) for word in (sys.argv[1:] if argv is None else argv)]
    flags = Counter(word.partition("=")[0] for word in given if word.startswith("--"))
    options, rest = parser.parse_known_args(given)
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


def step_of(text: str) -> int | Literal["best"]:
    """A step as the command line names it. Raises ValueError for neither a number nor "best"."""
    return "best" if text == "best" else int(text)


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
        values: Any = get_config(*size) if get_config else None
    except UserError:
        raise
    except Exception as error:  # a config file is a program, which may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}".rstrip(".")
        raise UserError(f"The config file {path} fails with {reason}: correct it.") from error
    if get_config is None:
        raise UserError(f"The config file {path} has no function get_config: define one.")
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    if not isinstance(values, Mapping):
        raise UserError(
            f"get_config of {path} returns {type(values).__name__}: return a ConfigDict or a dict."
        )
    return values


def _find(value: str) -> tuple[Path, list[str]]:
    """The config file that a value of `--config` means, and its size if one is given."""
    if file := re.fullmatch(r"(.*\.py)(?::(.*))?", value):
        path, size = Path(file[1]), file[2]
        if not path.is_file():
            raise UserError(f"There is no config file {value!r}: see the folder configs/.")
    else:
        name, colon, rest = value.partition(":")
        size = rest if colon else None
        package = Path(hybrid_jax.__file__).parent
        folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
        known = sorted(file.stem for file in folder.glob("[a-z]*.py"))
        if name not in known:
            raise UserError(f"There is no config {name!r}: {nearest(name, known)}")
        path = folder / f"{name}.py"
    return path, [] if size is None else [size]
