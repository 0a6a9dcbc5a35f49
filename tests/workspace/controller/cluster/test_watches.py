"""What a watch passes on and logs: problems once, and kinds that the cluster doesn't have."""

from __future__ import annotations

import logging

import pytest

from modelimage.errors import AccessDenied, NotFound, Unreachable
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.cluster.watches import KindWatch
from workspace.controller.process.health_server import Liveness


class SeenRunner(WatchCache):
    """A cache that keeps nothing else."""

    def seen(self, document: dict[str, object], *, deleted: bool = False) -> None:
        (self.drop if deleted else self.put)(document)


def watch(kind: str, present: dict[str, bool]) -> KindWatch:
    liveness = Liveness(lambda: 0.0)
    return KindWatch(kind, [SeenRunner()], liveness=liveness, present=present.__setitem__)


def test_a_problem_that_lasts_is_logged_once_and_a_new_one_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = watch("Pod", {})
    away, forbidden = Unreachable("away"), AccessDenied("forbidden")
    for error in (away, away, forbidden, away, None, away):
        watched.trouble(error)
    said = [record.message.partition(": ")[2] for record in caplog.records]
    assert said == ["away", "forbidden", "away", "away"]


@pytest.mark.parametrize(
    ("kind", "logged"), [("Workspace", 1), ("NodeCache", 1), ("ScaledObject", 0)]
)
def test_a_missing_kind_of_ours_is_logged_once_and_an_optional_one_never(
    kind: str, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    present: dict[str, bool] = {}
    watched = watch(kind, present)
    for _ in range(3):
        watched.trouble(NotFound("no such kind"))
    assert present == {kind: False}
    assert watched.synced.is_set()
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * logged
    watched.replace([])
    watched.trouble(NotFound("gone again"))
    assert len(caplog.records) == 2 * logged
