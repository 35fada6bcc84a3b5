"""Identity of what records are made from: the files of text and tokenizer, and what is in them."""

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path, PurePath

from hybrid_jax.data import manifest as manifests
from hybrid_jax.data import remote, sources, tokenizers
from hybrid_jax.data.content import Content
from hybrid_jax.data.manifest import Input, Manifest
from hybrid_jax.data.mixture import mixed
from hybrid_jax.errors import UserError


def read(part: str, known: Iterable[Input] = ()) -> tuple[Input, ...]:
    """The inputs that a source or a tokenizer consists of, in the order of reading.

    Args:
      part: see `sources.documents` and `tokenizers.make_tokenizer`; "" has none.
      known: inputs whose hashes hold where the stamps are still the same.

    Raises:
      UserError: if there is nothing of this name, or it cannot be read.
    """
    before = {old.name: old for old in known if old.part == part}
    found = []
    for name, (stamp, digest) in _contents(part).items():
        old = before.get(name)
        if old is None or old.stamp != stamp:
            old = Input(part=part, name=name, sha256=digest(), stamp=stamp)
        found.append(old)
    return tuple(found)


def stamps(parts: Iterable[str]) -> list[tuple[str, str]]:
    """Names and stamps of the inputs of all parts, which change when one does."""
    return [(name, stamp) for part in parts for name, (stamp, _) in _contents(part).items()]


def changes(manifest: Manifest, folder: Path) -> str:
    """Differences between what the records in `folder` were made from and what is there now.

    Files are the same if they hold the same in the same order, whatever their names. Text that is
    nowhere to be found counts as unchanged: records may be made on one machine and used on another.
    Where only stamps differ, those of the manifest are renewed.

    Returns:
      a phrase that names at most three; "" for no difference.

    Raises:
      UserError: if text that is there cannot be read.
    """
    parts = dict.fromkeys((*mixed(manifest.source), manifest.valid_source, manifest.tokenizer))
    if not manifest.inputs:
        return _newer(parts, manifests.find(folder))
    said: list[str] = []
    now: list[Input] = []
    for part in parts:
        before = tuple(old for old in manifest.inputs if old.part == part)
        try:
            found = read(part, before)
        except UserError:
            here = {old.name for old in before if Path(old.name).exists()}
            there = tuple(old for old in before if old.name in here or remote.is_remote(old.name))
            if here and there == before:
                raise
            found = there if here else before
        said += _differences(before, found)
        now += found
    stamps = [[(one.name, one.stamp) for one in inputs] for inputs in (manifest.inputs, now)]
    if not said and stamps[0] != stamps[1]:
        with contextlib.suppress(UserError):  # nobody need be able to write there
            dataclasses.replace(manifest, inputs=tuple(now)).save(folder)
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _contents(part: str) -> dict[str, Content]:
    kind, _, argument = part.partition(":")
    # "hf:NAME:SPLIT" is a source, "hf:NAME" a tokenizer, and "hf:gs://…" neither.
    is_source = kind in sources.KINDS and (kind != "hf" or ":" in argument.replace("://", ""))
    return sources.contents(part) if is_source else tokenizers.contents(part)


def _differences(before: tuple[Input, ...], now: tuple[Input, ...]) -> list[str]:
    def read_as(inputs: tuple[Input, ...]) -> list[tuple[str, list[str]]]:
        return [(one.sha256, PurePath(one.name).suffixes[-2:]) for one in inputs]

    if read_as(before) == read_as(now):
        return []
    old, new = ({one.name: one.sha256 for one in inputs} for inputs in (before, now))
    return [
        *(f"{name} has changed" for name in old if name in new and old[name] != new[name]),
        *(f"{name} is gone" for name in old if name not in new),
        *(f"{name} is new" for name in new if name not in old),
    ]


def _newer(parts: Iterable[str], manifest: Path | None) -> str:
    """`changes` for a manifest of an older version, which does not tell the inputs."""
    made = manifest.stat().st_mtime_ns if manifest else 0
    for part in parts:
        with contextlib.suppress(UserError):
            for name in map(Path, _contents(part)):
                if name.is_file() and name.stat().st_mtime_ns > made:
                    return f"{name} is newer than the records"
    return ""
