// The animation: several runs side by side, played together; runs that are done wait for the others.
const { states, glyphs, runs } = JSON.parse(at("values").textContent);

const texts = runs.map(({ title, settings, widths, frames }) => {
  const box = element("section", "", "run");
  const output = element("div", "", "text");
  const counts = element("p", "", "counts");
  box.append(element("h2", title), element("p", settings), output, counts);
  at("runs").append(box);
  const text = new Text({ output, counts, states, widths });
  for (const frame of frames) text.add(frame);
  return text;
});

explain(at("states"), states, glyphs);
const player = new Player((index) => {
  for (const text of texts) text.show(index);
});
player.extend(Math.max(...texts.map(({ frames }) => frames.length)) - 1, false);
// A place in the address, such as #40, is shown and not played.
const wanted = Number.parseInt(location.hash.slice(1), 10);
if (!Number.isNaN(wanted)) player.go(wanted);
else if (!matchMedia("(prefers-reduced-motion: reduce)").matches) player.play();
