"""The animation as one HTML file, which needs nothing else: no network, no library."""

from collections.abc import Sequence
from typing import Any

from hybrid_jax.generation import player
from hybrid_jax.generation.frames import GLYPHS, MEANINGS, Recording
from hybrid_jax.runtime.json_text import json_text


def draw(recordings: Sequence[Recording]) -> str:
    """The animation of several runs side by side; runs that are done wait for the others."""
    values = {"states": MEANINGS, "glyphs": GLYPHS, "runs": [values_of(r) for r in recordings]}
    text = json_text(values, separators=(",", ":"))
    page = player.read("animation.html", __package__)
    for mark, kind in (("/*STYLE*/", "css"), ("/*SCRIPT*/", "js")):
        own = player.read(f"animation.{kind}", __package__)
        page = page.replace(mark, player.read(f"player.{kind}") + own)
    # "<" could end the element that holds the values.
    return page.replace("/*VALUES*/", text.replace("<", "\\u003c"))


def values_of(recording: Recording) -> dict[str, Any]:
    """A run as animation.js reads it."""
    pairs = zip((None, *recording.frames), recording.frames, strict=False)
    return {
        "title": recording.title,
        "settings": recording.settings,
        "widths": recording.widths,
        "frames": [player.changes(frame, before) for before, frame in pairs],
    }
