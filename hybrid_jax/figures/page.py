"""The animation as one HTML file, which needs nothing else: no network, no library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hybrid_jax.figures.frames import Frame, Recording, status, widths
from hybrid_jax.figures.palette import MASK_GLYPH, PAPER, STYLES, WORTHLESS_GLYPH
from hybrid_jax.generation.kinds import KINDS, Kind


def draw(recordings: Sequence[Recording]) -> str:
    """The animation of several runs side by side; who is done waits for the others."""
    values = json.dumps(
        [values_of(r) for r in recordings], ensure_ascii=False, separators=(",", ":")
    )
    # "<" could end the element that holds the values.
    page = _PAGE.replace("/*STYLES*/", _styles()).replace("<!--KEY-->", _key())
    return page.replace("VALUES", values.replace("<", "\\u003c"))


def values_of(recording: Recording) -> dict[str, Any]:
    """What the page is told of a run.

    A frame is [its kinds, a letter each; the cells that differ from the frame before, as position
    and text in turn; its counts in words].
    """
    frames = []
    before: tuple[str, ...] = ("",) * len(recording.frames[0].cells)
    for frame in recording.frames:
        frames.append([_letters(frame), _changes(before, frame.cells), status(recording, frame)])
        before = frame.cells
    return {
        "title": recording.title,
        "settings": recording.settings,
        "widths": widths(recording),
        "frames": frames,
    }


def _letters(frame: Frame) -> str:
    return "".join(kind[0] for kind in frame.kinds)


def _changes(before: Sequence[str], after: Sequence[str]) -> list[int | str]:
    changes: list[int | str] = []
    for i, (was, text) in enumerate(zip(before, after, strict=True)):
        if was != text:
            changes += [i, text]
    return changes


assert len({kind[0] for kind in KINDS}) == len(KINDS)  # a kind's first letter stands for it


def _styles() -> str:
    """A CSS rule for each kind."""
    return "\n".join(f"  .{kind[0]} {{ {_look(kind)} }}" for kind in KINDS)


def _look(kind: Kind) -> str:
    style = STYLES[kind]
    look = [f"background: {style.fill}; color: {style.ink}"] if style.fill != PAPER else []
    if kind == "worthless":
        look.append("color: var(--faint)")
    if style.bold:
        look.append("font-weight: bold")
    if style.underlined:
        look.append("text-decoration: underline")
    return "; ".join(look)


def _key() -> str:
    """The legend."""
    samples: dict[Kind, str] = {"masked": MASK_GLYPH, "worthless": WORTHLESS_GLYPH}
    return "\n".join(
        f'  <span><b class="cell {kind[0]}">{samples.get(kind, "a")}</b> '
        f"{STYLES[kind].meaning}</span>"
        for kind in KINDS
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Texts while they are generated</title>
<style>
  :root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --faint: #6b6b6b;
    --line: #c8c8c8; }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #16181b; --ink: #ececec; --faint: #a2a2a2; --line: #4a4d52; } }
  body { margin: 1rem auto; padding: 0 1rem; max-width: 76rem; background: var(--paper);
    color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
  h1 { font-size: 1.25rem; margin: 0 0 .75rem; }
  h2 { font-size: 1rem; margin: 0; }
  .controls { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
  .controls input { flex: 1 1 12rem; min-width: 8rem; }
  button, select { font: inherit; min-width: 2.75rem; min-height: 2.25rem; }
  #play { min-width: 4.5rem; }
  .key { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .75rem 0; }
  .runs { display: grid; gap: 1rem;
    grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); }
  .run { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; min-width: 0; }
  .run p { margin: 0; color: var(--faint); font-variant-numeric: tabular-nums; }
  .text { font: 16px/1.45 "DejaVu Sans Mono", Menlo, Consolas, monospace; margin: .4rem 0;
    overflow-wrap: anywhere; }
  .cell { display: inline-block; white-space: pre; overflow: hidden; vertical-align: bottom;
    font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-weight: normal; height: 1.4em;
    box-shadow: inset -1px -1px var(--paper); }
  .key .cell { width: 1ch; }
/*STYLES*/
</style>
</head>
<body>
<h1>Texts while they are generated: one call of the network at a time</h1>
<div class="controls">
  <button id="first" aria-label="first" title="first (Home)">|◀</button>
  <button id="back" aria-label="one call back" title="one call back (←)">◀</button>
  <button id="play" title="play or pause (space)">play</button>
  <button id="next" aria-label="one call on" title="one call on (→)">▶</button>
  <button id="last" aria-label="last" title="last (End)">▶|</button>
  <input id="place" type="range" min="0" value="0" aria-label="nfe">
  <output id="count" for="place"></output>
  <label>speed <select id="speed"><option value="250">slow</option>
    <option value="100" selected>normal</option><option value="30">fast</option></select></label>
</div>
<div class="key">
<!--KEY-->
</div>
<div class="runs" id="runs"></div>
<noscript>This page needs JavaScript to play.</noscript>
<script type="application/json" id="values">VALUES</script>
<script>
"use strict";
const at = id => document.getElementById(id);
const runs = JSON.parse(at("values").textContent);
const last = Math.max(...runs.map(run => run.frames.length)) - 1;
let now = 0, timer = null;

function element(parent, name, kind) {
  const made = parent.appendChild(document.createElement(name));
  if (kind) made.className = kind;
  return made;
}

for (const run of runs) {
  // Whole texts for every frame, so that any frame can be shown next.
  let cells = run.widths.map(() => "");
  run.texts = run.frames.map(([, changes]) => {
    cells = cells.slice();
    for (let i = 0; i < changes.length; i += 2) cells[changes[i]] = changes[i + 1];
    return cells;
  });
  const box = element(at("runs"), "section", "run");
  element(box, "h2").textContent = run.title;
  element(box, "p").textContent = run.settings;
  const text = element(box, "div", "text");
  run.cells = run.widths.map(width => {
    const cell = element(text, "span", "cell");
    cell.style.width = width + "ch";
    return cell;
  });
  run.status = element(box, "p");
}

function show(number) {
  now = Math.max(0, Math.min(last, number));
  for (const run of runs) {
    const frame = Math.min(now, run.frames.length - 1);
    const [kinds, , status] = run.frames[frame];
    run.cells.forEach((cell, i) => {
      const text = run.texts[frame][i];
      cell.textContent = text === "MASK_GLYPH" ? text.repeat(run.widths[i]) : text;
      cell.className = "cell " + kinds[i];
    });
    run.status.textContent = status;
  }
  at("place").value = now;
  at("count").textContent = now + "/" + last;
}

function pause() {
  clearInterval(timer);
  timer = null;
  at("play").textContent = "play";
}

function play() {
  if (now === last) show(0);
  timer = setInterval(() => { show(now + 1); if (now === last) pause(); }, +at("speed").value);
  at("play").textContent = "pause";
}

function jump(number) { pause(); show(number); }
function toggle() { if (timer === null) play(); else pause(); }

at("first").onclick = () => jump(0);
at("back").onclick = () => jump(now - 1);
at("play").onclick = toggle;
at("next").onclick = () => jump(now + 1);
at("last").onclick = () => jump(last);
at("place").oninput = event => jump(+event.target.value);
at("speed").onchange = () => { if (timer !== null) { pause(); play(); } };
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target === at("speed")) return;
  if (event.key === " " && event.target.tagName === "BUTTON") return;  // which it presses
  const keys = { ArrowLeft: () => jump(now - 1), ArrowRight: () => jump(now + 1),
    Home: () => jump(0), End: () => jump(last), " ": toggle };
  if (event.key in keys) { event.preventDefault(); keys[event.key](); }
});

at("place").max = last;
// A place in the address, such as #40, is shown and not played.
const wanted = Number.parseInt(location.hash.slice(1), 10);
show(Number.isNaN(wanted) ? 0 : wanted);
if (Number.isNaN(wanted) && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
</script>
</body>
</html>
""".replace("MASK_GLYPH", MASK_GLYPH)
