"""The page that shows a model at work: a real server, with models that were really trained."""

import contextlib
import http.client
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
import tiny
from conftest import REPOSITORY

from hybrid_jax import generate
from hybrid_jax.config import EvaluationConfig, NoiseConfig, ScheduleConfig, TrainConfig
from hybrid_jax.demo import __main__ as command_line
from hybrid_jax.demo import server as demo
from hybrid_jax.demo.writer import MOST_CHARACTERS, Writer
from hybrid_jax.errors import UserError
from hybrid_jax.generation import driver, frames, terminal
from hybrid_jax.method.layout import Layout
from hybrid_jax.method.objective import Objective
from hybrid_jax.sampling import loop, rules
from hybrid_jax.sampling.settings import SamplingConfig
from hybrid_jax.training import pretrained

pytestmark = pytest.mark.slow

LENGTH = 24


def trained_run(place, **sections):
    lines = [f"{n} plus {n} makes {2 * n}: Größe γ, naïve ε.\n" for n in range(2000)]
    (place / "text.txt").write_text("".join(lines), encoding="utf-8")
    steps = TrainConfig(steps=3, batch_size=8, eval_every=100, checkpoint_every=3)
    return tiny.run(place, place / "text.txt", length=LENGTH, train=steps, **sections)


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
def serving(folder, host="127.0.0.1"):
    listener = demo.listen(host, 0)
    server = Watched(listener, Writer(pretrained.load(folder), str(folder)), host=host)
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


def write(server, **values):
    """The events of a request."""
    status, _, content = ask(server, "POST", "/write", json.dumps(values))
    assert status == 200, content
    return [json.loads(line) for line in content.decode("utf-8").splitlines()]


def complaint(answer):
    """Status and sentence of an answer that refuses."""
    status, _, content = answer
    error = json.loads(content)["error"]
    assert "\n" not in error
    assert 10 < len(error) < 402
    return status, error


NAMES = {state[0]: state for state in frames.STATES}


def played(events):
    """The frames of events as the page puts them together: cells, states and counts."""
    cells, found = {}, []
    for letters, changes, counts in (event["frame"] for event in events if "frame" in event):
        cells |= dict(zip(changes[::2], changes[1::2], strict=True))
        states = [NAMES[letter] for letter in letters]
        numbers = [int(number) for number in re.findall(r"\d+", counts)]
        found.append(([cells[i] for i in range(len(letters))], states, numbers))
    return found


def shown(frame):
    return "".join(frame[0])


def given(frame):
    """The given parts of a frame."""
    cells = itertools.groupby(zip(*frame[:2], strict=True), lambda cell: cell[1] == "given")
    return ["".join(text for text, _ in run) for is_given, run in cells if is_given]


