"""A registry that limits the rate is no registry that is away: only an outage extends a lapsed permission."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cache_agent.access.decide import UpstreamAnswer
from cache_agent.access.upstream import ask
from modelimage.errors import RateLimited, Unreachable, WeightyardError
from modelimage.registry.host_limit import HostBusy


def answered(error: WeightyardError) -> UpstreamAnswer:
    def send(request: object) -> Any:
        raise error

    repository: Any = SimpleNamespace(
        origin="https://reg.test", repository="m", sender=SimpleNamespace(send=send)
    )
    return ask(repository, "manifests/v1")


@pytest.mark.parametrize("error", [RateLimited("429", retry_after=3.0), HostBusy("too many")])
def test_a_limit_is_told_to_the_caller(error: RateLimited) -> None:
    with pytest.raises(RateLimited) as raised:
        answered(error)
    assert raised.value is error


@pytest.mark.parametrize("error", [Unreachable("no route"), RateLimited("503", outage=True)])
def test_an_outage_is_one(error: WeightyardError) -> None:
    assert answered(error) is UpstreamAnswer.UNREACHABLE
