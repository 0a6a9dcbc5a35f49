"""The maintenance thread survives whatever a step does, and says so."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from cache_agent.node.maintenance import Maintenance, MaintenanceOptions
from cache_agent.observability.events import Event, MaintenanceFailed
from modelimage.errors import NoSpace, Unreachable
from tests.cache_agent.nodes import NodeFactory


class Told:
    """What happened, for whoever waits for it."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, MaintenanceFailed):
            self.failures.append(event.detail)


class Waits(threading.Event):
    """A stop event on a clock that jumps: it keeps how long was waited, and is set after some rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.waited: list[float] = []
        self._rounds = rounds

    def wait(self, timeout: float | None = None) -> bool:
        if timeout:
            self.waited.append(timeout)
        return len(self.waited) > self._rounds


def upkeep(open_node: NodeFactory, told: Told, relieve: Callable[[], bool]) -> Maintenance:
    node = open_node({}, events=told)
    options = MaintenanceOptions(scrub_period=0, interval=10)
    return Maintenance(node.store, node.repairer, options, relieve=relieve)


def test_an_unknown_error_is_told_counted_and_tried_again_ever_later(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told, outcomes = Told(), iter([TypeError("odd"), TypeError("odd"), None, KeyError("x"), None])

    def relieve() -> bool:
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome
        return False

    maintenance, waits = upkeep(open_node, told, relieve), Waits(rounds=5)
    monkeypatch.setattr(maintenance, "_stop", waits)
    with caplog.at_level(logging.ERROR):
        maintenance._main()
    assert waits.waited == [10, 20, 40, 10, 20, 10]
    assert told.failures == [
        "maintenance failed: TypeError: odd", "maintenance failed: TypeError: odd", "maintenance failed: KeyError: 'x'",
    ]  # fmt: skip
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == 3
    assert maintenance._problem is None


def test_an_unknown_error_of_one_step_keeps_no_other_from_being_done(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def relieve() -> bool:
        raise TypeError("odd")

    maintenance, expired = upkeep(open_node, Told(), relieve), []
    monkeypatch.setattr(maintenance, "_expire", lambda store: expired.append(store) or 0)
    with pytest.raises(TypeError, match="odd"):
        maintenance.round()
    assert len(expired) == 1


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ((Unreachable("away"), NoSpace("full")), NoSpace),
        ((Unreachable("away"), ValueError("odd")), ValueError),
        ((NoSpace("full"), ValueError("odd")), ValueError),
    ],
)
def test_the_worst_of_several_problems_is_raised(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch,
    errors: tuple[Exception, Exception], raised: type[Exception],
) -> None:  # fmt: skip
    def fail(error: Exception) -> bool:
        raise error

    maintenance = upkeep(open_node, Told(), lambda: fail(errors[0]))
    monkeypatch.setattr(maintenance, "_expire", lambda _store: fail(errors[1]))
    with pytest.raises(raised):
        maintenance.round()
