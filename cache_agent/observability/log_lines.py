"""The agent's log: one JSON object per line, made from the node's events."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

import structlog

from cache_agent.observability.events import Events, PullEnd


class JsonLog(Events):
    """Writes each event as a line. `clock` returns ISO 8601 times."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], str] | None = None
    ) -> None:
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(stream or sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                _fixed_time(clock) if clock else stamp,
                structlog.processors.JSONRenderer(),
            ],
        )

    def note(self, event: str, **fields: object) -> None:
        """Write a line about something that isn't a node event, such as start, stop or recovery."""
        self._log.info(event, **fields)

    def adopt_libraries(self) -> logging.Handler:
        """Write warnings and errors that libraries send to `logging` into this log; return the handler, to remove."""
        handler = _Adopting(self._log)
        logging.getLogger().addHandler(handler)
        return handler

    def pull_started(self, image: str) -> None:
        self._log.info("pull started", image=image)

    def pull_ended(self, end: PullEnd) -> None:
        write = self._log.info if end.outcome == "done" else self._log.warning
        write(
            "pull ended",
            image=end.image,
            outcome=end.outcome,
            seconds=round(end.seconds, 3),
            reused=end.reused,
            fetched={f"{tier} {name}": size for tier, name, size in end.by_source},
            message=end.message,
        )

    def evicted(self, image: str, freed: int, why: str) -> None:
        self._log.info("evicted", image=image, freed=freed, why=why)

    def refused(self, need: int) -> None:
        self._log.warning("reservation refused", need=need)

    def damaged(self, file: str, detail: str) -> None:
        self._log.error("file damaged", file=file, detail=detail)

    def repaired(self, file: str, chunks: int) -> None:
        self._log.info("file repaired", file=file, chunks=chunks)

    def expired(self, lease: str, holder: str) -> None:
        self._log.info("lease expired", lease=lease, holder=holder)

    def upkeep_failed(self, detail: str) -> None:
        self._log.warning("upkeep failed", detail=detail)

    def unshelved(self, image: str, detail: str) -> None:
        self._log.warning("image not kept whole", image=image, detail=detail)

    def peer_ejected(self, peer: str, why: str) -> None:
        self._log.warning("peer left alone", peer=peer, why=why)


class _Adopting(logging.Handler):
    """Passes on `logging` records of level WARNING and above."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"message": record.getMessage(), "logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        write("library", **fields)


def _fixed_time(
    clock: Callable[[], str],
) -> Callable[[object, str, structlog.typing.EventDict], structlog.typing.EventDict]:
    def stamp(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, "timestamp": clock()}

    return stamp
