"""How cases are written and run: each is a function of the server under test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from tests.conformance.subject import Subject

Case = Callable[[Subject], Awaitable[None]]
Opening = Callable[[], AbstractAsyncContextManager[Subject]]
SECONDS = 120
# Names of the cases that restart the server.
RESTARTING: set[str] = set()


def collecting(cases: list[Case]) -> Callable[[Case], Case]:
    """A decorator that puts cases on a list."""

    def case(function: Case) -> Case:
        cases.append(function)
        return function

    return case


def restarting(function: Case) -> Case:
    """Marks a case that restarts the server."""
    RESTARTING.add(function.__name__)
    return function


def run(opening: Opening, case: Case) -> None:
    """Run one case against a server."""

    async def running() -> None:
        async with opening() as subject, asyncio.timeout(SECONDS):
            await case(subject)

    asyncio.run(running())
