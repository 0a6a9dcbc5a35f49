"""What a run of the tests says of itself: how far it is, and how long it will take at its own pace."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.time_left import CACHE, INTERVAL, Estimate, TimeLeft


def test_what_took_long_before_will_take_long_again() -> None:
    estimate = Estimate({"quick": 1.0, "slow": 99.0})
    estimate.begin(["quick", "slow"])
    assert estimate.remaining(0.0) == 100
    estimate.finish("quick")
    assert estimate.remaining(1.0) == 99


def test_a_busy_machine_takes_longer_and_more_workers_less() -> None:
    estimate = Estimate({"a": 10.0, "b": 30.0}, workers=2)
    estimate.begin(["a", "b"])
    assert estimate.remaining(0.0) == 20
    estimate.finish("a")
    assert estimate.remaining(20.0) == 60  # four times as slow as last time


@given(
    st.lists(st.text(min_size=1), unique=True, min_size=1),
    st.dictionaries(st.text(), st.floats(0, 1e4)),
)
def test_it_ends_at_nothing_left(tests: list[str], known: dict[str, float]) -> None:
    """Whatever is known of the tests, and whatever else ends."""
    estimate = Estimate(known)
    estimate.begin(tests)
    estimate.finish("a test that isn't one of them" * 9)
    for number, test in enumerate(tests, 1):
        assert estimate.remaining(float(number)) >= 0
        estimate.finish(test)
        estimate.finish(test)
    assert estimate.remaining(5.0) == 0
    assert "100%" in estimate.line(5.0)


class Reporter:
    def __init__(self) -> None:
        self.written = StringIO()

    def ensure_newline(self) -> None:
        """Nothing to do: every line is whole."""

    def write_line(self, line: str) -> None:
        self.written.write(line + "\n")


def run(stored: object, *, tx: list[str], suffix: str = "") -> tuple[str, dict[str, Any]]:
    """A run of four tests of twenty seconds each; what it printed, and what it kept."""
    cache: dict[str, Any] = {CACHE: stored}
    reporter, now = Reporter(), [0.0]
    config: Any = SimpleNamespace(
        cache=SimpleNamespace(get=lambda key, _: cache[key], set=cache.__setitem__),
        option=SimpleNamespace(tx=tx, dist="loadgroup" if tx else "no"),
        pluginmanager=SimpleNamespace(get_plugin=lambda _: reporter),
    )
    plugin = TimeLeft(config, lambda: now[0])
    ids = [f"t.py::test[{each}@x]{suffix}" for each in "abcd"]
    if tx:
        plugin.pytest_xdist_node_collection_finished(ids)
        plugin.pytest_xdist_node_collection_finished(ids)
    else:
        plugin.pytest_collection_finish(
            SimpleNamespace(items=[SimpleNamespace(nodeid=each) for each in ids])  # type: ignore[arg-type]
        )
    for each in ids:
        for when in ("setup", "call", "teardown"):
            now[0] += 20 / 3
            report: Any = SimpleNamespace(nodeid=each, when=when, duration=20 / 3)
            plugin.pytest_runtest_logreport(report)
    plugin.pytest_sessionfinish()
    return reporter.written.getvalue(), cache[CACHE]


@pytest.mark.parametrize(("tx", "suffix"), [([], ""), (["popen", "popen"], "@group/of/it.py")])
@pytest.mark.parametrize("stored", [{}, {"t.py::test[a@x]": 3.0}, "damaged"])
def test_a_line_now_and_then(tx: list[str], suffix: str, stored: object) -> None:
    said, kept = run(stored, tx=tx, suffix=suffix)
    assert said.splitlines()[0].startswith("2 of 4 tests, 50%, 0 min 40 s so far, about ")
    assert len(said.splitlines()) == 80 // (INTERVAL + 10)
    assert kept == {f"t.py::test[{each}@x]": 20.0 for each in "abcd"}
