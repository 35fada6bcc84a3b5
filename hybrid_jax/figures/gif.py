"""The animation as a GIF: a panel for each run, one round of the loop a frame."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_jax.figures import canvas
from hybrid_jax.figures.palette import FAINT, INK, PAPER, STYLES
from hybrid_jax.generation.frames import GLYPHS, STATES, Recording, TokenState

_COLUMNS = 44  # characters of a line of text
_SIZE, _LINE, _MARGIN = 15, 21, 12  # pixels: letters, a line, around panels
_FRAME, _LAST = 90, 4000  # milliseconds
_COLOURS = 48


class _Fonts(NamedTuple):
    plain: Any
    bold: Any
    width: int


def _fonts() -> _Fonts:
    """DejaVu Sans Mono, which matplotlib brings."""
    folder = Path(canvas.module("matplotlib").get_data_path()) / "fonts" / "ttf"
    read = canvas.module("PIL.ImageFont").truetype
    plain, bold = (read(str(folder / f"DejaVuSansMono{kind}.ttf"), _SIZE) for kind in ("", "-Bold"))
    return _Fonts(plain, bold, round(plain.getlength("M")))


def draw(recordings: Sequence[Recording]) -> bytes:
    """The animation of several runs, a GIF; runs that are done wait for the others."""
    fonts = _fonts()
    places = [_places(recording.widths) for recording in recordings]
    lines = 1 + max(line for place in places for line, _, _ in place)
    across = min(2, len(recordings))
    down = -(-len(recordings) // across)
    panel = (_COLUMNS * fonts.width + 2 * _MARGIN, (lines + 3) * _LINE + 3 * _MARGIN)
    key = _key(fonts, across * panel[0])
    size = (across * panel[0], down * panel[1] + key.height)

    def picture(number: int) -> Any:
        image = canvas.module("PIL.Image").new("RGB", size, PAPER)
        for i, (recording, place) in enumerate(zip(recordings, places, strict=True)):
            corner = (i % across * panel[0] + _MARGIN, i // across * panel[1] + _MARGIN)
            _panel(image, fonts, corner, recording, number, place, lines)
        image.paste(key, (0, down * panel[1]))
        return image

    rounds = max(len(recording.frames) for recording in recordings)
    # The key shows every state, and so every colour.
    colours = key.quantize(_COLOURS)
    images = (picture(number).quantize(palette=colours, dither=0) for number in range(rounds))
    buffer = io.BytesIO()
    next(images).save(
        buffer, format="gif", save_all=True, append_images=images, loop=0, optimize=True,
        duration=[_FRAME] * (rounds - 1) + [_LAST],
    )  # fmt: skip
    return buffer.getvalue()


def _places(cells: Sequence[int]) -> list[tuple[int, int, int]]:
    """Line, column and width of each position, in characters."""
    places = []
    line = column = 0
    for width in (min(width, _COLUMNS) for width in cells):
        if column + width > _COLUMNS:
            line, column = line + 1, 0
        places.append((line, column, width))
        column += width
    return places


def _panel(
    image: Any,
    fonts: _Fonts,
    corner: tuple[int, int],
    recording: Recording,
    number: int,
    places: Sequence[tuple[int, int, int]],
    lines: int,
) -> None:
    """A run at a round: its name, its settings, the text, and the counts."""
    draw = canvas.module("PIL.ImageDraw").Draw(image)
    left, top = corner
    frame = recording.frames[min(number, len(recording.frames) - 1)]
    draw.text((left, top), _cut(recording.title), font=fonts.bold, fill=INK)
    draw.text((left, top + _LINE), _cut(recording.settings), font=fonts.plain, fill=FAINT)
    top += 2 * _LINE
    for cell, state, (line, column, width) in zip(frame.cells, frame.states, places, strict=True):
        _cell(draw, fonts, left + column * fonts.width, top + line * _LINE, width, cell, state)
    top += lines * _LINE + _MARGIN // 2
    draw.text((left, top), frame.counts, font=fonts.plain, fill=FAINT)


def _cell(
    draw: Any, fonts: _Fonts, left: int, top: int, width: int, text: str, state: TokenState
) -> None:
    style = STYLES[state]
    right, bottom = left + width * fonts.width - 1, top + _LINE - 2
    if style.fill != PAPER:
        draw.rectangle((left, top, right - 1, bottom - 1), fill=style.fill)
    font = fonts.bold if style.bold else fonts.plain
    draw.text((left, top), text[:width], font=font, fill=style.ink)
    if style.underlined:
        draw.line((left + 1, bottom - 2, right - 2, bottom - 2), fill=style.ink)


def _key(fonts: _Fonts, width: int) -> Any:
    """The legend, as wide as the picture."""
    places = []
    left, top = _MARGIN, 0
    for state in STATES:
        needed = (4 + len(state)) * fonts.width
        if left + needed > width - _MARGIN:
            left, top = _MARGIN, top + _LINE
        places.append((state, left, top))
        left += needed
    image = canvas.module("PIL.Image").new("RGB", (width, top + _LINE + _MARGIN), PAPER)
    draw = canvas.module("PIL.ImageDraw").Draw(image)
    for state, left, top in places:
        _cell(draw, fonts, left, top, 1, GLYPHS.get(state, "a"), state)
        draw.text((left + int(1.6 * fonts.width), top), state, font=fonts.plain, fill=FAINT)
    return image


def _cut(text: str) -> str:
    return text if len(text) <= _COLUMNS else f"{text[: _COLUMNS - 1]}…"
