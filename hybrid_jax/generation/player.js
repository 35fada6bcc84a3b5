// Texts while they are generated, and a player for them: shared by the demo and the animation.
// Whatever the model wrote is put on the page as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);

function element(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// The frames of one text. `states`: names and meanings. `widths`: columns of each position, so that
// nothing moves; without them the text flows.
class Text {
  constructor({ output, counts, states, widths }) {
    Object.assign(this, { output, counts, widths, frames: [] });
    this.names = Object.fromEntries(Object.keys(states).map((name) => [name[0], name]));
  }

  // A frame as hybrid_jax/generation/player.py sends it.
  add([letters, changes, counts]) {
    const cells = this.frames.length ? this.frames.at(-1).cells.slice() : [];
    for (let i = 0; i < changes.length; i += 2) cells[changes[i]] = changes[i + 1];
    this.frames.push({ letters, cells, counts });
  }

  show(index) {
    const { letters, cells, counts } = this.frames[Math.min(index, this.frames.length - 1)];
    const runs = [];
    for (let i = 0; i < cells.length; i++) {
      if (!this.widths && i && letters[i] === letters[i - 1]) runs.at(-1).text += cells[i];
      else runs.push({ text: cells[i], state: this.names[letters[i]], width: this.widths?.[i] });
    }
    this.output.replaceChildren(
      ...runs.map(({ text, state, width }) => {
        const span = element("span", text, width ? `cell ${state}` : state);
        if (width) span.style.width = `${width}ch`;
        return span;
      }),
    );
    this.counts.textContent = counts;
  }
}

// Fills the list `place` with the states, each in its own style.
function explain(place, states, glyphs) {
  place.replaceChildren(
    ...Object.entries(states).map(([state, meaning]) => {
      const entry = document.createElement("li");
      const sample = state in glyphs ? `${glyphs[state]} ${state}` : state;
      entry.append(element("span", sample, state), " ", element("small", meaning));
      return entry;
    }),
  );
}

// The controls of player.html. `show` shows a frame by its number.
class Player {
  constructor(show) {
    Object.assign(this, { show, now: 0, last: -1, open: false, playing: false, time: 0 });
    const moves = {
      first: () => this.seek(0),
      back: () => this.seek(this.now - 1),
      play: () => this.toggle(),
      next: () => this.seek(this.now + 1),
      last: () => this.seek(this.last),
    };
    for (const [id, move] of Object.entries(moves)) at(id).addEventListener("click", move);
    at("place").addEventListener("input", () => this.seek(Number(at("place").value)));
    const keys = {
      Home: moves.first, ArrowLeft: moves.back, " ": moves.play, ArrowRight: moves.next,
      End: moves.last,
    };
    document.addEventListener("keydown", (event) => {
      const { key, target } = event;
      if (event.ctrlKey || event.altKey || event.metaKey || !(key in keys)) return;
      if (target.matches("input:not(#place), select, textarea") || this.last < 0) return;
      // Space presses a button that has the focus.
      if (key === " " && target.matches("button, summary")) return;
      event.preventDefault();
      keys[key]();
    });
    const tick = (time) => {
      const due = time - this.time >= 1000 / Number(at("speed").value);
      if (this.playing && this.now < this.last && due) {
        this.time = time;
        this.go(this.now + 1);
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    this.extend(-1, false);
  }

  // Frames 0 … `last` are there; −1: none. `open`: more may come.
  extend(last, open) {
    const begins = this.last < 0 || this.now > last;
    Object.assign(this, { last, open });
    at("place").max = Math.max(0, last);
    for (const part of document.querySelectorAll("#controls :is(button, input)")) {
      part.disabled = last < 0;
    }
    at("count").textContent = "";
    if (last < 0) this.now = 0;
    else this.go(begins ? 0 : this.now, begins);
  }

  go(number, anew = true) {
    this.now = Math.max(0, Math.min(this.last, number));
    if (anew) this.show(this.now);
    at("place").value = this.now;
    at("count").textContent = `${this.now}/${this.last}`;
    if (this.now === this.last && !this.open) this.play(false);
  }

  seek(number) {
    this.play(false);
    this.go(number);
  }

  play(playing = true) {
    this.playing = playing;
    at("play").textContent = playing ? "Pause" : "Play";
  }

  toggle() {
    const playing = !this.playing;
    if (playing && this.now === this.last && !this.open) this.go(0);
    this.play(playing);
  }
}
