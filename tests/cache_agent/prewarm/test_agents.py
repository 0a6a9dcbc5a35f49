"""Real agents in front of a real registry: one wanted state for several, kept over kills and a lost ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache_agent.api.node_cache import NodeCache
from tests.cache_agent.daemon.test_agent import RunningAgent, agent
from tests.cache_agent.nodes import findings
from tests.cache_agent.prewarm.documents import cached_model
from tests.cache_agent.servers.published import PublishedModel, publish_model
from tests.servers.idle_clock import IdleClock
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry
from weightyard.cli import main

pytestmark = pytest.mark.servers
Json = dict[str, Any]


@pytest.fixture
def models(
    registry: DockerRegistry, unique_name: Callable[[str], str]
) -> tuple[PublishedModel, PublishedModel]:
    repository = f"{registry.host}/{unique_name('wanted')}"
    return publish_model(f"{repository}:v1", seed=1), publish_model(f"{repository}:v2", seed=2)


def want(folder: Path, document: Json) -> None:
    """Put a document where agents look, all at once."""
    path = folder / f"{document['metadata']['name']}.yaml"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(document))
    temporary.replace(path)


@contextmanager
def agents(root: Path, *labels: Json) -> Iterator[tuple[Path, list[RunningAgent]]]:
    """Agents that share one directory of wanted documents, each with its labels."""
    folder = root / "prewarm"
    folder.mkdir()
    with ExitStack() as stack:
        yield folder, [
            stack.enter_context(
                agent(
                    root / f"n{number}" / "store",
                    "--prewarm-path", str(folder),
                    "--prewarm-labels", json.dumps(own),
                    "--prewarm-node", f"n{number}",
                )
            )
            for number, own in enumerate(labels)
        ]  # fmt: skip


def states(node: NodeCache) -> dict[str, str]:
    return {each.name: each.state for each in node.status.desired}


def all_reach(running: list[RunningAgent], *expected: dict[str, str]) -> None:
    for each, states_wanted in zip(running, expected, strict=True):
        wait_until(
            lambda at=each, want=states_wanted: states(at.client.status()) == want,
            what=f"{states_wanted}, found {states(each.client.status())} before",
        )


def test_agents_with_one_wanted_state_hold_what_selects_them(
    tmp_root: Path, models: tuple[PublishedModel, PublishedModel]
) -> None:
    one, two = models
    with agents(tmp_root, {"gpu": "l4"}, {}) as (folder, running):
        want(folder, cached_model("everywhere", one.image, pin=True))
        want(folder, cached_model("here", two.image, nodeSelector={"gpu": "l4"}))
        all_reach(running, {"everywhere": "Ready", "here": "Ready"}, {"everywhere": "Ready"})
        assert [len(each.client.models()) for each in running] == [2, 1]
        wait_until(
            lambda: [m.pinned for m in running[1].client.models()] == [True],
            what="the pin is there",
        )  # fmt: skip
        (folder / "everywhere.yaml").unlink()
        want(folder, cached_model("here", two.image))
        all_reach(running, {"here": "Ready"}, {"here": "Ready"})
        for each in running:
            wait_until(
                lambda at=each: not any(m.pinned for m in at.client.models()),
                what="the pin is gone",
            )  # fmt: skip
    assert findings(tmp_root / "n0" / "store") == []


def test_killed_agents_with_lost_ledgers_pin_again_without_fetching(
    tmp_root: Path, models: tuple[PublishedModel, PublishedModel]
) -> None:
    root = tmp_root / "store"
    with agent(root) as first:
        want(root / "prewarm", cached_model("a", models[0].image, pin=True))
        all_reach([first], {"a": "Ready"})
        first.process.kill()
        first.process.wait()
    for path in root.glob("ledger.db*"):
        path.unlink()
    with agent(root) as second:
        all_reach([second], {"a": "Ready"})
        wait_until(lambda: second.client.models()[0].pinned, what="a pin")
        assert "pull started" not in second.log.read_text()


def test_a_change_is_acted_upon_at_once(
    tmp_root: Path, models: tuple[PublishedModel, PublishedModel]
) -> None:
    """Without the look that is had every half a minute; the benchmark says how fast."""
    root = tmp_root / "store"
    with agent(root) as at:
        waited = IdleClock()
        want(root / "prewarm", cached_model("a", models[0].image))
        all_reach([at], {"a": "Ready"})
        assert waited() < 10


def test_prewarm_and_status_on_this_machine(
    tmp_root: Path,
    models: tuple[PublishedModel, PublishedModel],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = ["--root", str(tmp_root / "store")]
    image = models[0].image
    with agent(tmp_root / "store"):
        assert main(["prewarm", image, "--name", "a", "--pin", "--wait", *root]) == 0
        assert main(["--json", "prewarm", image + "x", "--name", "b", "--wait", *root]) != 0
        assert "NotFound" in capsys.readouterr().err
        assert main(["--json", "status", *root]) == 0
        rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
        assert (rows["a"]["state"], rows["a"]["percent"], rows["a"]["pinned"]) == (
            "ready",
            "100%",
            "yes",
        )
        assert rows["b"]["state"] == "failed"
        assert main(["prewarm", image, "--name", "a", "--remove", *root]) == 0
        assert main(["prewarm", image, "--name", "a", "--remove", *root]) != 0
    assert main(["prewarm", models[1].image, "--name", "c", *root]) == 0
    capsys.readouterr()
    assert main(["prewarm", models[1].image, "--name", "c", "--wait", *root]) != 0
    assert "no agent is running" in capsys.readouterr().err
    assert main(["--json", "status", "c", *root]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["note"].startswith("no agent runs here")


def test_a_refused_document_is_told_once(tmp_root: Path) -> None:
    """And not again whenever something else in the directory changes."""
    with agents(tmp_root, {}) as (folder, (each,)):
        want(folder, {"kind": "Odd", "metadata": {"name": "odd"}})
        wait_until(lambda: told_of(each, "odd") == 1, what="line of the first document")
        for name in ("other", "third"):
            want(folder, {"kind": "Odd", "metadata": {"name": name}})
            wait_until(lambda name=name: told_of(each, name) == 1, what=f"line of {name}")  # type: ignore[misc]
        assert told_of(each, "odd") == 1


def told_of(agent: RunningAgent, name: str) -> int:
    """How many lines of the log tell of a document."""
    lines = agent.log.read_text().splitlines()
    return sum("document rejected" in line and f"{name}.yaml" in line for line in lines)
