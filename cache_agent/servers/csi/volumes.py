"""Publishing and unpublishing: who may, which model, here yet?, lease, mount; and all of it again when asked again.

The order is what makes it safe to die anywhere: a lease is durable before its mount is made, and outlives it until the
mount is gone. So a call may be cancelled anywhere too, when its caller gave up; a pull goes on all the same, and the
next call joins it. What blocks is done in threads, for all who want it at that time at once. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cache_agent.access.callers import Caller, caller_of_pull_secret
from cache_agent.access.gate import Admission, Authorizer
from cache_agent.access.upstream import Upstream
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.values import PullRequest, PullState
from cache_agent.node.node import Node
from cache_agent.node.progress import Watched, describe
from cache_agent.node.threads import BlockingExecutor, end_of
from cache_agent.servers.batching import Batcher, BatchWindow, SingleFlight
from cache_agent.servers.csi.mount_client import MounterClient, Mounts
from cache_agent.servers.csi.requests import Publish
from cache_agent.store.values import Holder, HolderKind, Lease, Use, repository_of
from modelimage.digest import Digest
from modelimage.errors import InUse, NotFound, TimedOut, Unreachable, WeightyardError

# Pods that start together come within a few milliseconds.
_PATIENCE: Final = BatchWindow(0.001, 12)


class StillPulling(TimedOut):
    """The model isn't here yet; the pull goes on, and the same call continues to wait for it."""


class OtherVolume(InUse):
    """A volume of this id is there already and shows something else."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a published volume holds."""

    size: int
    files: int


@dataclass(frozen=True, slots=True)
class Threads:
    """Where waiting is done: `upstream` for what a registry is asked, `local` for the disk and the mounter.

    They are apart, so that a registry that doesn't answer holds up no pod of another.
    """

    upstream: BlockingExecutor
    local: BlockingExecutor


