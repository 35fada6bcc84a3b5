"""The paper's pictures: the data behind each against the definitions, and the files themselves."""

import dataclasses
import io
import itertools
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import quick_jit
from PIL import Image
from tiny import LENGTH

from hybrid_jax import generate
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.figures import __main__ as figures
from hybrid_jax.figures import gif, hyperschedules, masks, noise, page, palette
from hybrid_jax.generation import driver, frames, generator, player
from hybrid_jax.generation.frames import STATES, states_of
from hybrid_jax.generation.requests import Request
from hybrid_jax.method import hyperschedule, noising
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.loss import Spec
from hybrid_jax.method.objective import Objective
from hybrid_jax.models.transformer import Transformer
from hybrid_jax.sampling import cache_feed, loop, prompts, rules
from hybrid_jax.sampling.state import Sampler
from hybrid_jax.training import pretrained

pytestmark = pytest.mark.slow

FIGURES = Path(__file__).parents[1] / "docs" / "figures"

# ---------------------------------------------------------------------------------------------
# States of tokens.


def test_states_of_tokens():
    mask = 9
    #          given  given(open)  settled  remasked  changed  masked  new   active  not begun
    before = [0, mask, 1, 2, 3, mask, mask, 4, mask]
    tokens = [0, 7, 1, mask, 8, mask, 5, 4, mask]
    found = states_of(
        tokens, before, mask=mask, frozen=[True, True] + [False] * 7, settled=3, frontier=8
    )
    assert found == ["given", "given", "settled", "corrected", "corrected", "masked", "revealed",
                     "active", "worthless"]  # fmt: skip
    assert set(found) == set(STATES)
    first = states_of(tokens, None, mask=mask, frozen=[False] * 9, settled=3, frontier=8)
    assert not {"revealed", "corrected", "given"} & set(first)


def test_tokens_that_are_not_begun_are_worthless_though_noise_shows_tokens():
    found = states_of([1, 2], [1, 2], mask=9, frozen=[False] * 2, settled=0, frontier=1)
    assert found == ["active", "worthless"]


# ---------------------------------------------------------------------------------------------
# Hyperschedules.


def test_regions_of_a_literal_schedule():
    schedule = hyperschedule.slide(length=4, width=2, levels=2)
    wanted = ["AWWW", "AAWW", "SAAW", "SSAA", "SSSA"]
    letters = np.array(["S", "A", "W"])[hyperschedules.regions(schedule)]
    assert ["".join(row) for row in letters] == wanted


@pytest.mark.parametrize("number", range(4))
def test_regions_are_those_of_settled_and_frontier(number):
    schedule = hyperschedules.shown()[number]
    steps = np.arange(schedule.steps)
    settled = np.asarray(schedule.settled(steps))
    frontier = np.asarray(schedule.frontier(steps + 1))
    found = hyperschedules.regions(schedule)
    assert found.shape == (schedule.steps, schedule.length)
    for step, position in np.ndindex(*found.shape):
        if position < settled[step]:
            assert found[step, position] == hyperschedules.SETTLED
        elif position < frontier[step]:
            assert found[step, position] == hyperschedules.ACTIVE
        else:
            assert found[step, position] == hyperschedules.WORTHLESS


# ---------------------------------------------------------------------------------------------
# Noise.


def test_noise_is_the_kernels_own():
    clean = jnp.array([noise.WORDS.index(word) for word in noise.SENTENCE])
    seen = []
    for kernel in noise.shown():
        tokens = noise.corrupted(kernel)
        for row, level in zip(tokens, noise.LEVELS, strict=True):
            levels = jnp.full(clean.shape, level, jnp.float32)
            wanted = noising.corrupt(kernel, jax.random.key(noise.SEED), clean, levels)
            np.testing.assert_array_equal(row, wanted)
        states = noise.states(kernel, tokens)
        assert (states[0] == "kept").all()
        np.testing.assert_array_equal(states == "masked", tokens == kernel.mask)
        np.testing.assert_array_equal(states == "kept", tokens == np.asarray(clean))
        # What is masked stays so, and what is replaced never comes back.
        order = np.select([states == "kept", states == "replaced"], [0, 1], 2)
        assert (np.diff(order, axis=0) >= 0).all()
        seen.append(set(states.reshape(-1)))
    # The picture shows what each kernel can do.
    every = {"kept", "masked", "replaced"}
    assert seen == [every - {"replaced"}, every - {"masked"}, every, every]


