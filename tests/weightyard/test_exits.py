"""Every error has one exit code, whether this process raises it or an agent does."""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

import modelimage.errors
from cache_agent.access.signatures import Untrusted
from cache_agent.api.control_client import AgentClient
from cache_agent.api.wire import PullBody
from cache_agent.errors import AgentBug
from cache_agent.node.threads import BlockingExecutor
from cache_agent.observability.recent_events import RecentEvents
from cache_agent.prewarm.attempts import failure_of
from cache_agent.servers.control import ControlApi
from modelimage.errors import RateLimited, Unreachable, WeightyardError, public_name
from weightyard import cli, exits
from weightyard.console import Console

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("modelimage", "quantize", "builder", "cache_agent", "workspace", "weightyard")
# What an agent has no part in.
LOCAL = {exits.RelayedError, *(kind for kind, code in exits.EXIT_CODES.items() if code in (19, 20))}


def import_unless_extra(name: str) -> None:
    """Import a module; one that runs in an environment of its own may lack that environment's packages here."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in PACKAGES:
            raise


def _all_subclasses(kind: type[WeightyardError]) -> set[type[WeightyardError]]:
    direct = set(kind.__subclasses__())
    return direct.union(*(_all_subclasses(each) for each in direct))


def every_class() -> list[type[WeightyardError]]:
    """The error classes of all modules."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for info in pkgutil.walk_packages(module.__path__, f"{package}."):
            if not info.name.endswith("__main__"):
                import_unless_extra(info.name)
    found = (
        kind for kind in _all_subclasses(WeightyardError) if kind.__module__.startswith(PACKAGES)
    )
    return sorted(found, key=lambda kind: kind.__qualname__)


def made(kind: type[WeightyardError]) -> WeightyardError:
    """An error of a class, whatever its constructor takes."""
    error = kind.__new__(kind)
    WeightyardError.__init__(error, "what happened", hint="What to do.")
    if isinstance(error, RateLimited):
        error.retry_after = 7
    return error


class RefusingAgent:
    """The control API of an agent whose every call raises `error`, and a client of it."""

    def __init__(self, path: Path) -> None:
        self.error: BaseException = RuntimeError()
        self.client = AgentClient(path)
        self._path, self._ready = path, threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _refuse(self, *_: object, **__: object) -> Any:
        raise self.error

    def _serve(self) -> None:
        service: Any = SimpleNamespace(find=self._refuse, start_pull=self._refuse)
        without: Any = SimpleNamespace(routes=list)
        recent = RecentEvents(time.time)
        runner = web.AppRunner(
            ControlApi(service, BlockingExecutor(1), without, recent, without).application()
        )
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.UnixSite(runner, str(self._path)).start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RefusingAgent]:
    serving = RefusingAgent(tmp_path_factory.mktemp("agent") / "s")
    yield serving
    serving.close()


def outcome(call: Callable[[], object]) -> tuple[int, str, str, str]:
    """What a command ends with: its exit code, and the error's kind, message and hint."""
    err = StringIO()
    console = Console(out=StringIO(), err=err)
    console.json = True
    code = cli.guarded(call, console=console)
    said = json.loads(err.getvalue().splitlines()[-1])
    return code, said["kind"], said["message"], said["hint"]


def raising(error: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


def test_every_class_ends_a_command_alike_with_an_agent_and_without(agent: RefusingAgent) -> None:
    classes = [kind for kind in every_class() if kind not in LOCAL]
    assert len(classes) > 40
    for kind in classes:
        agent.error = made(kind)
        expected = outcome(raising(made(kind)))
        assert expected[:2] == (exits.exit_code(made(kind)), kind.__name__)
        assert outcome(lambda: agent.client.find("x")) == expected
        assert outcome(lambda: list(agent.client.pull(PullBody(image="reg.test/m")))) == expected


def test_an_agent_s_bug_is_one(agent: RefusingAgent, caplog: pytest.LogCaptureFixture) -> None:
    agent.error = ZeroDivisionError("by zero")
    code, kind, message, hint = outcome(lambda: agent.client.find("x"))
    assert (code, kind) == (exits.BUG, AgentBug.__name__)
    assert "ZeroDivisionError: by zero" in message
    assert "agent's log" in hint
    assert any(record.exc_info for record in caplog.records)


def test_an_unsigned_image_is_4_also_where_it_was_desired(agent: RefusingAgent) -> None:
    agent.error = Untrusted("not signed")
    assert outcome(lambda: agent.client.find("x"))[:2] == (4, "Untrusted")
    failed = failure_of(Untrusted("not signed"), before=None, now=0.0, random=lambda: 0.5)
    assert failed.reason == "AccessDenied"


def test_every_class_has_a_name_that_other_processes_know() -> None:
    for kind in every_class():
        known = getattr(modelimage.errors, public_name(made(kind)))
        assert issubclass(kind, known)


def test_every_error_has_an_exit_code() -> None:
    uncovered = [
        kind.__qualname__
        for kind in every_class()
        if kind is not exits.RelayedError and not exits.EXIT_CODES.keys() & set(kind.__mro__)
    ]
    assert uncovered == []


def test_every_exit_code_is_explained_once() -> None:
    assert set(exits.EXIT_CODES.values()) <= set(exits.MEANINGS)
    table = (REPOSITORY / "docs" / "cli.md").read_text()
    for code, meaning in exits.MEANINGS.items():
        assert f"| {code} | {meaning.what} | {meaning.to_do} |" in table
    # One page has the table; the others link to it.
    pages = (REPOSITORY / "docs").rglob("*.md")
    assert [page.name for page in pages if "# Exit codes" in page.read_text()] == ["cli.md"]


def test_listed_errors_are_those_of_the_contract() -> None:
    """Each class of modelimage.errors has a code of its own in the table, not just an ancestor's."""
    contract = {
        kind for kind in vars(modelimage.errors).values()
        if isinstance(kind, type) and issubclass(kind, WeightyardError) and kind is not WeightyardError
    }  # fmt: skip
    assert contract <= set(exits.EXIT_CODES)
    assert exits.exit_code(Unreachable("x")) == 11