class Volumes:
    """The volumes of one node, in one event loop."""

    def __init__(
        self,
        node: Node,
        gate: Authorizer,
        *,
        questions: Upstream,
        transfers: Upstream,
        mounter: MounterClient,
        threads: Threads,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node, self.gate, self.questions = node, gate, questions
        self._transfers, self._threads, self._monotonic = transfers, threads, monotonic
        self._mounts = Mounts(mounter, threads.local)
        self._admissions: SingleFlight[Admission] = SingleFlight(threads.upstream)
        self._meanings: SingleFlight[Digest | None] = SingleFlight(threads.upstream, _PATIENCE)
        self._leases = Batcher(threads.local, self._lease_all)
        self._releases = Batcher(threads.local, node.store.release_all)
        self._pulls: dict[tuple[object, ...], Pull] = {}
        self._lock = threading.Lock()

    async def publish(self, wanted: Publish, seconds: float) -> None:
        """Show a model in a pod, waiting for it at most `seconds`.

        Raises StillPulling, OtherVolume, Refused, RegistryNotAllowed, and what pulls and the mounter raise.
        """
        activity, volume = self.node.activity, wanted.volume_id
        activity.asked(volume, wanted.pod, wanted.pod_name, str(wanted.image))
        try:
            await self._publish(wanted, seconds)
        except WeightyardError as error:
            activity.answered(volume, error.message)
            raise
        activity.answered(volume, "")

    async def _publish(self, wanted: Publish, seconds: float) -> None:
        admission = await self._admitted(wanted)
        what = (admission.caller, *wanted.what)
        key = await self._meanings.ask(what, lambda: self._cached(wanted, admission))
        key = key or await self._pulled(wanted, admission, seconds)
        await self._lease(wanted, key)
        try:
            await self._mounts.bind(key, wanted.target)
        except Unreachable:
            raise  # it may have been bound: the lease stays until the volume is unpublished
        except WeightyardError:
            await self._releases.ask(wanted.volume_id)
            raise

    async def unpublish(self, volume_id: str, target: str) -> None:
        """Take a volume away; one that isn't there is no error. Raises Busy while it is in use."""
        await self._mounts.unbind(target)
        await self._releases.ask(volume_id)
        self.node.activity.gone(volume_id)

    async def usage(self, target: str) -> Usage:
        """What is shown at a target. Raises NotFound when no model is."""
        key = await self._mounts.look(target)
        model = await self._threads.local.call(lambda: self.node.store.model(key)) if key else None
        if model is None:
            raise NotFound("no model is mounted there")
        return Usage(model.size, model.files)

    async def _admitted(self, wanted: Publish) -> Admission:
        image = wanted.image
        place = repository_of(image)
        caller = caller_of_pull_secret(wanted.secrets, image.registry, image.repository)
        question = self.questions.manifest_question(image)
        return self.gate.known(place, caller) or await self._admissions.ask(
            (place, caller, image.name), lambda: self.gate.admit(place, caller, question)
        )

    def _cached(self, wanted: Publish, admission: Admission) -> Digest | None:
        """The model, when it is here and is what the image means now. Blocking."""
        meant = self.node.store.meaning(*wanted.what)
        if meant is None or not self.node.trust.knows(wanted.image, meant.root):
            return None
        if wanted.image.digest is not None:
            return meant.key
        reader = self.questions.repository(wanted.image, admission.caller)
        try:
            now = reader.resolve(wanted.image.name)
        except Unreachable:
            return meant.key
        return meant.key if now.digest == meant.root else None

    async def _pulled(self, wanted: Publish, admission: Admission, seconds: float) -> Digest:
        caller = admission.caller
        pull = await self._threads.local.call(lambda: self._pull(wanted, caller))
        began, before = self._monotonic(), pull.snapshot().done
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await end_of(pull).wait()
        except TimeoutError as error:
            watched = Watched(pull.snapshot(), before, self._monotonic() - began)
            raise StillPulling(describe(watched)) from error
        result = pull.result()
        if result is None:
            raise RuntimeError("a pull that has ended has no result")
        return result.model.key

    def _pull(self, wanted: Publish, caller: Caller) -> Pull:
        """The running pull of this image for this caller, or a new one."""
        name = (caller, *wanted.what)
        with self._lock:
            for key, pull in list(self._pulls.items()):
                if pull.snapshot().state in (PullState.DONE, PullState.FAILED):
                    del self._pulls[key]
            running = self._pulls.get(name)
            if running is None:
                reader = self._transfers.repository(wanted.image, caller)
                request = PullRequest(wanted.image, wanted.variant, reader=reader)
                running = self._pulls[name] = self.node.pull(request)
        return running

    async def _lease(self, wanted: Publish, key: Digest) -> None:
        """Have the model leased to the pod. Raises OtherVolume, NotFound when it was removed just now."""
        use = Use(key, Holder(HolderKind.POD, wanted.pod), wanted.volume_id)
        lease = await self._leases.ask(use)
        if lease is not None and lease.model != key:
            if await self._mounts.look(wanted.target) is not None:
                raise OtherVolume(
                    f"volume {wanted.volume_id} shows model {lease.model.short}, not {key.short}",
                    hint="The image's tag moved on while the volume was published; make the pod anew.",
                )
            # Left by a publish that died before its mount.
            await self._releases.ask(wanted.volume_id)
            lease = await self._leases.ask(use)
        if lease is None:
            raise NotFound(f"model {key.short} was removed just now", hint="Ask again.")

    def _lease_all(self, uses: Sequence[Use]) -> list[Lease | None]:
        """The lease that each volume has then: one that it had for another model stays."""
        store = self.node.store
        had = [store.lease_named(use.lease or "") for use in uses]
        asked = [use for use, lease in zip(uses, had, strict=True) if lease is None]
        given = iter(store.lease_all(asked))
        return [lease or next(given) for lease in had]
