"""The page that shows a model at work: a real server, with models that were really trained."""

import contextlib
import http.client
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from conftest import REPOSITORY

from hybrid_jax import generate
from hybrid_jax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    NoiseConfig,
    ScheduleConfig,
    TrainConfig,
)
from hybrid_jax.demo import __main__ as command_line
from hybrid_jax.demo import server as demo
from hybrid_jax.demo.writer import MOST_CHARACTERS, Writer
from hybrid_jax.generation import frames, requests
from hybrid_jax.generation import terminal as watch
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.runtime.preemption import Signals
from hybrid_jax.sampling import loop, rules
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import loop as train
from hybrid_jax.training import pretrained, workdir

LENGTH = 24


def trained_run(place, *, tokenizer="byte", **sections):
    lines = [f"{n} plus {n} makes {2 * n}: Größe γ, naïve ε.\n" for n in range(2000)]
    (place / "text.txt").write_text("".join(lines), encoding="utf-8")
    experiment = Experiment(
        name="tiny",
        data=DataConfig(
            source=f"files:{place}/text.txt",
            tokenizer=tokenizer,
            vocab_size=300 if tokenizer == "sentencepiece" else None,
            length=LENGTH,
            dir=f"{place}/data",
        ),
        model=ModelConfig(layers=1, width=16, heads=2),
        train=TrainConfig(steps=3, batch_size=8, eval_every=100, checkpoint_every=3),
        **sections,
    )
    run = train.open_run(experiment, jax.devices()[:1])
    workdir.claim(place / "run", experiment, run.tokenizer)
    train.train(run, place / "run", Signals(), say=lambda _: None)
    return place / "run"


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """An ε-hybrid of bytes that writes block after block."""
    return trained_run(
        tmp_path_factory.mktemp("block"),
        schedule=ScheduleConfig(family="block", width=4, levels=4),
        noise=NoiseConfig(kernel="epsilon"),
        layout=Layout(alignment="shifted"),
        objective=Objective(loss="weighted_cross_entropy", time="continuous"),
        evaluation=EvaluationConfig(kernel="absorbing"),
        sampling=SamplingConfig(rule="acs", eta=0.5),
    )


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A masking model of SentencePiece tokens that writes all positions together."""
    return trained_run(
        tmp_path_factory.mktemp("flat"),
        tokenizer="sentencepiece",
        schedule=ScheduleConfig(family="flat", levels=6),
    )


class Watched(demo.Server):
    """Keeps its faults, which a server would print."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.faults = []

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            self.faults.append(sys.exception())