# ---------------------------------------------------------------------------------------------
# Attention.


def may(query, key):
    """The predicate in words (see `layout`), for layouts with causal context."""
    if not (query["valid"] and key["valid"]):
        return False
    if not query["noisy"]:
        return not key["noisy"] and key["position"] <= query["position"]
    if key["noisy"]:
        return key["first"] == query["first"]
    return key["position"] < query["first"]


def single(rows):
    return [
        {name: v[i].item() for name, v in rows._asdict().items() if v is not None}
        for i in range(len(rows.position))
    ]


@pytest.mark.parametrize("pictures", [masks.training_pictures, masks.inference_pictures])
def test_masks_are_the_predicate(pictures):
    for picture in pictures():
        pairs = itertools.product(single(picture.queries), single(picture.keys))
        wanted = np.array([may(query, key) for query, key in pairs])
        np.testing.assert_array_equal(picture.mask.reshape(-1), wanted)
        assert picture.queries.valid.all()
        assert picture.keys.valid.all()


@dataclasses.dataclass(frozen=True)
class Spy:
    """A network that remembers what it was fed."""

    network: Transformer
    fed: list

    def extend(self, params, cache, tokens, position, mask, level):
        self.fed.append((position[0], mask[0]))
        return self.network.extend(params, cache, tokens, position, mask, level)


