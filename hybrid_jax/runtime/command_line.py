"""Mistakes in the flags that name a config and override its settings, each in one sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from hybrid_jax.errors import UserError


def check_config_file(value: str) -> None:
    """Raises UserError if ``FILE.py`` or ``FILE.py:SIZE`` names no file."""
    if not Path(value.rpartition(".py")[0] + ".py").is_file():
        raise UserError(f"There is no config file {value!r}: see the folder configs/.")


@contextlib.contextmanager
def flag_mistakes() -> Iterator[None]:
    """Around the parsing of flags: turns what absl and ml_collections raise into `UserError`."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        # An override of a setting that does not exist; the text ends in the nearest one.
        words = re.findall(r"[\w.]+", str(error).replace("\\n", " ").replace("\\'", " "))
        hint = f": did you mean {words[4]}?" if words[1:4] == ["Did", "you", "mean"] else "."
        raise UserError(f"There is no setting {words[0]}{hint}") from error
    except (flags.Error, ValueError) as error:
        raise UserError(f"{' '.join(str(error).split()).rstrip('.')} (see --help).") from error
