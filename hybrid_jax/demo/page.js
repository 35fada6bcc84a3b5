// The demo: sends a request, and plays the frames that come back. The settings of a rule are those
// that the server describes.
"use strict";

const HINTS = {
  continue: ["Beginning of the text", "May be empty. Ctrl+Enter writes, Escape stops."],
  gaps: ["Text with gaps", "{{5}} is 5 tokens to fill, {{3-12}} and {{}} as many as fit best. Ctrl+Enter writes, Escape stops."],
};

let model = null; // as the server describes it
let coming = null; // AbortController of the text that is being written
let text = null; // the newest one
let outcome = ""; // said when its last frame is reached

const player = new Player((index) => {
  text.show(index);
  if (outcome && index === text.frames.length - 1) end();
});

function say(status, error = "") {
  at("status").textContent = status;
  at("error").textContent = error;
}

// The form -------------------------------------------------------------------------------------

function choose(select, values, value) {
  select.replaceChildren(...values.map((text) => element("option", text)));
  select.value = value;
}

function field({ name, about, value, choices, whole, range }) {
  const made = element("div", "", "field");
  const label = element("label", name.replace("_", "-"));
  const input = document.createElement(choices.length ? "select" : "input");
  label.htmlFor = input.id = `setting-${name}`;
  input.dataset.setting = name;
  input.title = about;
  if (choices.length) choose(input, choices, value);
  else {
    const [min, max = ""] = range;
    const step = whole ? 1 : "any";
    Object.assign(input, { type: "number", min, max, step, placeholder: "none" });
    input.value = value ?? "";
  }
  made.append(label, input);
  return made;
}

function showRule() {
  const rule = model.rules.find(({ name }) => name === at("rule").value);
  at("rule-hint").textContent = rule.about;
  at("settings").replaceChildren(...rule.settings.map(field));
  const leveled = model.levels.free && rule.levels;
  at("levels").disabled = at("levels-field").hidden = !leveled;
}

function showMode() {
  const mode = at("form").elements.mode.value;
  [at("text-label").textContent, at("text-hint").textContent] = HINTS[mode];
  at("length-field").hidden = at("length").disabled = mode === "gaps";
}

function valueOf(input) {
  const { value, disabled, type } = input;
  if (disabled || value === "") return undefined; // left out of JSON
  return type === "number" ? Number(value) : value;
}

function request() {
  const values = {
    text: at("text").value,
    gaps: at("form").elements.mode.value === "gaps",
    rule: at("rule").value,
    seed: valueOf(at("seed")),
    length: valueOf(at("length")),
    levels: valueOf(at("levels")),
  };
  for (const input of document.querySelectorAll("[data-setting]")) {
    values[input.dataset.setting] = valueOf(input);
  }
  return values;
}

// A text ---------------------------------------------------------------------------------------

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

function receive({ error, begun, compiling, trying, frame, done }) {
  if (error) throw new Error(error);
  if (begun) {
    say(`${compiling ? "Compiling, once for this rule and these levels" : "Writing"}: ${begun} …`);
  }
  if (trying) say(at("status").textContent.replace(/^[^:]*/, `Trying lengths, ${trying} done`));
  if (frame) {
    text.add(frame);
    player.extend(text.frames.length - 1, true);
    if (text.frames.length === 2) {
      say(at("status").textContent.replace(/^[^:]*/, "Writing"));
    }
  }
  if (done) {
    outcome = `Done: NFE ${done.nfe}, corrections ${done.corrections}.`;
    at("command").textContent = done.command;
  }
}

async function write() {
  if (coming || !model || !at("form").reportValidity()) return;
  const own = (coming = new AbortController());
  text = new Text({ output: at("output"), counts: at("counts"), states: model.states });
  outcome = at("command").textContent = at("counts").textContent = "";
  say("Asking …");
  at("again").hidden = true;
  at("output").replaceChildren();
  player.extend(-1, true);
  player.play();
  // On a phone the form fills the screen.
  if (at("stop").getBoundingClientRect().bottom + 100 > innerHeight) at("status").scrollIntoView();
  at("write").disabled = true;
  at("stop").disabled = false;
  try {
    const answer = await fetch("write", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request()),
      signal: own.signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error);
    for await (const line of lines(answer.body)) receive(JSON.parse(line));
    if (!outcome) throw new Error("The server broke off: look at its terminal.");
    if (player.now === player.last) end();
  } catch (error) {
    // A browser's own words for a server that is gone are no help.
    if (error.name !== "AbortError") {
      const gone = error instanceof TypeError;
      say("", gone ? "The server does not answer: is it still running?" : error.message);
    }
  } finally {
    coming = null;
    at("write").disabled = false;
    if (!outcome) at("stop").disabled = true;
    player.extend(text.frames.length - 1, false);
  }
}

function stop() {
  if (at("stop").disabled) return;
  coming?.abort();
  text.frames.length = Math.min(text.frames.length, player.now + 1);
  outcome = "Stopped.";
  at("command").textContent = "";
  player.extend(text.frames.length - 1, false);
  end();
}

function end() {
  say(outcome);
  at("stop").disabled = true;
  at("again").hidden = !at("command").textContent;
}

// The beginning --------------------------------------------------------------------------------

async function begin() {
  const answer = await fetch("model");
  model = await answer.json();
  if (!answer.ok) throw new Error(model.error);
  at("name").textContent = `Watch ${model.name} write`;
  at("about").textContent = model.about;
  document.title = `${model.name}: watch it write`;
  at("text").maxLength = model.characters;
  choose(at("rule"), model.rules.map(({ name }) => name), model.rule);
  Object.assign(at("levels"), { value: model.levels.value, max: model.levels.most });
  Object.assign(at("length"), { value: model.length, max: model.length });
  explain(at("states"), model.states, model.glyphs);
  showRule();
  showMode();
  at("write").disabled = false;
}

at("rule").addEventListener("change", showRule);
for (const radio of at("form").elements.mode) radio.addEventListener("change", showMode);
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
at("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
});
begin().catch((error) => say("", `The server does not answer as it should: ${error.message}`));
