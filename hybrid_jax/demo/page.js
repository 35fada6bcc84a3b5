// The page: sends a wish, and plays the frames that come back at the speed that was chosen. Whatever
// comes from the server is put on the page as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);
const SETTINGS = ["eta", "guidance", "strategy", "threshold", "bound", "temperature"];
const HINTS = {
  continue: ["Beginning of the text", "May be empty. Ctrl+Enter writes, Escape stops."],
  gaps: ["Text with gaps", "{{5}} is 5 tokens to fill. Ctrl+Enter writes, Escape stops."],
};

let model = null; // what the server says of it
let request = null; // AbortController of the text that is coming
let frames = []; // of the newest text
let shown = 0; // number of the frame on the page
let playing = false;
let outcome = ""; // what to say when the last frame is reached

function element(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function say(status, error = "") {
  at("status").textContent = status;
  at("error").textContent = error;
}

// The form -------------------------------------------------------------------------------------

function choose(select, values, value) {
  select.replaceChildren(...values.map((text) => element("option", text)));
  select.value = value;
}

function showRule() {
  const rule = model.rules.find(({ name }) => name === at("rule").value);
  at("rule-hint").textContent = rule.about;
  for (const field of document.querySelectorAll("[data-setting]")) {
    const name = field.dataset.setting;
    const setting = rule.settings[name];
    field.hidden = !setting;
    at(name).disabled = !setting;
    if (!setting) continue;
    if (setting.choices.length) choose(at(name), setting.choices, setting.value);
    else at(name).value = setting.value ?? "";
  }
}

function showMode() {
  const mode = at("form").elements.mode.value;
  [at("text-label").textContent, at("text-hint").textContent] = HINTS[mode];
  at("length-field").hidden = mode === "gaps";
  at("length").disabled = mode === "gaps";
}

function number(id) {
  const { value, disabled } = at(id);
  return disabled || value === "" ? undefined : Number(value);
}

function wish() {
  const values = {
    text: at("text").value,
    gaps: at("form").elements.mode.value === "gaps",
    rule: at("rule").value,
    seed: number("seed"),
    length: number("length"),
    levels: number("levels"),
  };
  for (const name of SETTINGS) {
    if (at(name).tagName === "INPUT") values[name] = number(name);
    else if (!at(name).disabled) values[name] = at(name).value;
  }
  return values; // undefined ones are left out of JSON
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

function receive(event) {
  if (event.error) throw new Error(event.error);
  if (event.begun) {
    const wait = event.compiling ? "Compiling, once for this rule and these levels" : "Writing";
    say(`${wait}: ${event.begun} …`);
  }
  if (event.frame) {
    frames.push(event.frame);
    at("frame").max = frames.length - 1;
    at("frame").disabled = at("play").disabled = false;
    if (frames.length === 1) show(0);
    if (frames.length === 2) say(at("status").textContent.replace(/^Compiling[^:]*/, "Writing"));
  }
  if (event.done) {
    outcome = `Done: ${event.done.calls} calls of the network, ${event.done.corrections} corrections.`;
    at("command").textContent = event.done.command;
  }
}

async function write() {
  if (request || !at("form").reportValidity()) return;
  const own = (request = new AbortController());
  frames = [];
  outcome = at("command").textContent = "";
  say("Asking …");
  at("again").hidden = true;
  at("output").replaceChildren();
  for (const id of ["step", "nfe", "corrections"]) at(id).textContent = "–";
  at("frame").disabled = at("play").disabled = true;
  // On a phone the form fills the screen.
  if (at("stop").getBoundingClientRect().bottom + 100 > innerHeight) at("status").scrollIntoView();
  at("write").disabled = true;
  at("stop").disabled = false;
  setPlaying(true);
  try {
    const answer = await fetch("write", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(wish()),
      signal: own.signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error);
    for await (const line of lines(answer.body)) receive(JSON.parse(line));
    if (!outcome) throw new Error("The server broke off: look at its terminal.");
    if (shown === frames.length - 1) end();
  } catch (error) {
    // A browser's own words for a server that is gone are no help.
    if (error.name !== "AbortError") {
      const gone = error instanceof TypeError;
      say("", gone ? "The server does not answer: is it still running?" : error.message);
    }
  } finally {
    request = null;
    at("write").disabled = false;
    if (!outcome) at("stop").disabled = true;
    if (!frames.length) setPlaying(false);
  }
}

function stop() {
  if (at("stop").disabled) return;
  request?.abort();
  frames.length = Math.min(frames.length, shown + 1);
  at("frame").max = Math.max(0, frames.length - 1);
  outcome = "Stopped.";
  at("command").textContent = "";
  end();
}

// The film -------------------------------------------------------------------------------------

function show(index) {
  shown = index;
  const frame = frames[index];
  at("output").replaceChildren(...frame.runs.map(([kind, text]) => element("span", text, kind)));
  at("step").textContent = `${frame.step} of ${frame.steps}`;
  at("nfe").textContent = frame.calls;
  at("corrections").textContent = frame.corrections;
  at("frame").value = index;
  at("frame").setAttribute("aria-valuetext", `${index + 1} of ${frames.length}`);
  if (outcome && index === frames.length - 1) end();
}

function end() {
  say(outcome);
  setPlaying(false);
  at("stop").disabled = true;
  at("again").hidden = !at("command").textContent;
}

function setPlaying(value) {
  playing = value;
  at("play").textContent = playing ? "Pause" : "Play";
}

function play() {
  if (!playing && shown === frames.length - 1 && !request) show(0);
  setPlaying(!playing);
}

let last = 0;
function tick(now) {
  const speed = Number(at("speed").value);
  if (playing && shown < frames.length - 1 && (!speed || now - last >= 1000 / speed)) {
    show(speed ? shown + 1 : frames.length - 1);
    last = now;
  }
  requestAnimationFrame(tick);
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
  at("levels").disabled = !model.levels.free;
  at("levels-field").hidden = !model.levels.free;
  Object.assign(at("length"), { value: model.length, max: model.length });
  at("legend").replaceChildren(
    ...Object.entries(model.kinds).map(([kind, meaning]) => {
      const entry = document.createElement("li");
      const sample = { masked: "░░ masked", worthless: "·· worthless" }[kind] ?? kind;
      entry.append(element("span", sample, kind), " ", element("small", meaning));
      return entry;
    }),
  );
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
at("play").addEventListener("click", play);
at("frame").addEventListener("input", () => {
  setPlaying(false);
  show(Number(at("frame").value));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
});
requestAnimationFrame(tick);
begin().catch((error) => say("", `The server does not answer as it should: ${error.message}`));
