"""Asks for Workspaces' images beside the reconciling, so that a slow registry holds none of its workers.

A quick answer is waited for; a slower one wakes its Workspace when it arrives, and meanwhile the Workspace is
reconciled without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from modelimage.errors import WeightyardError
from workspace.controller.cluster.object_cache import Key
from workspace.render.release import ResolvedImages
from workspace.schema import Workspace

Resolver = Callable[[Workspace], Awaitable[ResolvedImages]]
Answer = ResolvedImages | WeightyardError

# Seconds that a worker waits, and workers that may wait at a time.
_GRACE: Final = 2.0
_MAY_WAIT: Final = 4


@dataclass(slots=True)
class _Question:
    workspace: Workspace
    asking: asyncio.Task[Answer]
    # Whether `wake` must be called: nobody waits for the task any more.
    left: bool = False


class ImageQuestions:
    """At most one question for each Workspace. `wake` is called with the key of one whose answer arrived late."""

    def __init__(
        self, resolver: Resolver, wake: Callable[[Key], None], *, grace: float = _GRACE
    ) -> None:
        self._resolver = resolver
        self._wake = wake
        self._grace = grace
        self._waiting = 0
        self._questions: dict[Key, _Question] = {}

    async def answer(self, key: Key, workspace: Workspace) -> Answer | None:
        """The answer to a question that is asked now or was asked before; None while there is none."""
        question = self._questions.get(key)
        if question is None or question.workspace != workspace:
            self.forget(key)
            # A task of its own: it outlives the pass that asks, and its answer serves a later one.
            asking = asyncio.create_task(self._ask(key, workspace))
            question = self._questions[key] = _Question(workspace, asking)
        question.left = False
        # Were all workers to wait, one namespace's Workspaces could make them.
        grace = self._grace if self._waiting < _MAY_WAIT else 0.0
        self._waiting += 1
        try:
            # Not `wait_for`, which would cancel the question when the grace is over.
            await asyncio.wait({question.asking}, timeout=grace)
        finally:
            self._waiting -= 1
        if not question.asking.done():
            question.left = True
            return None
        self._questions.pop(key, None)
        return question.asking.result()

    def forget(self, key: Key) -> None:
        """Drops a Workspace's question: it is gone, or asks for something else now."""
        question = self._questions.pop(key, None)
        if question is not None:
            question.asking.cancel()

    async def close(self) -> None:
        """Ends all questions."""
        asking = [each.asking for each in self._questions.values()]
        self._questions.clear()
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, key: Key, workspace: Workspace) -> Answer:
        try:
            return await self._resolver(workspace)
        except WeightyardError as error:
            return error
        finally:
            question = self._questions.get(key)
            # Not the question that took this one's place.
            if question is not None and question.asking is asyncio.current_task() and question.left:
                self._wake(key)
