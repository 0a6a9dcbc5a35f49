"""The fake API without HTTP between: what `KubernetesApi` offers, step by step, with faults where a test wants them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from cache_agent.api.kube.refusals import Conflict
from modelimage.errors import NotFound
from tests.workspace.controller import fakeapi
from tests.workspace.controller.fakeapi import FakeApi
from workspace.render import names

Json = dict[str, Any]


class DirectApi:
    """`faults` are raised by the next writes, before (or, where `late`, after) they are done."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.faults: deque[tuple[Exception, bool]] = deque()

    async def pages(self, kind: str, *, label: str | None = None) -> AsyncIterator[list[Json]]:
        assert label is None, "the cache's kinds are watched whole"
        yield self.fake.list(kind)

    async def get(self, kind: str, namespace: str | None, name: str) -> Json:
        return self._do(lambda: self.fake.get(kind, namespace or "", name), write=False)

    async def apply(self, document: Json, *, status: bool = False) -> Json:
        return self._do(
            lambda: self.fake.apply(document, manager=names.MANAGER, force=True, status=status)
        )

    async def merge(
        self, kind: str, name: str, patch: Json, *, namespace: str | None = None
    ) -> Json:
        return self._do(
            lambda: self.fake.merge_patch(
                kind, name, patch, namespace=namespace or "", manager=names.MANAGER
            )
        )

    async def create(self, document: Json) -> Json:
        return self._do(lambda: self.fake.create(document, manager=names.MANAGER))

    def _do(self, call: Any, *, write: bool = True) -> Json:
        fault, late = self.faults.popleft() if write and self.faults else (None, False)
        if fault is not None and not late:
            raise fault
        try:
            found: Json = call()
        except fakeapi.Missing as error:
            raise NotFound(str(error)) from error
        except fakeapi.Conflict as error:
            raise Conflict(str(error)) from error
        if fault is not None:
            raise fault
        return found
