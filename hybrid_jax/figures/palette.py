"""The colours of all pictures; after Okabe and Ito, safe for colour-blind eyes.

Every state has a sign beside its colour: a letter form, a line under it, or a glyph. Fills are
opaque and carry their own ink, so that they read alike on light and dark pages.
"""

import dataclasses

from hybrid_jax.generation.frames import TokenState

PAPER, INK, FAINT = "#ffffff", "#1a1a1a", "#767676"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """The look of a token.

    Attributes:
      fill, ink: colours; a fill of `PAPER` is the page itself where the page has a colour.
      bold, underlined: signs that do not need colour.
    """

    fill: str = PAPER
    ink: str = INK
    bold: bool = False
    underlined: bool = False


STYLES: dict[TokenState, Style] = {
    "given": Style(bold=True),
    "settled": Style(),
    "active": Style(fill="#b9def5"),
    "revealed": Style(fill="#00664d", ink="#ffffff", bold=True),
    "corrected": Style(fill="#f0a830", bold=True, underlined=True),
    "masked": Style(fill="#0072b2", ink="#ffffff"),
    "worthless": Style(ink=FAINT),
}

NOISE = {
    "kept": Style(),
    "masked": STYLES["masked"],
    "replaced": Style(fill="#e3a6c7", bold=True, underlined=True),
}

WORTHLESS_FILL = "#dcdcdc"
LEVELS = ("#e3f2fb", STYLES["active"].fill, STYLES["masked"].fill)
"""Colours of an active position from the lowest noise level to the highest."""

ATTENTION = {"window": "#0072b2", "context": "#f0a830", "clean": "#a9a9a9"}
"""Noisy rows to their own window, noisy rows to settled tokens, settled tokens to each other."""
