"""What every test starts from: one environment on every machine, reproducible Hypothesis runs, servers on request."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.servers.process import FAR_ZONE
from weightyard.demo.smollm import default_cache

pytest_plugins = ["tests.servers.fixtures", "tests.standstill", "tests.time_left"]
# Modules that import torch, which `make test-fast` does without.
NEED_TORCH = (
    "builder/test_build_pickles.py", "builder/test_convert.py", "quantize/test_wide_linear.py"
)  # fmt: skip
collect_ignore = [] if importlib.util.find_spec("torch") else list(NEED_TORCH)

# `ci` draws the same examples on every run, so a red run can be repeated; `dev` explores; `fast` draws a fifth.
# None has a limit in seconds: a busy machine draws slowly.
SLOW = (HealthCheck.too_slow,)
settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=SLOW
)
settings.register_profile("dev", deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.register_profile("fast", settings.get_profile("dev"), max_examples=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# A user's settings, credentials and proxies, and what a terminal or a pod of CI adds: no test may see them.
SCRUBBED_NAMES = frozenset(
    {"REGISTRY_AUTH_FILE", "KUBECONFIG", "SOURCE_DATE_EPOCH", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
     "NETRC", "NODE_NAME", "STORAGE_EMULATOR_HOST", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NO_COLOR", "FORCE_COLOR",
     "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"}
)  # fmt: skip
SCRUBBED_PREFIXES = (
    "HF_", "HUGGING", "AWS_", "GOOGLE_", "CLOUDSDK_", "MLFLOW_", "DOCKER_", "CONTAINER", "KUBERNETES_", "XDG_",
    "WEIGHTYARD_", "VLLM_", "OTEL_", "SSL_CERT_", "LC_", "LANGUAGE",
)  # fmt: skip
# The same for everyone; a zone far from UTC, so that local time taken for UTC shows.
FIXED = {"LANG": "C.UTF-8", "TZ": FAR_ZONE, "TERM": "xterm"}

_model_cache = pytest.StashKey[Path]()
_home = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Scrub before any test module is imported: some libraries read the environment on import."""
    config.stash[_model_cache] = default_cache(os.environ)
    config.stash[_home] = Path(tempfile.mkdtemp(prefix="home-"))
    for name in list(os.environ):
        if name.upper() in SCRUBBED_NAMES or name.startswith(SCRUBBED_PREFIXES):
            del os.environ[name]
    os.environ |= FIXED
    # Children run from other directories, too: they import this checkout, whatever the environment has installed.
    above = [str(config.rootpath), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(above)
    time.tzset()
    os.umask(0o022)
    os.environ["HOME"] = str(config.stash[_home])
    # A shell's background job ignores Ctrl-C, and so would all that is started from here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Share the tests out for `pytest -n`: a file's tests stay together, and those with a vLLM, which takes every core.

    What takes longest begins first, so that no process is left with it at the end. Files that share what is dear name
    their group themselves. Groups must be named before xdist reads them, the order be made after the shuffling.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            group = "vllm" if item.get_closest_marker("vllm") else item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(group))
    yield
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.get_closest_marker("vllm"), item.path not in slow_files))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: what a test needs is installed by the set-up."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what isn't run here at all, beside pytest's own list of what was skipped."""
    skipped = len(terminalreporter.stats.get("skipped", ()))
    if skipped and os.environ.get("CI"):
        terminalreporter.write_line(f"{skipped} skipped: in CI nothing may be", red=True)
    if collect_ignore:
        terminalreporter.write_line(f"not run: {', '.join(NEED_TORCH)}, which need torch")
    if not config.getoption("--kubeconfig", default=None):
        terminalreporter.write_line("not run: tests/e2e, which needs a cluster (--kubeconfig)")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the home directory that the tests had."""
    shutil.rmtree(config.stash[_home], ignore_errors=True)


@pytest.fixture(scope="session")
def model_cache(pytestconfig: pytest.Config) -> Path:
    """Where converted models are kept between runs: outside the tests' home, as making them takes a while."""
    return pytestconfig.stash[_model_cache]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own, for tests that write settings or credentials there."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    return path


@pytest.fixture
def tmp_root() -> Iterator[Path]:
    """An empty directory with a short path (unix sockets have 107 characters), removed after the test."""
    with tempfile.TemporaryDirectory(prefix="wy-") as path:
        yield Path(path)
