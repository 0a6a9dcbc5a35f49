"""A Sender that answers from a script, and time that passes only when somebody sleeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from modelimage.errors import RemoteRefused
from modelimage.registry.exchange import Request, Response
from modelimage.registry.retry import Environment
from modelimage.repository import BlobStream

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class Answer:
    """A scripted Response."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    url: str = ""
    discarded: bool = False

    def header(self, name: str) -> str | None:
        lowered = {key.lower(): value for key, value in self.headers.items()}
        return lowered.get(name.lower())

    def read(self, limit: int) -> bytes:
        if len(self.body) > limit:
            raise RemoteRefused("too much")
        return self.body

    def stream(self, length: int) -> BlobStream:
        raise AssertionError("no test streams a scripted answer")

    def discard(self) -> None:
        self.discarded = True


class ScriptedSender:
    """Answers with what `script` makes of a request and the number of requests before it; raises errors it gives."""

    def __init__(self, script: Callable[[Request, int], Answer | Exception]) -> None:
        self._script = script
        self.requests: list[Request] = []
        self.answers: list[Answer] = []

    def send(self, request: Request) -> Response:
        outcome = self._script(request, len(self.requests))
        self.requests.append(request)
        if isinstance(outcome, Exception):
            raise outcome
        outcome.url = outcome.url or request.url
        self.answers.append(outcome)
        return outcome


class VirtualTime:
    """A clock that only `sleep` moves."""

    def __init__(self, started: datetime = NOON) -> None:
        self._started = started
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def environment(self) -> Environment:
        return Environment(
            sleep=self.sleep,
            jitter=lambda: 0.0,
            now=lambda: self._started + timedelta(seconds=self.now),
        )
