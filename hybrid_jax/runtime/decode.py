"""Dataclasses from names and values of JSON and command lines: checked, nothing ignored."""

import contextlib
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hybrid_jax.errors import UserError, hints_of, void

T = TypeVar("T")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint naming the nearest known name, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, UTF-8 where it is bytes.

    Raises:
      ValueError: if it is none, strictly: NaN is no number, and half a surrogate pair no text; or
        if it is nested too deeply to be read.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_number)
        if "\\u" in text:  # which can spell half of a pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def from_values(cls: type[T], values: Any, path: str) -> T:
    """A dataclass from names and values, nested where its fields are dataclasses.

    Args:
      path: name of the whole in messages.

    Raises:
      UserError: for an unknown or missing name, a wrong type or a bad value.
    """
    if not isinstance(values, typing.Mapping):
        raise UserError(f"{path} is a section, not a value.")
    for name in values:
        if not isinstance(name, str):
            raise UserError(f"{path}.{name!r} is not a setting: names are strings.")
    arguments = {
        name: checked(value, _hint(cls, name, path), f"{path}.{name}")
        for name, value in values.items()
    }
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # it is a dataclass
        required = field.default is field.default_factory  # both are MISSING
        if required and field.name not in arguments:
            raise UserError(f"{path}.{field.name} is missing.")
    return cls(**arguments)


def overridden(
    cls: Any, values: typing.Mapping[str, Any], texts: typing.Mapping[str, str], path: str
) -> dict[str, Any]:
    """Names and values for `from_values`, with some replaced by texts of a command line.

    A setting that has no effect beside the new values is dropped unless it is one of them: it
    belonged to what they replace, as γ does to the noise kernel.

    Args:
      values: names and values that `from_values` accepts.
      texts: by name, such as "noise.gamma", the new value as it was written.
      path: name of the whole in messages.

    Raises:
      UserError: for an unknown name, or a text that is no value of its type.
    """
    result = {k: dict(v) if isinstance(v, typing.Mapping) else v for k, v in values.items()}
    for name, text in texts.items():
        section, _, setting = name.rpartition(".")
        kind, place, where = cls, result, path
        if section:
            kind, where = _hint(cls, section, path), f"{path}.{section}"
            place = result.setdefault(section, {})
        hint = _hint(kind, setting, where) if dataclasses.is_dataclass(kind) else None
        if hint is None or dataclasses.is_dataclass(hint):
            raise UserError(f"{path}.{name} is not a setting: write {path}.SECTION.NAME=VALUE.")
        place[setting] = from_text(text, hint, f"{path}.{name}")
    return without_void(cls, result, lambda section, name: f"{section}.{name}" not in texts)


def without_void(
    cls: Any, values: typing.Mapping[str, Any], drops: Callable[[str, str], bool]
) -> dict[str, Any]:
    """Names and values for `from_values`, with None for settings that have no effect.

    Args:
      drops: (section, name) -> whether such a setting is dropped; others are left to be refused.
    """
    result = {k: dict(v) if isinstance(v, typing.Mapping) else v for k, v in values.items()}
    hints = hints_of(cls)
    for section, part in result.items():
        if dataclasses.is_dataclass(hints.get(section)) and isinstance(part, dict):
            for name in void(hints[section], part):
                if drops(section, name):
                    part[name] = None
    return result


def from_text(text: str, hint: Any, where: str) -> Any:
    """A value of the type `hint` from a command line; "none" is None where that is allowed.

    Args:
      hint: int, float, bool, str or a Literal of strings, or one of these and None.
      where: name of the value in messages.

    Raises:
      UserError: if the text is no value of the type.
    """
    kind, optional = _without_none(hint)
    if optional and text.lower() == "none":
        return None
    if kind is bool:
        return checked({"true": True, "false": False}.get(text.lower(), text), kind, where)
    try:
        value = kind(text) if kind in (int, float) else text
    except ValueError:
        value = text
    return checked(value, hint, where)


def listed(text: str) -> list[str]:
    """The parts of a list on a command line or in a source, without empty ones.

    Args:
      text: parts separated by commas, "a.txt,b.txt", or a JSON list of strings where a part has a
        comma in it, '["a,b.txt", "c.txt"]'.
    """
    if text.lstrip().startswith("["):
        try:
            parts = json.loads(text)
        except (ValueError, RecursionError):  # [ab]*.txt is a pattern
            parts = None
        if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            return [part for part in parts if part]
    return [part.strip() for part in text.split(",") if part.strip()]


def _hint(cls: Any, name: str, path: str) -> Any:
    """The type of a field. Raises UserError with the nearest name if there is none."""
    hints = hints_of(cls)
    if name in hints:
        return hints[name]
    inside = [
        f"{section}.{name}"
        for section, hint in hints.items()
        if dataclasses.is_dataclass(hint) and name in hints_of(hint)
    ]
    hint = f"did you mean {' or '.join(inside)}?" if inside else nearest(name, hints)
    raise UserError(f"{path}.{name} is not a setting: {hint}")


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type without its None, and whether it had one."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    (kind,) = (option for option in typing.get_args(hint) if option is not type(None))
    return kind, True


def checked(value: Any, hint: Any, where: str) -> Any:
    """A value as its type hint asks: a dataclass, a literal, a number, …, or a list of these.

    Args:
      where: name of the value in messages.

    Raises:
      UserError: if it is of another type.
    """
    kind, optional = _without_none(hint)
    if optional and value is None:
        return None
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_values(kind, value, where)
    if typing.get_origin(kind) is tuple:  # of any length
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}={value!r} should be a list.")
        item = typing.get_args(kind)[0]
        return tuple(checked(part, item, f"{where}[{i}]") for i, part in enumerate(value))
    if typing.get_origin(kind) is Literal:
        known = typing.get_args(kind)
        if value not in known:
            raise UserError(f"{where}={value!r} is not one of {', '.join(map(str, known))}.")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # such a number is refused as it is
            value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        also = " (or none)" if optional else ""
        raise UserError(f"{where}={value!r} should be of type {kind.__name__}{also}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{where}={value!r} should be a finite number.")
    return value
