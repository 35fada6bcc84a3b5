"""Settings shared by all tests: several CPU devices, cheap compilations, and the paths of optional
reference material."""

import importlib.metadata
import os
import re
import shutil
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation takes most of the time of these tests, and their programs are small. The second flag,
# which later versions do not know, halves it.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jax").startswith("0.10.")
)

import jax
import jaxtyping
import pytest

# Shapes and dtypes of signatures are checked in tests, and cost nothing elsewhere.
jaxtyping.install_import_hook(
    ["hybrid_jax.method", "hybrid_jax.models", "hybrid_jax.sampling"], "typecheck.check"
)

import tiny  # noqa: E402 - after the hook, which works on what is imported after it

REPOSITORY = Path(__file__).resolve().parents[1]

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A shell starts what runs in the background with Ctrl-C ignored, and every program that is started
# by a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = REPOSITORY.parent / "shared"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share", default="1/1", metavar="K/N",
        help="of the cases of each parametrised test, run the K-th of every N, or with K-M/N the "
        "K-th to the M-th; tests that are not parametrised always run, but the ones that take "
        "minutes only in the first share",
    )  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?/(\d+)", config.getoption("--share"))
    first, last, shares = (int(part or found[1]) for part in found.groups()) if found else (0, 0, 0)
    if not 1 <= first <= last <= shares:
        raise pytest.UsageError("--share needs K/N or K-M/N with 1 <= K <= M <= N")
    cases: dict[str, int] = {}
    kept, left_out = [], []
    for item in items:
        if hasattr(item, "callspec"):
            test = item.nodeid.partition("[")[0]
            number = cases.get(test, 0)
            cases[test] = number + 1
        else:
            number = 0 if item.get_closest_marker("minutes") else first - 1
        (kept if first <= number % shares + 1 <= last else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def optional_folder(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f"optional folder {path.name} is not present")
    return path


@pytest.fixture
def strict_promotion():
    """Refuses operations that would change a type, or add axes, without saying so."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """Reference values from the released implementation, when they lie beside the checkout."""
    return optional_folder(SHARED / "reference")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional corpora and tokenizer files, when they lie beside the checkout."""
    return optional_folder(SHARED / "data")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A folder with the text of the tiny runs, a.txt, and another, b.txt."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(tiny.TEXT, encoding="utf-8")
    (folder / "b.txt").write_text("Ein Satz mit γ und ε.\n" * 20, encoding="utf-8")
    return folder


def _tiny_run(name: str):
    @pytest.fixture(scope="session", name=name)
    def run(text, tmp_path_factory) -> Path:
        """The workdir of a tiny run (see `tiny.RUNS`)."""
        return tiny.run(tmp_path_factory.mktemp(name), text / "a.txt", **tiny.RUNS[name])

    return run


ar, gamma, epsilon = (_tiny_run(name) for name in ("ar", "gamma", "epsilon"))


@pytest.fixture(scope="module")
def browser():
    """A real browser, where one is installed."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        # Containers give browsers no namespaces of their own.
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _forget_compiled_programs():
    """Compiled programs keep memory mappings, of which Linux allows a process 65,530 by default.

    The compiler crashes when they run out.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