@contextlib.contextmanager
def serving(folder):
    listener = demo.listen("127.0.0.1", 0)
    server = Watched(listener, Writer(pretrained.load(folder), str(folder)), host="127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.finish()
        thread.join()
    assert not server.faults


@pytest.fixture(scope="module")
def server(block):
    with serving(block) as server:
        yield server


@pytest.fixture(scope="module")
def pieces_server(flat):
    with serving(flat) as server:
        yield server


def ask(server, method, path, body=None, **headers):
    """An answer: status, headers, content."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=120)
    with contextlib.closing(connection):
        if method == "POST":
            headers = {"Content-Type": "application/json"} | headers
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def write(server, **wish):
    """What is streamed for a wish."""
    status, _, content = ask(server, "POST", "/write", json.dumps(wish))
    assert status == 200, content
    return [json.loads(line) for line in content.decode("utf-8").splitlines()]


def complaint(answer):
    """Status and sentence of an answer that refuses."""
    status, _, content = answer
    error = json.loads(content)["error"]
    assert "\n" not in error
    assert 10 < len(error) < 402
    return status, error


def shown(frame):
    return "".join(text for _, text in frame["runs"])


WISHES = [
    ("server", {"seed": 2**32 - 1}),
    ("server", {"text": "  'quoted' and\nγ ", "rule": "acs", "eta": 0.9, "seed": 5}),
    ("server", {"text": "</b>", "rule": "threshold", "threshold": 0.2, "temperature": 0.7,
                "levels": 2, "length": 13}),
    ("pieces_server", {"text": "  7  plus ▁γ€"}),
    ("pieces_server", {"text": "a{{3}}ö{{2}} €", "gaps": True, "rule": "remdm",
                       "strategy": "rescale", "eta": 0.4}),
]  # fmt: skip


@pytest.mark.parametrize(("which", "wish"), WISHES)
def test_a_text_is_that_of_the_command_line(which, wish, request, tmp_path):
    server = request.getfixturevalue(which)
    first, *frames_, last = write(server, **wish)
    assert first["begun"].startswith(wish.get("rule", "acs" if which == "server" else "ancestral"))
    out = tmp_path / "out.jsonl"
    program, *arguments = shlex.split(last["done"]["command"])[2:]
    assert program == "hybrid_jax.generate"
    assert generate.main([*arguments, f"--out={out}"]) == 0
    (record,) = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    for name in ("text", "tokens", "nfe", "corrections"):
        assert last["done"][name] == record[name]
    assert shown(last["frame"]) == record["text"]
    # A frame for the beginning and for each round.
    assert [frame["frame"]["nfe"] for frame in frames_] == list(range(record["nfe"] + 1))
    assert frames_[-1]["frame"]["corrections"] == record["corrections"]
    assert {kind for kind, _ in last["frame"]["runs"]} <= {"given", "settled"}


@pytest.mark.parametrize("which", ["server", "pieces_server"])
def test_what_is_given_stands_in_every_frame(which, request):
    server = request.getfixturevalue(which)
    for event in write(server, text="7 plus γ")[1:]:
        assert event["frame"]["runs"][0] == ["given", "7 plus γ"]
    events = write(server, text="ab{{3}}cd{{2}}ef", gaps=True)[1:]
    for event in events:
        given = [text for kind, text in event["frame"]["runs"] if kind == "given"]
        assert given == ["ab", "cd", "ef"]
    assert shown(events[0]["frame"]) == "ab···cd··ef"
    assert re.fullmatch("ab.*cd.*ef", shown(events[-1]["frame"]), re.DOTALL)


def test_tokens_appear_are_corrected_and_settle(server):
    events = write(server, eta=1.0, seed=1)[1:]
    kinds = [[kind for kind, text in event["frame"]["runs"] for _ in text] for event in events]
    assert set(kinds[0]) == {"worthless"}
    assert {"masked", "active", "worthless"} <= {kind for frame in kinds for kind in frame}
    # Every correction of a shown token is seen in the frame of its round.
    replaced = sum("corrected" in frame for frame in kinds)
    counts = [event["frame"]["corrections"] for event in events]
    assert replaced == sum(a != b for a, b in itertools.pairwise(counts)) > 0


def test_what_tokens_are():
    tokens = np.array([65, 66, 67, 69, 70, 258, 258])
    before = np.array([65, 66, 67, 68, 258, 258, 258])
    frozen = np.array([True, False, False, False, False, False, False])
    assert frames.kinds(tokens, before, frozen, mask=258, settled=3, frontier=6) == [
        "given", "settled", "settled", "corrected", "active", "masked", "worthless",
    ]  # fmt: skip
    # The terminal and the page show the same kinds.
    assert list(frames.KINDS) == list(watch.STYLES)
    style = (REPOSITORY / "hybrid_jax" / "demo" / "page.css").read_text(encoding="utf-8")
    assert all(f"\n.{kind} {{" in style for kind in frames.KINDS if kind != "settled")


def test_numbers_and_prompts_compile_nothing_anew(server):
    def compiled():
        return [part._cache_size() for part in (loop.start, loop.advance, loop.finish)]

    write(server, rule="acs", eta=0.1, temperature=0.5)
    before = compiled()
    for wish in (
        {"rule": "acs", "eta": 1, "temperature": 2, "seed": 77, "length": 9},
        {"eta": 0.0, "temperature": 0.01, "levels": 4, "text": "abc"},
        {"temperature": 1.0, "text": "a{{4}}b", "gaps": True},
    ):
        assert not write(server, **wish)[0]["compiling"]
    assert compiled() == before
    assert write(server, temperature=0.5, guidance="confidence")[0]["compiling"]
    assert [b - a for a, b in zip(before, compiled(), strict=True)] == [0, 1, 0]


def test_programs_are_forgotten_when_there_are_many(server, monkeypatch):
    from hybrid_jax.demo import writer

    text = write(server)[-1]["done"]["text"]
    write(server, temperature=1.0)
    assert len(server.writer._compiled) >= 2
    monkeypatch.setattr(writer, "_MOST_PROGRAMS", 2)
    write(server, temperature=1.0, levels=2)
    assert len(server.writer._compiled) == 1
    assert write(server)[-1]["done"]["text"] == text


def test_choices_are_those_of_the_model(server, pieces_server):
    hybrid, masking = (json.loads(ask(s, "GET", "/model")[2]) for s in (server, pieces_server))
    assert [rule["name"] for rule in hybrid["rules"]] == list(rules.NAMES)
    assert [rule["name"] for rule in masking["rules"]] == [n for n in rules.NAMES if n != "acs"]
    settings = {rule["name"]: rule["settings"] for rule in hybrid["rules"]}
    assert settings["acs"] == {
        "eta": {"value": 0.5, "choices": []},
        "guidance": {"value": "uniform", "choices": ["uniform", "confidence"]},
        "temperature": {"value": None, "choices": []},
    }
    assert settings["greedy"] == {}
    assert hybrid["rule"] == "acs"
    assert hybrid["levels"] == {"value": 4, "most": 16, "free": True}
    # What is offered is taken.
    for rule in hybrid["rules"]:
        values = {name: setting["value"] for name, setting in rule["settings"].items()}
        assert server.writer.job({"rule": rule["name"], **values})


def test_plain_autoregression_has_no_levels(block, tmp_path):
    shutil.copytree(block, tmp_path / "ar")
    path = tmp_path / "ar" / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["schedule"] = {"family": "quenched_ar"}
    path.write_text(json.dumps(values), encoding="utf-8")
    writer = Writer(pretrained.load(tmp_path / "ar"), "ar")
    assert not writer.describe()["levels"]["free"]
    with pytest.raises(requests.UserError, match="has no windows"):
        writer.job({"levels": 2})


BAD = [
    ("", "not a JSON object that can be read"),
    ("{", "not a JSON object that can be read"),
    ("[" * 50_000, "not a JSON object that can be read"),
    (b"\xff\xfe{}", "not a JSON object that can be read"),
    ("[1]", "is not a JSON object."),
    ('{"seed": ' + "9" * 5000 + "}", "not a JSON object that can be read"),
    ('{"eta": NaN}', "not a JSON object that can be read"),
    ('{"eta": 1e999}', "request.eta=inf should be a finite number"),
    ('{"temperature": 1e300}', "no number to calculate with"),
    ('{"text": "\\ud800"}', "half a character"),
    ({"txt": ""}, "request.txt is not a setting: did you mean text?"),
    ({"text": 7}, "request.text=7 should be of type str"),
    ({"text": None}, "request.text=None should be of type str"),
    ({"gaps": 1}, "request.gaps=1 should be of type bool"),
    ({"eta": "much"}, "request.eta='much' should be of type float"),
    ({"eta": {"a": ["b"] * 5000}}, "request.eta={'a'"),
    ({"seed": 1.5}, "request.seed=1.5 should be of type int"),
    ({"seed": -1}, "seed must lie in 0"),
    ({"seed": 2**32}, "seed must lie in 0"),
    ({"rule": "guess"}, "There is no rule 'guess': choose one of ancestral"),
    ({"rule": "x" * 5000}, "There is no rule 'xxx"),
    ({"rule": "greedy", "temperature": 1.0}, "Rule greedy has no temperature"),
    ({"rule": "ancestral", "eta": 0.5}, "Rule ancestral has no eta"),
    ({"eta": 1.5}, "eta must lie in [0, 1], but is 1.5"),
    ({"guidance": "doubt"}, "guidance must be uniform or confidence"),
    ({"levels": 0}, "levels must be at least 1"),
    ({"levels": 17}, "levels is 17, but this page takes 1 … 16"),
    ({"length": 0}, "asks for a text of 0 tokens"),
    ({"length": LENGTH + 1}, "asks for a text of 25 tokens"),
    ({"text": "x" * 25}, "does not fit a text of 24"),
    ({"text": "x" * 24}, "leaves nothing to generate"),
    ({"text": "x" * (MOST_CHARACTERS + 1)}, "characters, of which at most 20000 are read"),
    ({"text": "", "gaps": True}, "has no gap: write {{5}}"),
    ({"text": "a{{x}}b", "gaps": True}, "has no gap: write {{5}}"),
    ({"text": "y" * 9000, "gaps": True}, "has no gap: write {{5}}"),
    ({"text": "a{{0}}b", "gaps": True}, "leaves nothing to generate"),
    ({"text": "a{{25}}b", "gaps": True}, "The gap {{25}} is longer than the 24 tokens"),
    ({"text": "a{{" + "9" * 8000 + "}}b", "gaps": True}, "is longer than the 24 tokens"),
    ({"text": "a{{20}}b{{20}}", "gaps": True}, "asks for a text of 42 tokens"),
    ({"text": "a{{2}}", "gaps": True, "length": 5}, "has the length that its gaps give it"),
]


@pytest.mark.parametrize(("body", "message"), BAD)
def test_bad_input_is_one_sentence(server, body, message):
    body = json.dumps(body) if isinstance(body, dict) else body
    status, error = complaint(ask(server, "POST", "/write", body))
    assert status == 400
    assert message in error


def test_long_requests_are_refused(server):
    body = json.dumps({"text": "x" * 100_000})
    assert complaint(ask(server, "POST", "/write", body)) == (
        413, f"The request has {len(body)} bytes, of which at most 100000 are read."
    )  # fmt: skip
    # What is announced is not waited for.
    assert complaint(ask(server, "POST", "/write", b"", Content_Length="-5"))[0] == 411
    assert complaint(ask(server, "POST", "/write", b"", Content_Length="much"))[0] == 411


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Host": "rebound.example"}, 403),
        ("GET", {"Host": "127.0.0.1.rebound.example:80"}, 403),
        ("GET", {"Host": "[::1"}, 403),
        ("GET", {"Host": ""}, 403),
        ("POST", {"Host": "rebound.example"}, 403),
        ("POST", {"Host": "localhost:8000", "Origin": "http://evil.example"}, 403),
        ("POST", {"Host": "localhost:8000", "Origin": "http://localhost:3000"}, 403),
        ("POST", {"Host": "localhost:8000", "Origin": "https://localhost:8000"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Content_Type": "text/plain"}, 415),
        ("POST", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ("GET", {"Host": "localhost"}, 200),
        ("GET", {"Host": "LOCALHOST:9000"}, 200),
        ("POST", {"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),
    ],
)
def test_only_this_machine_and_this_page_are_answered(server, method, headers, status):
    path, body = ("/write", "{}") if method == "POST" else ("/model", None)
    answer = ask(server, method, path, body, **headers)
    assert answer[0] == status
    if status != 200:
        complaint(answer)


def test_the_page_loads_nothing_from_elsewhere(server):
    for path, kind in {"/": "html", "/page.css": "css", "/page.js": "javascript"}.items():
        status, headers, content = ask(server, "GET", path)
        assert status == 200
        assert kind in headers["Content-Type"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        text = content.decode("utf-8")
        assert "://" not in text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert complaint(ask(server, "GET", "/../server.py"))[0] == 404
    assert complaint(ask(server, "POST", "/", "{}"))[0] == 404


def test_the_files_of_the_page_are_installed(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    for file, _ in demo._FILES.values():
        assert (tmp_path / "hybrid_jax" / "demo" / file).is_file()


def test_two_write_at_once_and_do_not_disturb_each_other(server):
    wishes = [{"seed": 1, "text": "one "}, {"seed": 2, "rule": "remdm"}]
    alone = [write(server, **wish)[-1]["done"] for wish in wishes]
    with ThreadPoolExecutor(2) as pool:
        raise_on_all = list(pool.map(lambda wish: write(server, **wish)[-1]["done"], wishes))
    assert raise_on_all == alone


def test_when_all_places_are_taken_the_next_is_told_to_wait(server):
    for _ in range(demo.PLACES):
        assert server.places.acquire(timeout=60)
    try:
        status, error = complaint(ask(server, "POST", "/write", "{}"))
    finally:
        server.places.release(demo.PLACES)
    assert status == 503
    assert "try again in a moment" in error
    assert write(server)[-1]["done"]


def test_a_storm_of_clicks_is_survived(server):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(server, "POST", "/write", "{}"), range(20)))
    finished = [content for status, _, content in answers if status == 200]
    assert {status for status, _, _ in answers} <= {200, 503}
    assert len(finished) >= demo.PLACES
    texts = {json.loads(content.splitlines()[-1])["done"]["text"] for content in finished}
    assert texts == {write(server)[-1]["done"]["text"]}


@pytest.fixture
def made(server, monkeypatch):
    """All events that the server's writer yields."""
    events = []
    real = server.writer.write

    def counted(job):
        for event in real(job):
            events.append(event)
            yield event

    monkeypatch.setattr(server.writer, "write", counted)
    return events


def all_places_are_free(server):
    for _ in range(demo.PLACES):
        assert server.places.acquire(timeout=120)
    server.places.release(demo.PLACES)
    return True


def test_a_client_that_goes_away_frees_its_place(server, made):
    # Nobody has a turn until the client is gone.
    with server.writer._turn, socket.create_connection(server.server_address[:2]) as client:
        client.sendall(
            b"POST /write HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        received = b""
        while b'"begun"' not in received:
            received += client.recv(4096)
    assert all_places_are_free(server)
    assert len(made) < LENGTH // 2


def test_mistakes_of_the_command_line_are_one_sentence(block, tmp_path, capsys):
    def mistake(*arguments):
        assert command_line.main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = mistake(f"--workdir={block}", f"--port={port}")
    assert f"Port {port} of 127.0.0.1 is taken: choose another --port." in error
    assert "outside 0 … 65535" in mistake(f"--workdir={block}", "--port=70000")
    assert "cannot be listened on" in mistake(f"--workdir={block}", "--host=192.0.2.1")
    assert "holds no run" in mistake(f"--workdir={tmp_path}", "--port=0")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_end_it_while_it_writes(block, number, status):
    command = [sys.executable, "-m", "hybrid_jax.demo", f"--workdir={block}", "--port=0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
    ) as process:  # fmt: skip
        line = process.stdout.readline()
        found = re.fullmatch(r"tiny, step 3, writes at http://127\.0\.0\.1:(\d+)/\n", line)
        assert found, line + process.stderr.read()
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", "/write", "{}", {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert b"begun" in answer.readline()
            process.send_signal(number)
            rest = answer.read()
        out, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert rest, errors
    assert json.loads(rest.splitlines()[-1]) == {"error": "The server was stopped."}
    assert errors.endswith("; the page is closed\n")
    assert errors.count("\n") == 1
    assert out == ""


# ---------------------------------------------------------------------------------------------
# In a browser.


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    troubles = []
    page.on("pageerror", lambda error: troubles.append(error))
    # A refused request is logged, too; it is expected.
    page.on("console", lambda m: troubles.append(m.text) if "Failed to load" not in m.text else 0)
    page.on("request", lambda r: None if r.url.startswith(server.url) else troubles.append(r.url))
    page.goto(server.url)
    page.locator("#write:enabled").wait_for()
    yield page
    page.close()
    assert not [trouble for trouble in troubles if trouble != "data:,"]


def test_the_page_writes_and_shows_what_the_server_says(page, server):
    prompt = "<b>&amp; γ</b> "
    page.get_by_label("Beginning of the text").fill(prompt)
    page.get_by_label("Seed").fill("4")
    page.get_by_label("Speed").select_option("as it comes")
    page.get_by_role("button", name="Write").click()
    page.get_by_text("Done: ").wait_for()
    done = write(server, text=prompt, seed=4)[-1]["done"]
    output = page.get_by_label("The text while it is written")
    assert output.text_content() == done["text"]
    assert output.locator(".given").text_content() == prompt
    assert page.locator("#calls").text_content() == str(done["nfe"])
    assert page.locator("#corrections").text_content() == str(done["corrections"])
    assert page.locator("#output b").count() == 0
    page.get_by_text("The same text on the command line").click()
    assert "--prompt=" in page.locator("#command").text_content()
    # Back to the beginning, where nothing but the prompt is there.
    page.get_by_label("Frame").press("Home")
    assert output.text_content() == prompt + "·" * (LENGTH - len(prompt.encode("utf-8")))
    assert page.locator("#calls").text_content() == "0"


def test_the_page_fills_gaps_and_shows_what_applies(page):
    levels, tokens, eta = (page.get_by_label(name) for name in ("Levels", "Tokens", "η, strength"))
    text = page.get_by_label("Text with gaps")
    assert eta.is_visible()
    assert eta.input_value() == "0.5"
    page.get_by_label("Update rule").select_option("threshold")
    assert not eta.is_visible()
    assert page.get_by_label("Threshold").is_visible()
    assert tokens.is_visible()
    page.get_by_label("fill gaps").check()
    assert not tokens.is_visible()
    text.fill("no gap")
    text.press("Control+Enter")
    page.get_by_role("alert").get_by_text("has no gap: write {{5}}").wait_for()
    page.get_by_label("Update rule").select_option("acs")
    text.fill("a{{3}}b")
    text.press("Control+Enter")
    page.get_by_text("Done: ").wait_for()
    assert page.get_by_role("alert").text_content() == ""
    assert re.fullmatch("a.*b", page.locator("#output").text_content(), re.DOTALL)
    # What the browser knows to be wrong is not sent.
    levels.fill("99")
    page.get_by_role("button", name="Write").click()
    assert levels.evaluate("field => field.validity.rangeOverflow")


def test_the_page_plays_what_has_come_at_its_own_speed(page):
    page.get_by_label("Speed").select_option("2 a second")
    page.get_by_role("button", name="Write").click()
    page.locator("#output .masked").first.wait_for()
    page.get_by_role("button", name="Pause").click()
    assert "░" in page.locator("#output").text_content()
    page.get_by_label("Speed").select_option("as it comes")
    page.get_by_role("button", name="Play").click()
    page.get_by_text("Done: ").wait_for()
    assert page.locator("#output .settled").count() == 1


@pytest.mark.parametrize("key", ["Escape", "Enter"])
def test_a_text_can_be_stopped_and_the_next_begun(page, server, made, key):
    with server.writer._turn:
        page.get_by_role("button", name="Write").click()
        page.get_by_text("Writing: acs").or_(page.get_by_text("Compiling, once")).wait_for()
        assert page.get_by_role("button", name="Write").is_disabled()
        if key == "Enter":
            page.get_by_role("button", name="Stop").focus()
        page.keyboard.press(key)
        page.get_by_text("Stopped.").wait_for()
    assert all_places_are_free(server)
    assert len(made) < LENGTH // 2
    assert page.get_by_role("button", name="Stop").is_disabled()
    page.get_by_label("Speed").select_option("as it comes")
    page.get_by_role("button", name="Write").click()
    page.get_by_text("Done: ").wait_for()
