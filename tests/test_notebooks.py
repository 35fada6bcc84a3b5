"""Every notebook from top to bottom, in a kernel and a folder of its own, with small settings."""

import base64
import importlib.util
import random
import re

import nbformat
import pytest
from conftest import REPOSITORY
from tiny import tiny_tokenizer

from hybrid_jax.errors import UserError

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.slow

NOTEBOOKS = {path.stem: path for path in sorted((REPOSITORY / "colab").glob("*.ipynb"))}
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)
# One device, and programs that other tests and runs have compiled.
MACHINE = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}


def tool():
    """colab/execute.py, which stores outputs in the same way."""
    spec = importlib.util.spec_from_file_location("execute", REPOSITORY / "colab" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXECUTE = tool()


def run(name, folder, **settings):
    """Printed text and pictures of each code cell, by the cell's name."""
    notebook = EXECUTE.read(NOTEBOOKS[name])
    settings = {f"HYBRID_JAX_{key}": str(value) for key, value in settings.items()}
    asked = cell_of(notebook, "parameters").source
    assert all(f'"{key}"' in asked for key in settings), "a setting that the notebook does not read"
    done = EXECUTE.execute(notebook, folder, {**MACHINE, **settings})
    return {
        cell.id: (
            "".join(output.get("text", "") for output in cell.outputs),
            [output.data["image/png"] for output in cell.outputs if "data" in output],
        )
        for cell in done.cells
        if cell.cell_type == "code"
    }


def cell_of(notebook, name):
    return next(cell for cell in notebook.cells if cell.id == name)


def text_file(folder):
    """A small text of the letters that `tiny_tokenizer` knows."""
    draw = random.Random(0)
    words = [a + b + c for a in "abcdefgh" for b in "aeiou" for c in "rstlmn"]
    lines = [" ".join(draw.choices(words, k=8)) + "\n" for _ in range(1000)]
    file = folder / "text.txt"
    file.write_text("".join(lines), encoding="utf-8")
    return f"files:{file}"


def test_quickstart(tmp_path):
    said = run(
        "quickstart", tmp_path, STEPS=20, SOURCE=text_file(tmp_path), TOKENIZER="byte", LENGTH=32,
        LAYERS=1, RECORDS=8,
    )  # fmt: skip
    assert said["devices"] == ("cpu: 1 device(s)\n", [])
    assert "ε-hybrid(ε=0.01)" in said["train"][0]
    assert (tmp_path / "runs" / "quickstart" / "checkpoints" / "20").is_dir()
    assert re.search(r"validation perplexity ≤ \d", said["train"][0])
    assert len(said["plot"][1]) == 1
    nfe, corrections = zip(
        *re.findall(r"(\d+) NFE, (\d+) corrections", said["sample"][0]), strict=True
    )
    assert set(nfe) == {"32"}
    assert corrections[:2] == ("0", "0")
    assert all(int(number) > 0 for number in corrections[2:])
    assert "→" in said["corrections"][0]
    count = re.search(r"(\d+) corrections in 32 NFE", said["corrections"][0])[1]
    assert count == corrections[2], "the same key, call by call"


def test_hyperschedules(tmp_path):
    said = run("hyperschedules", tmp_path, LENGTH=8)
    assert "block(ω=4, T=4)      8 steps" in said["schedules"][0]
    assert len(said["figure"][1]) == 1
    assert said["noise"][0].count("λ = ") == 12
    assert said["reverse"][0].count("→") == 24


def test_pretrained_without_weights(tmp_path):
    """One sentence, and nothing else."""
    said = run("pretrained", tmp_path)
    told, _ = said["import"]
    assert told.startswith("The rest of this notebook is left out. ")
    assert told.count("\n") == 1
    assert "data/gpt2" in told
    assert said["sample"] == said["evaluate"] == ("", [])


def test_pretrained_without_a_network(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    tiny_tokenizer().save(tokenizer)
    said = run("pretrained", tmp_path, TOKENIZER=tokenizer, RELEASED="./nowhere")
    assert said["import"][0] == (
        "The rest of this notebook is left out. There is no folder ./nowhere: name a folder with "
        "config.json and model.safetensors.\n"
    )
    assert said["sample"] == said["evaluate"] == ("", [])


def test_pretrained_with_a_released_model(reference, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    tiny_tokenizer().save(tokenizer)
    said = run(
        "pretrained", tmp_path, RELEASED=reference / "hdlm-tiny-gamma", TOKENIZER=tokenizer,
        PROMPT="bas", INFILL="bas{{3}}dat", LEVELS=4, SOURCE=text_file(tmp_path), RECORDS=8,
    )  # fmt: skip
    assert "63 tokens" in said["import"][0]
    first, second = said["sample"][0].split("--- text ")[1:]
    assert first.splitlines()[1].startswith("bas")
    assert second.splitlines()[1].startswith("bas")
    assert second.splitlines()[1].endswith("dat")
    found = re.search(r"perplexity ≤ ([\d.]+)", said["evaluate"][0])
    assert 10 < float(found[1]) < 1000, "random weights know nothing of 63 tokens"
    assert str(tmp_path) not in str(said)


def test_adapt(tmp_path):
    pytest.importorskip("tokenizers")
    from test_pretrained import folder_of

    (tmp_path / "model").mkdir()
    folder_of("smollm2", tmp_path / "model")
    said = run(
        "adapt", tmp_path, MODEL=tmp_path / "model", SOURCE=text_file(tmp_path), STEPS=4, BATCH=4,
        LENGTH=16, WIDTH=4, DTYPE="float32", RECORDS=8, PROMPT="bas",
    )  # fmt: skip
    assert "holds an autoregressive model" in said["import"][0]
    assert "steps also on: quenched AR" in said["adapt"][0]
    assert said["use"][0].count("--- text 1 of 1 ---\nbas") == 3
    assert re.search(r"valid +=  *[\d.]+ ± ", said["use"][0]), "exact as autoregression"
    assert re.search(r"valid +≤ [\d.]+ ± ", said["use"][0])


def test_adapt_without_a_model(tmp_path):
    told = run("adapt", tmp_path, MODEL="./nowhere")["import"][0]
    assert told == "The rest of this notebook is left out: see the message above.\n"


@each_notebook
def test_notebooks_are_stored_clean(name):
    """Without counters, progress lines, times and folders: what was run again is not a change."""
    notebook = EXECUTE.read(NOTEBOOKS[name])
    nbformat.validate(notebook)
    text = NOTEBOOKS[name].read_text(encoding="utf-8")
    assert EXECUTE.clean(notebook, REPOSITORY) == notebook
    assert nbformat.writes(notebook, ensure_ascii=False) + "\n" == text
    assert all(cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
    assert not re.search(r"/(?:tmp|home|root|work)/", text)


@each_notebook
def test_outputs_are_stored(name):
    notebook = EXECUTE.read(NOTEBOOKS[name])
    assert any(cell.get("outputs") for cell in notebook.cells)
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", [])
                if "data" in output]  # fmt: skip
    assert len(pictures) == (name in ("quickstart", "hyperschedules"))
    errors = [output for cell in notebook.cells for output in cell.get("outputs", [])
              if output.output_type == "error"]  # fmt: skip
    assert not errors


def test_a_failing_cell_fails():
    """The ground of the tests above."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(EXECUTE.nbclient.exceptions.CellExecutionError, match="division by zero"):
        EXECUTE.execute(notebook, REPOSITORY / "colab", MACHINE)


def test_what_is_stored_of_outputs(tmp_path):
    new = nbformat.v4.new_output
    outputs = [
        new("stream", name="stdout", text=f"in {tmp_path}/runs, "),
        new("stream", name="stderr", text="12 %"),
        new("stream", name="stdout", text="took 1.25 s at λ = 0.2\n"),
        new("display_data", data={"image/png": picture(100), "text/plain": "<Figure 0x7f>"}),
        new("execute_result", data={"text/plain": "3", "text/html": "<b>3</b>"}, execution_count=4),
    ]
    cell = nbformat.v4.new_code_cell("pass", outputs=outputs, execution_count=4)
    cell.metadata["execution"] = {"iopub.execute_input": "2024-01-01"}
    (clean,) = EXECUTE.clean(nbformat.v4.new_notebook(cells=[cell]), tmp_path).cells
    first, second, third = clean.outputs
    assert first.text == "in runs, took … s at λ = 0.2\n"
    assert second.data == {"image/png": picture(100), "text/plain": "<Figure>"}
    assert third.data == {"text/plain": "3"}
    assert clean.execution_count is None
    assert clean.metadata == {}

    outputs[3].data["image/png"] = picture(60_001)
    with pytest.raises(UserError, match="The picture of cell 0 has 60001 bytes"):
        EXECUTE.clean(nbformat.v4.new_notebook(cells=[cell]), tmp_path)


def picture(size):
    return base64.b64encode(bytes(size)).decode()


def test_what_is_no_notebook_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        EXECUTE.read(tmp_path / "missing.ipynb")
    (tmp_path / "text.ipynb").write_text("no notebook", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        EXECUTE.read(tmp_path / "text.ipynb")
