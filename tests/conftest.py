"""Settings shared by all tests: several CPU devices, cheap compilations, and the paths of optional
reference material."""

import gc
import importlib.metadata
import itertools
import os
import shutil
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation takes most of the time of these tests, and their programs are small. The last flag,
# which later versions do not know, halves it; two test processes leave nothing to split it for.
# On an accelerator (JAX_PLATFORMS=cuda,cpu) programs are what users have.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
        " --xla_cpu_parallel_codegen_split_count=1"
        + " --xla_cpu_use_fusion_emitters=false"
        * importlib.metadata.version("jax").startswith("0.10.")
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

# What runs in the background or under nohup has signals ignored, and every program that is started
# by a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SHARED = REPOSITORY.parent / "shared"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases", choices=["all", "first", "others"], default="all",
        help="of each parametrised test run all cases, only the first, or only the others; a test "
        "without cases runs with both, or in a slow module with one of them",
    )  # fmt: skip
    parser.addoption(
        "--no-skips", choices=["all", "slow"],
        help="fail if any test is skipped, or any of a slow module, which may be left out of the "
        "run beside this one; tests that need an optional folder may be",
    )  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--cases")
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    # The newest compiler is the slowest, and has the fewest.
    turns = itertools.cycle(("others", "others", "first"))
    for first, *others in cases.values():
        if wanted == "first":
            left_out |= set(others)
        elif wanted == "others" and others:
            left_out.add(first)
        if not others and first.get_closest_marker("slow") and wanted not in ("all", next(turns)):
            left_out.add(first)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    # Looking through all modules for garbage again and again takes a tenth of the time.
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return  # only the process that reports sees all
    forbidden = session.config.getoption("--no-skips")
    for report in reporter.stats.get("skipped", []):
        of_those = forbidden == "all" or forbidden in report.keywords
        if of_those and "optional folder" not in report.longrepr[2]:
            reporter.write_line(f"\n{report.nodeid} may not be skipped: see below", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


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


_ended = itertools.count(1)


@pytest.fixture(autouse=True)
def _forget_compiled_programs():
    """Compiled programs keep memory mappings, of which Linux allows a process 65,530 by default.

    The compiler crashes when they run out. A program has about 45, and counting them takes 10 ms.
    """
    yield
    if next(_ended) % 8 == 0:
        mappings = Path("/proc/self/maps")
        if mappings.exists() and mappings.read_bytes().count(b"\n") > 30_000:
            jax.clear_caches()
