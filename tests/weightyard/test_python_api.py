"""`import weightyard`: what the commands do, for Python programs and notebooks."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import weightyard
from cache_agent.daemon.store_setup import open_roots
from tests.servers.process import child_environment, wait_until
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import FAKE_ENGINE, workspace
from tests.weightyard.test_up import healthy
from weightyard.python_api.progress_console import progress_console


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty machine: a home, a store and a working directory of its own, and a stand-in for vLLM."""
    for name, value in child_environment(tmp_path, PYTHONPATH=str(FAKE_ENGINE)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WEIGHTYARD_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("FAKE_ENGINE", "")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for row in json.loads(command("ps", "--json")):
        command("down", row["name"])


def command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "weightyard", *words], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def image(here: Path) -> str:
    checkpoint = synthetic_checkpoint(here / "checkpoint", total_bytes=1_000_000)
    return weightyard.build(checkpoint, "oci:images:v1", variants=["int8"]).image


def test_what_is_exported_is_there_and_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    for name in weightyard.__all__:
        assert getattr(weightyard, name) is not None
        assert f"`{name}" in page
    assert set(dir(weightyard)) == set(weightyard.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        weightyard.nothing  # type: ignore[attr-defined] # noqa: B018


def test_importing_it_costs_nothing_before_it_is_used() -> None:
    script = "import sys, weightyard; print([m for m in ('click', 'rich', 'pydantic') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_a_build_tells_what_it_published(here: Path) -> None:
    checkpoint = synthetic_checkpoint(here / "checkpoint", total_bytes=1_000_000)
    built = weightyard.build(checkpoint, "oci:images", variants=["int8"])
    assert built.image == "oci:images:latest"
    assert [each.name for each in built.variants] == ["bf16", "int8"]
    assert built.tags["latest"] == built.digest
    assert not built.unchanged
    assert weightyard.build(checkpoint, "oci:images", variants=["int8"]).unchanged


def test_a_pull_gives_a_directory_that_a_lease_keeps(image: str) -> None:
    cache = weightyard.Cache()
    assert cache.models() == []
    model = weightyard.pull(image, variant="int8")
    assert (model.variant, model.fetched, model.stale) == ("int8", model.size, False)
    assert (model.path / "config.json").is_file()
    assert weightyard.pull(image, variant="int8").fetched == 0
    with cache.lease(model.key) as path:
        assert path == model.path
        with pytest.raises(weightyard.WeightyardError, match="leased") as caught:
            cache.remove(model.key)
        assert caught.value.kind == "InUse"
    assert cache.pin(model.key).pinned
    assert not cache.pin(model.key, pinned=False).pinned
    (view,) = cache.explain(model.key)
    assert view.state == "ready"
    assert cache.status()["status"]["models"][0]["key"] == model.key
    assert cache.remove(model.key) > 0
    assert cache.models() == []


def test_a_lease_ends_with_the_process_that_took_it(here: Path, image: str) -> None:
    model = weightyard.pull(image)
    script = (
        "import os, sys, weightyard\n"
        "weightyard.Cache().lease(sys.argv[1]).__enter__()\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, model.key], check=False)
    assert weightyard.Cache().remove(model.key) > 0


def test_a_server_is_planned_served_and_ends_with_its_context(here: Path, image: str) -> None:
    planned = weightyard.plan(image, name="chat", cpu=True)
    assert (planned.name, planned.to_build, planned.gpus) == ("chat", None, 0)
    assert planned.to_fetch == planned.size > 0
    assert "--model" in planned.command
    with weightyard.serve(image, name="chat", cpu=True) as server:
        assert healthy(server.url)
        assert (server.name, server.model, server.variant) == ("chat", "chat", planned.variant)
        assert server.running
        assert server.log.is_file()
        with pytest.raises(weightyard.WeightyardError) as caught:
            weightyard.serve(image, name="chat", cpu=True)
        assert caught.value.kind == "Busy"
    assert not server.running
    assert not healthy(server.url)
    server.stop()


def test_a_workspace_is_served_from_a_file_and_from_a_document(here: Path, image: str) -> None:
    file = workspace(here, "tiny", image)
    import yaml  # noqa: PLC0415

    for given in (file, yaml.safe_load(file.read_text())):
        with weightyard.serve(given, cpu=True) as server:
            assert (server.name, server.variant) == ("tiny", server.variant)
    with pytest.raises(weightyard.WeightyardError, match=r"spec\.modle"):
        weightyard.plan({"apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace",
                         "metadata": {"name": "x"}, "spec": {"modle": {}}})  # fmt: skip


def test_a_source_is_built_first(here: Path) -> None:
    checkpoint = synthetic_checkpoint(here / "tiny-model", total_bytes=1_000_000)
    planned = weightyard.plan(checkpoint, cpu=True)
    assert (planned.name, planned.to_build) == ("tiny-model", str(checkpoint))
    with weightyard.serve(checkpoint, cpu=True) as server:
        assert healthy(server.url)


def test_a_server_that_fails_to_start_leaves_nothing_running(
    here: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "dies")
    with pytest.raises(weightyard.WeightyardError) as caught:
        weightyard.serve(image, name="chat", cpu=True)
    assert caught.value.kind == "EngineFailed"
    assert json.loads(command("ps", "--json")) == []


@pytest.mark.parametrize("progress", [None, True, False])
def test_only_who_asks_for_progress_is_shown_any(
    here: Path, image: str, progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    weightyard.pull(image, progress=progress)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert bool(shown.err) is (progress is True)


def test_bars_move_in_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        """The name of a kernel's shell."""

    class IPython:
        @staticmethod
        def get_ipython() -> object:
            return ZMQInteractiveShell()

    assert progress_console(None).quiet
    monkeypatch.setitem(sys.modules, "IPython", IPython)  # type: ignore[arg-type]
    for has_widgets in (True, False):
        found = ModuleSpec("ipywidgets", None) if has_widgets else None
        monkeypatch.setattr(
            "weightyard.python_api.progress_console.find_spec", {"ipywidgets": found}.get
        )
        console = progress_console(None)
        assert (console.moving, console.quiet) == (has_widgets, False), "else lines"
    assert progress_console(progress=False).quiet


def test_threads_take_turns_at_a_store(image: str) -> None:
    """Without an agent it has one user at a time, in one process too."""
    cache = weightyard.Cache()

    def use(number: int) -> str:
        model = weightyard.pull(image, variant="int8" if number % 2 else "bf16")
        with cache.lease(model) as path:
            return path.name

    with ThreadPoolExecutor(4) as threads:
        names = list(threads.map(use, range(8)))
    assert len(set(names)) == 2
    wait_until(lambda: not any(each.leases for each in cache.models()), what="end of the leases")


def test_a_lease_hides_no_error_and_ends_once_the_store_is_free(image: str) -> None:
    cache = weightyard.Cache()
    model = weightyard.pull(image)

    def fail(stack: ExitStack) -> None:
        with cache.lease(model):
            stack.enter_context(closing(open_roots(cache.root)))
            raise ValueError("mine")

    with ExitStack() as other, pytest.raises(ValueError, match="mine"):
        fail(other)
    wait_until(lambda: not cache.models()[0].leases, what="end of the lease")


def test_a_layout_is_named_as_it_was_built_to(image: str) -> None:
    cache = weightyard.Cache()
    model = weightyard.pull(image)
    assert cache.pin(image).key == model.key
    assert cache.pin(model, pinned=False).key == model.key
    with cache.lease(image) as path:
        assert path == model.path
    assert cache.remove(Path(image)) > 0  # type: ignore[arg-type] - what str() names


@pytest.mark.parametrize(
    "call",
    [
        lambda image: weightyard.plan(image, port=99_999),
        lambda image: weightyard.serve(image, port="80"),  # type: ignore[arg-type]
        lambda image: weightyard.build("checkpoint", "oci:x", max_kl=-1),
        lambda image: weightyard.build("checkpoint", "oci:x", max_perplexity_ratio=float("nan")),
        lambda image: weightyard.build("checkpoint", "oci:x", calibration_samples=0),
        lambda image: weightyard.plan({"spec": object()}),
        lambda image: weightyard.plan({"spec": {"restartedAt": datetime.datetime(2026, 1, 1)}}),  # noqa: DTZ001
    ],
)
def test_odd_arguments_are_refused_in_our_words(image: str, call: Callable[[str], object]) -> None:
    with pytest.raises(weightyard.WeightyardError) as caught:
        call(image)
    assert caught.value.kind == "InvalidInput"


def test_one_variant_may_be_given_as_a_text(here: Path) -> None:
    checkpoint = synthetic_checkpoint(here / "checkpoint", total_bytes=1_000_000)
    built = weightyard.build(checkpoint, "oci:images", variants="int8")
    assert [each.name for each in built.variants] == ["bf16", "int8"]


def test_a_programs_module_of_our_packages_name_is_told(here: Path) -> None:
    (here / "workspace.py").write_text("mine = 1")
    script = "import sys; sys.path.insert(0, '.'); import workspace, weightyard; weightyard.pull"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "ImportError: another module called 'workspace' is imported, from " in done.stderr
    assert "workspace.py" in done.stderr
