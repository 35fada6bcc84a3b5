"""Dataclasses from names and values of JSON and command lines: checked, nothing ignored."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Literal

from hybrid_jax.errors import UserError


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint naming the nearest known name, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."


def from_values(cls, values, path: str):
    """A dataclass from names and values, nested where its fields are dataclasses.

    Args:
      path: what messages call it.

    Raises:
      UserError: for an unknown or missing name, a wrong type or a bad value.
    """
    if not isinstance(values, typing.Mapping):
        raise UserError(f"{path} is a section, not a value.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{path}.{name} is not a setting: {nearest(name, fields)}")
        arguments[name] = checked(value, hints[name], f"{path}.{name}")
    for name, field in fields.items():
        if name not in arguments and field.default is field.default_factory:  # both are MISSING
            raise UserError(f"{path}.{name} is missing.")
    return cls(**arguments)


def checked(value, hint, where: str):
    """A value as its type hint asks: a dataclass, a literal, a number, …, or a list of these.

    Args:
      where: what messages call it.

    Raises:
      UserError: if it is of another type.
    """
    if dataclasses.is_dataclass(hint):
        return from_values(hint, value, where)
    if typing.get_origin(hint) is tuple:  # of any length
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}={value!r} should be a list.")
        item = typing.get_args(hint)[0]
        return tuple(checked(part, item, f"{where}[{i}]") for i, part in enumerate(value))
    if typing.get_origin(hint) is Literal:
        known = typing.get_args(hint)
        if value not in known:
            raise UserError(f"{where}={value!r} is not one of {', '.join(map(str, known))}.")
        return value
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
        return checked(value, hint, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}={value!r} should be of type {hint.__name__}.")
    return value