@pytest.mark.parametrize("number", [1, 2])  # shifted blocks, aligned slide
def test_inference_masks_are_what_the_sampler_feeds(number):
    """Against the network's own input in a real generation, less the rows without meaning."""
    picture = masks.inference_pictures()[number]
    schedules = [
        build(length=9, width=masks.WIDTH, levels=masks.WIDTH)
        for build in (hyperschedule.block, hyperschedule.slide)
    ]
    spec = Spec(
        schedule=schedules[number // 2],
        kernel=noising.absorbing(vocab_size=5),
        layout=Layout(alignment=("aligned", "shifted")[number % 2]),
        objective=Objective(),
    )
    network = Transformer(vocab_size=5, layers=1, width=8, heads=1)
    sampler = Sampler(spec=spec, network=network)
    params = quick_jit(network.init)(jax.random.key(0))
    given = prompts.build([[]], length=9, vocab_size=5)
    state = loop.start(sampler, params, driver.keys_of(0, np.arange(1)), given)
    state = loop.advance(sampler, rules.make("ancestral"), params, state, 2 * masks.WIDTH)
    assert int(state.step[0]) == 2 * masks.WIDTH

    def fed(state):
        spy = Spy(network, [])
        spied = dataclasses.replace(sampler, network=spy)
        cache_feed.show_new(spied, params, state, sampler.capacity)
        return spy.fed

    ((position, mask),) = jax.device_get(quick_jit(fed)(state))
    # Rows that nobody may look at, and that look at nothing, are there for the shape alone.
    own = mask[:, sampler.slots :]
    real = own.diagonal()
    filled = int(state.filled[0])
    assert picture.cached == filled
    keys = np.concatenate([np.arange(sampler.slots) < filled, real])
    np.testing.assert_array_equal(position[real], picture.queries.position)
    np.testing.assert_array_equal(mask[real][:, keys], picture.mask)
    assert mask.sum() == picture.mask.sum()


def test_names_of_rows():
    block = hyperschedule.block(length=6, width=3, levels=3)
    picture = masks.training(Layout(alignment="shifted"), block, 0)
    count = len(picture.queries.position)
    assert [masks.query_name(picture.queries, i) for i in range(count)] == [
        "BOS → 0", "x2 → 3", "z0 → 1", "z1 → 2", "z2", "z3 → 4", "z4 → 5", "z5",
        "BOS", "x0", "x1", "x2",
    ]  # fmt: skip
    assert masks.groups(picture.queries) == [
        ("in\nfront", 0, 2), ("window\n0–2", 2, 5), ("window\n3–5", 5, 8), ("clean", 8, 12)
    ]  # fmt: skip
    step = masks.inference(Layout(), hyperschedule.slide(length=9, width=3, levels=3), 6)
    assert masks.groups(step.keys, step.cached) == [
        ("cache", 0, 3), ("just\nsettled", 3, 4), ("window\n4–6", 4, 7)
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------
# The animation.


@pytest.fixture(scope="module")
def recordings(epsilon):
    """Under a rule that replaces, and one that masks again; each with what `generate` gives."""
    model = pretrained.load(epsilon)
    request = Request(prompt="12", ids=[49, 50], stop=LENGTH)
    found = []
    for name, rule in {
        "acs": rules.make("acs", eta=1.0, temperature=4.0),
        "remdm": rules.make("remdm", eta=0.5),
    }.items():
        own = generator.build(model, rule=rule)
        recording = frames.record(own, request, seed=4, title=f"<{name}>")
        (wanted,) = driver.run(own, [request], seed=4, batch_size=1)
        found.append((recording, wanted))
    return found


def test_frames_end_in_the_text_that_generate_gives(recordings):
    for recording, wanted in recordings:
        assert recording.text == wanted
        last = recording.frames[-1]
        cells = frames.cells_of(ByteTokenizer(), wanted.tokens, ["settled"] * len(wanted.tokens))
        assert list(last.cells) == [frames.on_one_line(cell) for cell in cells]
        assert set(last.states) <= {"given", "settled", "revealed", "corrected"}
        assert (last.nfe, last.corrections) == (wanted.nfe, wanted.corrections)
        assert last.step == last.steps


def test_frames_count_what_the_loop_counts(recordings):
    for recording, wanted in recordings:
        assert wanted.corrections > 0
        assert len(recording.frames) == wanted.nfe + 1
        total = 0
        for number, frame in enumerate(recording.frames):
            total += frame.states.count("corrected")
            assert frame.corrections == total
            assert frame.nfe == number
            assert len(frame.cells) == len(frame.states) == LENGTH
            assert frame.states[:2] == ("given", "given")
    masked_again = [
        cell
        for frame in recordings[1][0].frames
        for cell, state in zip(frame.cells, frame.states, strict=True)
        if state == "corrected"
    ]
    assert "░" in masked_again


def test_states_of_frames_follow_the_schedule(recordings):
    """Blocks of 4: those done are settled, one is open, the others are not begun."""
    for recording, _ in recordings:
        for frame in recording.frames[:-1]:
            block = frame.step // 4
            for position, state in enumerate(frame.states):
                if position // 4 < block:
                    assert state in ("given", "settled", "revealed", "corrected")
                elif position // 4 == block:
                    assert state in ("given", "active", "revealed", "corrected", "masked")
                else:
                    assert state == "worthless"


def test_text_behind_an_end_token_is_worthless(epsilon):
    model = pretrained.load(epsilon)
    own = generator.build(model, rule=rules.make("greedy"))
    # A common letter as end token, so that the text is sure to end.
    own = dataclasses.replace(own, sampler=dataclasses.replace(own.sampler, eos=ord(" ")))
    request = Request(prompt="", ids=[], stop=LENGTH)
    for seed in range(5):
        recording = frames.record(own, request, seed=seed)
        length = len(recording.text.tokens)
        if length < LENGTH:
            break
    assert length < LENGTH
    last = recording.frames[-1]
    assert set(last.states[length:]) == {"worthless"}
    assert "worthless" not in last.states[:length]
    assert last.step == last.steps


def test_characters_of_several_tokens():
    tokens = [*"a—b".encode(), 10, 258, 0xE2, 258, 257, 0x80]
    states = ["settled"] * 10 + ["worthless"]
    unreadable = frames.UNREADABLE
    wanted = ["a", "—", "", "", "b", "\n", "░", unreadable, "░", "", "·"]
    assert frames.cells_of(ByteTokenizer(), tokens, states) == wanted
    # A character that is not whole yet is not made up from what is not begun.
    states = ["settled", "active", "worthless"]
    assert frames.cells_of(ByteTokenizer(), list("—".encode()), states) == [
        unreadable,
        unreadable,
        "·",
    ]
    assert frames.on_one_line("a\n\t\x07é") == f"a⏎ {unreadable}é"


def test_gif_has_a_frame_for_each_round(recordings):
    runs = [recording for recording, _ in recordings]
    with Image.open(io.BytesIO(gif.draw(runs))) as image:
        assert image.format == "GIF"
        rounds = max(len(run.frames) for run in runs)
        assert image.n_frames == rounds
        two = image.size
        painted = []
        for number in range(rounds):
            image.seek(number)
            painted.append(image.convert("RGB").tobytes())
        assert all(a != b for a, b in itertools.pairwise(painted))
    with Image.open(io.BytesIO(gif.draw(runs[:1]))) as image:
        assert two[0] == 2 * image.size[0]


def test_long_tokens_stay_inside_their_panel():
    places = gif._places([50, 3, 40, 2, 2])
    assert places == [(0, 0, 44), (1, 0, 3), (1, 3, 40), (2, 0, 2), (2, 2, 2)]


def payload(html):
    (values,) = re.findall(r'<script type="application/json" id="values">(.*?)</script>', html)
    return json.loads(values)


@pytest.mark.parametrize("which", ["drawn", "committed"])
def test_page_is_played_and_stepped_through_in_a_browser(which, recordings, tmp_path, browser):
    file = FIGURES / "animation.html"
    if which == "drawn":
        file = tmp_path / "animation.html"
        file.write_text(page.draw([recording for recording, _ in recordings]), encoding="utf-8")
    tab = browser.new_page(reduced_motion="reduce")  # so that it does not begin by itself
    troubles = []
    tab.on("pageerror", lambda error: troubles.append(error))
    tab.goto(file.as_uri())

    def shown():
        now, _, last = tab.locator("#count").text_content().partition("/")
        texts = tab.locator(".text").all_text_contents()
        return int(now), int(last), texts

    now, last, begun = shown()
    assert now == 0
    tab.get_by_label("Frame on").click()
    tab.keyboard.press("ArrowRight")
    assert shown()[0] == 2
    tab.get_by_label("Frame back").click()
    assert shown()[0] == 1
    tab.get_by_label("Last frame").click()
    assert shown()[0] == last
    assert all(a != b for a, b in zip(shown()[2], begun, strict=True))
    tab.get_by_label("First frame").click()
    assert shown()[::2] == (0, begun)
    tab.get_by_label("Speed").select_option("40 a second")
    tab.get_by_role("button", name="Play").click()
    tab.locator("#count", has_text=re.compile(r"^(?:[3-9]|\d\d)")).wait_for()
    tab.get_by_role("button", name="Pause").click()
    assert 2 < shown()[0] == shown()[0]
    tab.get_by_label("Frame", exact=True).fill(str(last - 1))
    tab.get_by_role("button", name="Play").click()
    tab.get_by_role("button", name="Play").wait_for()  # it pauses at the end
    assert shown()[0] == last
    tab.goto(f"{file.as_uri()}#2")
    tab.reload()
    assert shown()[0] == 2
    tab.close()
    assert not troubles


def test_page_holds_the_frames_and_needs_nothing_else(recordings):
    runs = [recording for recording, _ in recordings]
    html = page.draw(runs)
    assert "//" not in html.replace("\n// ", "").replace("  // ", "")  # no address of anything
    assert "<acs>" not in html
    values = payload(html)
    assert values["states"] == frames.MEANINGS
    for run, told in zip(runs, values["runs"], strict=True):
        assert told["title"] == run.title
        assert told["widths"] == list(run.widths)
        cells = [""] * len(told["widths"])
        for frame, (letters, changes, counts) in zip(run.frames, told["frames"], strict=True):
            for position, text in zip(changes[::2], changes[1::2], strict=True):
                cells[position] = text
            assert cells == list(frame.cells)
            assert list(letters) == [state[0] for state in frame.states]
            assert counts == (
                f"step {frame.step}/{frame.steps}, NFE {frame.nfe}, corrections {frame.corrections}"
            )


def test_every_way_to_show_a_token_knows_its_states():
    assert list(frames.MEANINGS) == list(palette.STYLES) == list(STATES)
    css = player.read("player.css")
    for state, style in palette.STYLES.items():
        found = re.search(rf"^\.{state} \{{ (.*) \}}$", css, re.MULTILINE)
        look = found[1] if found else ""
        assert ("background" in look) == (style.fill != palette.PAPER)
        if style.fill != palette.PAPER:
            assert f"background: {style.fill}; color: {style.ink};" in look
        assert ("font-weight: bold" in look) == style.bold
        assert ("underline" in look) == style.underlined


# ---------------------------------------------------------------------------------------------
# The command.


def test_the_command_draws_what_needs_no_model(tmp_path, capsys):
    assert figures.main([f"--out={tmp_path}/new/folder"]) == 0
    folder = tmp_path / "new" / "folder"
    files = {f"{name}.png" for name in figures.PICTURES}
    assert {path.name for path in folder.iterdir()} == files
    for file in files:
        with Image.open(folder / file) as image:
            assert image.format == "PNG"
            image.load()
            assert min(image.size) > 500
            assert len(image.convert("RGB").getcolors(1 << 20)) > 4
            assert image.convert("RGBA").getextrema()[3] == (255, 255)  # opaque
    assert len(capsys.readouterr().out.splitlines()) == len(files)


def test_the_command_animates_a_run(epsilon, tmp_path):
    arguments = [
        "animation",
        f"--workdir={epsilon}",
        "--prompt=7 ",
        "--seed=3",
        f"--out={tmp_path}",
    ]
    assert figures.main(["animation", *arguments]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"animation.gif", "animation.html"}
    (run,) = payload((tmp_path / "animation.html").read_text(encoding="utf-8"))["runs"]
    assert run["settings"] == "block(ω=4, T=4), ε-hybrid(ε=0.01), ancestral"
    out = tmp_path / "texts.jsonl"
    command = [f"--workdir={epsilon}", "--prompt=7 ", "--seed=3", f"--out={out}"]
    assert generate.main(command) == 0
    wanted = json.loads(out.read_text(encoding="utf-8"))
    recording = figures.record_run(epsilon, title=epsilon.name, prompt="7 ", seed=3)
    assert list(recording.text.tokens) == wanted["tokens"]
    assert run == json.loads(json.dumps(page.values_of(recording)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nois"], "There is no picture 'nois': did you mean noise?"),
        (["animation"], "The animation shows trained runs: say which with --workdir=DIR."),
        (
            ["noise", "--workdir=runs/a"],
            "--workdir has no effect with the other pictures: leave it out, or choose",
        ),
        (
            ["--seed=0"],
            "--seed has no effect with the other pictures: leave it out, or choose anim",
        ),
        (["--workdir=/nonexistent"], "/nonexistent holds no run"),
        (["--seed=4294967296", "animation", "--workdir=/nonexistent"], "is not a whole number"),
        (["--out={file}"], "(it is no folder)"),
        (["--out={file}/below/this"], "(Not a directory)"),
        (["animation", "--workdir=/nonexistent", "--out=/proc/no"], "Cannot write /proc/no"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, message):
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    given = [argument.format(file=file) for argument in arguments]
    if not any("--out" in argument for argument in given):
        given.append(f"--out={tmp_path}/out")
    assert figures.main(given) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_prompt_that_does_not_fit_is_refused(epsilon, tmp_path, capsys):
    prompt = "x" * (LENGTH + 1)
    assert figures.main([f"--workdir={epsilon}", f"--prompt={prompt}", "animation",
                         f"--out={tmp_path}/out"]) == 2  # fmt: skip
    assert "shorten it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert figures.main([f"--out={tmp_path}/out"]) == 2
    assert "install it with pip install 'hybrid_jax[eval]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_committed_pictures_are_small():
    folder = FIGURES
    for path in folder.glob("*.*"):
        assert path.stat().st_size < (400_000 if path.suffix in (".gif", ".html") else 150_000)
    for name in (*(f"{name}.png" for name in figures.PICTURES), "animation.gif", "animation.html"):
        assert (folder / name).is_file()
        assert name in (folder / "README.md").read_text(encoding="utf-8")