REQUESTS = [
    ("server", {"seed": 2**32 - 1}),
    ("server", {"text": "  'quoted' and\nγ ", "rule": "acs", "eta": 0.9, "seed": 5}),
    ("server", {"text": "</b>", "rule": "threshold", "threshold": 0.2, "temperature": 0.7,
                "levels": 2, "length": 13}),
    ("pieces_server", {"text": "  7  plus ▁γ€"}),
    ("pieces_server", {"text": "a{{3}}ö{{2}} €", "gaps": True, "rule": "remdm",
                       "strategy": "rescale", "eta": 0.4}),
    ("server", {"text": "a{{2-4}}b{{}}", "gaps": True, "seed": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("which", "values"), REQUESTS)
def test_a_text_is_that_of_the_command_line(which, values, request, tmp_path):
    server = request.getfixturevalue(which)
    first, *events, last = write(server, **values)
    rule = values.get("rule", "acs" if which == "server" else "ancestral")
    assert first["begun"].startswith(rule)
    out = tmp_path / "out.jsonl"
    program, *arguments = shlex.split(last["done"]["command"])[2:]
    assert program == "hybrid_jax.generate"
    assert generate.main([*arguments, f"--out={out}"]) == 0
    (record,) = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    for name in ("text", "tokens", "nfe", "corrections"):
        assert last["done"][name] == record[name]
    film = played(events)
    # A byte that is no character is a cell of its own, and several may be one sign of a text.
    assert re.sub("\ufffd+", "\ufffd", shown(film[-1])) == re.sub(
        "\ufffd+", "\ufffd", terminal.escaped(record["text"])
    )
    # A frame for the beginning and for each round.
    assert [nfe for _, _, (_, _, nfe, _) in film] == list(range(record["nfe"] + 1))
    step, steps, _, corrections = film[-1][2]
    assert step == steps
    assert corrections == record["corrections"]
    assert set(film[-1][1]) <= {"given", "settled", "revealed", "corrected"}


@pytest.mark.parametrize("which", ["server", "pieces_server"])
def test_what_is_given_stands_in_every_frame(which, request):
    server = request.getfixturevalue(which)
    for frame in played(write(server, text="7 plus γ")):
        assert given(frame) == ["7 plus γ"]
    film = played(write(server, text="ab{{3}}cd{{2}}ef", gaps=True))
    assert all(given(frame) == ["ab", "cd", "ef"] for frame in film)
    # The window is shown before its first round: four bytes in blocks, or all pieces together.
    assert shown(film[0]) == ("ab░░·cd··ef" if which == "server" else "ab░░░cd░░ef")
    assert re.fullmatch("ab.*cd.*ef", shown(film[-1]), re.DOTALL)


def test_tokens_appear_are_corrected_and_settle(server):
    film = played(write(server, eta=1.0, seed=1))
    assert set(film[0][1]) == {"masked", "worthless"}
    seen = {state for _, states, _ in film for state in states}
    assert seen == set(frames.STATES) - {"given"}
    # Every correction of a shown token is seen in the frame of its round.
    replaced = sum("corrected" in states for _, states, _ in film)
    counts = [numbers[3] for _, _, numbers in film]
    assert replaced == sum(a != b for a, b in itertools.pairwise(counts)) > 0


def test_numbers_and_prompts_compile_nothing_anew(server):
    def compiled():
        return [part._cache_size() for part in (driver._begin, loop.advance, loop.finish)]

    write(server, rule="acs", eta=0.1, temperature=0.5)
    before = compiled()
    for values in (
        {"rule": "acs", "eta": 1, "temperature": 2, "seed": 77, "length": 9},
        {"eta": 0.0, "temperature": 0.01, "levels": 4, "text": "abc"},
        {"temperature": 1.0, "text": "a{{4}}b", "gaps": True},
    ):
        assert not write(server, **values)[0]["compiling"]
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
    assert [rule["name"] for rule in hybrid["rules"]] == list(rules.NAMED)
    without = ("acs", "speculative")  # for masking, and for aligned rows
    assert [rule["name"] for rule in masking["rules"]] == [
        n for n in rules.NAMED if n not in without
    ]
    found = {
        rule["name"]: {setting["name"]: setting for setting in rule["settings"]}
        for rule in hybrid["rules"]
    }
    assert {name: set(settings) for name, settings in found.items()} == {
        name: set(named.settings) for name, named in rules.NAMED.items()
    }
    assert found["acs"]["eta"] == {
        "name": "eta", "about": "strength η of corrections, 0 for none; in [0, 1]", "value": 0.5,
        "choices": [], "whole": False, "range": [0, 1],
    }  # fmt: skip
    assert found["remdm"]["eta"]["value"] == 0.02  # the experiment's is not for it
    assert found["acs"]["guidance"]["choices"] == ["uniform", "confidence"]
    assert found["acs"]["top_k"] | {"about": ""} == {
        "name": "top_k", "about": "", "value": None, "choices": [], "whole": True, "range": [1],
    }  # fmt: skip
    assert hybrid["rule"] == "acs"
    assert hybrid["levels"] == {"value": 4, "most": 16, "free": True}
    assert [rule["name"] for rule in hybrid["rules"] if not rule["levels"]] == ["speculative"]
    # What is offered is taken.
    for name, settings in found.items():
        values = {setting: described["value"] for setting, described in settings.items()}
        levels = 2 if name != "speculative" else None
        assert server.writer.job({"rule": name, "levels": levels, **values})


def test_plain_autoregression_has_no_levels(ar):
    writer = Writer(pretrained.load(ar), "ar")
    assert not writer.describe()["levels"]["free"]
    with pytest.raises(UserError, match="has no windows"):
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
    ('{"text": "\\ud800"}', "not a JSON object that can be read"),
    ({"txt": ""}, "request.txt is not a setting: did you mean text?"),
    ({"text": 7}, "request.text=7 should be of type str"),
    ({"text": None}, "request.text=None should be of type str"),
    ({"gaps": 1}, "request.gaps=1 should be of type bool"),
    ({"eta": "much"}, "request.eta='much' should be of type float"),
    ({"eta": {"a": ["b"] * 5000}}, "request.eta={'a'"),
    ({"seed": 1.5}, "request.seed=1.5 should be of type int"),
    ({"seed": -1}, "seed must be a whole number in 0"),
    ({"seed": 2**32}, "seed must be a whole number in 0"),
    ({"rule": "guess"}, "There is no rule 'guess': choose one of ancestral"),
    ({"rule": "x" * 5000}, "There is no rule 'xxx"),
    ({"rule": "greedy", "temperature": 1.0}, "Rule greedy fixes temperature at 0"),
    ({"rule": "ancestral", "eta": 0.5}, "Rule ancestral has no eta"),
    ({"eta": 1.5}, "eta must lie in [0, 1], but is 1.5"),
    ({"guidance": "doubt"}, "guidance must be one of uniform, confidence"),
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
    ({"text": "a{{0}}b", "gaps": True}, "The gap {{0}} has no lengths"),
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


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_page_for_everybody_has_the_names_of_the_machine(block, host):
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving(block, host) as server:
        assert server.urls[0] == f"http://localhost:{server.server_address[1]}/"
        assert not any(f"//{host}:" in url or f"[{host}]" in url for url in server.urls)
        for url in server.urls:
            with urllib.request.urlopen(url, timeout=60) as page:
                assert page.status == 200
        name = socket.gethostname()
        for known in (name, name.upper(), f"{name}.", f"{name}.local:90", "192.0.2.7", "[::1]:80"):
            assert ask(server, "GET", "/model", Host=known)[0] == 200, known
        for other in ("rebound.example", f"{name}.rebound.example", f"x{name}", "192.0.2.7.nip.io"):
            assert ask(server, "GET", "/model", Host=other)[0] == 403, other


def test_the_page_loads_nothing_from_elsewhere(server):
    kinds = {"html": "html", "css": "css", "js": "javascript"}
    for path, (_, file, _) in demo._FILES.items():
        status, headers, content = ask(server, "GET", path)
        assert status == 200
        assert kinds[file.rpartition(".")[2]] in headers["Content-Type"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        text = content.decode("utf-8")
        assert "://" not in text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert complaint(ask(server, "GET", "/../server.py"))[0] == 404
    assert complaint(ask(server, "POST", "/", "{}"))[0] == 404


def test_the_files_of_the_pages_are_installed(tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    package = REPOSITORY / "hybrid_jax"
    files = [f for kind in ("html", "css", "js") for f in package.glob(f"*/*.{kind}")]
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "hybrid_jax" / file.relative_to(package)).is_file()


def test_two_write_at_once_and_do_not_disturb_each_other(server):
    both = [{"seed": 1, "text": "one "}, {"seed": 2, "length": 9}]
    alone = [write(server, **values)[-1]["done"] for values in both]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda values: write(server, **values)[-1]["done"], both))
    assert together == alone


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


def test_no_thread_outlives_the_server(block):
    """Python aborts at its end if a thread is inside JAX then."""
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack, serving(block) as server:
        stack.enter_context(socket.create_connection(server.server_address))
        ask(server, "GET", "/model")  # by now the silent connection has its thread
        assert len(set(threading.enumerate()) - before) >= 2
    assert set(threading.enumerate()) <= before


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
    page.on(
        "request", lambda r: None if r.url.startswith(server.urls[0]) else troubles.append(r.url)
    )
    page.goto(server.urls[0])
    page.locator("#write:enabled").wait_for()
    yield page
    page.close()
    assert not [trouble for trouble in troubles if trouble != "data:,"]


def test_the_page_writes_and_shows_what_the_server_says(page, server):
    prompt = "<b>&amp; γ</b> "
    page.get_by_label("Beginning of the text").fill(prompt)
    page.get_by_label("Seed").fill("4")
    page.get_by_label("Speed").select_option("fastest")
    page.get_by_role("button", name="Write").click()
    page.get_by_text("Done: ").wait_for()
    done = write(server, text=prompt, seed=4)[-1]["done"]
    output = page.get_by_label("The text while it is written")
    assert output.text_content().replace("\ufffd", "") == terminal.escaped(done["text"]).replace(
        "\ufffd", ""
    )
    assert output.locator(".given").text_content() == prompt
    counts = page.locator("#counts")
    assert counts.text_content().endswith(f"NFE {done['nfe']}, corrections {done['corrections']}")
    assert page.locator("#output b").count() == 0
    page.get_by_text("The same text on the command line").click()
    assert "--prompt=" in page.locator("#command").text_content()
    # Back to the beginning, where nothing but the prompt is there.
    page.get_by_label("Frame", exact=True).press("Home")
    assert output.text_content() == prompt + "░░░░" + "····"  # 16 bytes, and blocks of 4
    assert "NFE 0" in counts.text_content()
    # The keys of the player, but not where one writes.
    page.locator("#status").click()
    page.keyboard.press("End")
    assert counts.text_content().endswith(f"corrections {done['corrections']}")
    page.keyboard.press("ArrowLeft")
    assert f"NFE {done['nfe'] - 1}," in counts.text_content()
    page.get_by_label("Seed").press("Home")
    assert f"NFE {done['nfe'] - 1}," in counts.text_content()


def test_the_page_fills_gaps_and_shows_what_applies(page):
    levels, tokens, eta = (page.get_by_label(name) for name in ("Levels", "Tokens", "eta"))
    text = page.get_by_label("Text with gaps")
    assert eta.is_visible()
    assert eta.input_value() == "0.5"
    page.get_by_label("Update rule").select_option("threshold")
    assert not eta.is_visible()
    assert page.get_by_label("threshold").is_visible()
    assert levels.is_visible()
    page.get_by_label("Update rule").select_option("speculative")
    assert not levels.is_visible()
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
    page.get_by_label("Speed").select_option("fastest")
    page.get_by_role("button", name="Play").click()
    page.get_by_text("Done: ").wait_for()
    assert page.locator("#output .masked").count() == 0


def wait_for_the_browser_to_close(server):
    """Until a connection of the server is in CLOSE_WAIT (8), where the system tells such things."""
    table, port = Path("/proc/net/tcp"), f":{server.server_address[1]:04X}"
    while table.exists():
        rows = [line.split() for line in table.read_text("ascii").splitlines()]
        if any(row[1].endswith(port) and row[3] == "08" for row in rows):
            break
        time.sleep(0.02)


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
        wait_for_the_browser_to_close(server)
    assert all_places_are_free(server)
    assert len(made) < LENGTH // 2
    assert page.get_by_role("button", name="Stop").is_disabled()
    page.get_by_label("Speed").select_option("fastest")
    page.get_by_role("button", name="Write").click()
    page.get_by_text("Done: ").wait_for()
