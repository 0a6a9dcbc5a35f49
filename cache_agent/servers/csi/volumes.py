"""Publish a volume: authorize, resolve, pull, lease, mount. Unpublish: unmount, release. Both are idempotent.

The order makes a crash safe at any point: a lease is durable before its mount is made, and ends only after the mount
is gone. A call may also be cancelled at any point; its pull goes on and kubelet's next call joins it. Blocking work
runs in threads, batched over concurrent calls. Must not import gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from cache_agent.access.authorizer import Admission, Authorizer
from cache_agent.access.callers import Caller, caller_of_pull_secret
from cache_agent.access.signatures import Trust
from cache_agent.access.upstream import UpstreamRegistries
from cache_agent.api.publish_record import PublishRecord
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.values import PullRequest
from cache_agent.node.activity import Activity
from cache_agent.node.progress_text import describe
from cache_agent.node.threads import BlockingExecutor, end_of
from cache_agent.observability.events import Events, PublishEnded, PublishStarted
from cache_agent.servers.batcher import Batcher, BatchWindow, SingleFlight
from cache_agent.servers.csi.mount_client import Mounts
from cache_agent.servers.csi.pod_events import PodEvent, PodEvents
from cache_agent.servers.csi.published import Published, bytes_by_tier, publish_record
from cache_agent.servers.csi.requests import Publish, VolumeUse
from cache_agent.servers.shared_pulls import SharedPulls
from cache_agent.store.roots import Roots
from cache_agent.store.values import (
    Holder,
    HolderKind,
    Lease,
    StoredModel,
    Use,
    repository_of,
)
from modelimage.digest import Digest
from modelimage.errors import InUse, NotFound, TimedOut, Unreachable, WeightyardError

# Seconds until kubelet's first call for a volume is answered. Its error becomes an Event of the pod, so people see soon
# what the pod waits for. Kubelet repeats that call after 0.5 s, but its pauses double: later calls wait as long as they
# may.
_FIRST_ANSWER: Final = 8.0
# The calls of pods that start together arrive within a few milliseconds.
_BATCH_WINDOW: Final = BatchWindow(0.001, 12)


class StillPulling(TimedOut):
    """The pull didn't finish in time. It goes on, and the same call repeated waits for it again."""


class VolumeConflict(InUse):
    """The volume is already published at this target, with another model or another `readonly`."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The size in bytes and the number of files of a published volume."""

    size: int
    files: int


@dataclass(frozen=True, slots=True)
class Threads:
    """Thread pools for blocking calls: `upstream` for registries, `local` for the disk and the mounter.

    Two pools, so that an unresponsive registry doesn't delay pods whose models are cached.
    """

    upstream: BlockingExecutor
    local: BlockingExecutor


@dataclass(frozen=True, slots=True)
class ImageAccess:
    """Who may use which images. `questions` fails fast, `transfers` retries and waits longer."""

    gate: Authorizer
    trust: Trust
    questions: UpstreamRegistries
    transfers: UpstreamRegistries


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told of volumes: `pods` by Events of the cluster, `node` by events of this node."""

    pods: PodEvents
    node: Events


class Volumes:
    """The volumes of one node. Belongs to one event loop."""

    def __init__(
        self,
        store: Roots,
        *,
        pulls: SharedPulls,
        activity: Activity,
        access: ImageAccess,
        mounts: Mounts,
        threads: Threads,
        listeners: Listeners,
    ) -> None:
        self._pod_events, self._events = listeners.pods, listeners.node
        self._store, self._pulls, self._activity = store, pulls, activity
        self._access, self._mounts = access, mounts
        self._threads = threads
        self._admissions: SingleFlight[Admission] = SingleFlight(threads.upstream)
        self._cached_keys: SingleFlight[Digest | None] = SingleFlight(
            threads.upstream, _BATCH_WINDOW
        )
        self._leases = Batcher(threads.local, self._lease_all)
        self._releases = Batcher(threads.local, store.leases.release_all)

    async def publish(self, wanted: Publish, seconds: float) -> None:
        """Mount a model into a pod; wait at most `seconds` for its pull, at the first call for a volume 8 seconds.

        Raises StillPulling, OtherVolume, Refused, RegistryNotAllowed, and the errors of pulls and of the mounter.
        """
        self._events.emit(PublishStarted())
        outcome = PublishEnded("Cancelled")
        try:
            outcome = await self._publish_told(wanted, seconds)
        except Exception as error:
            outcome = PublishEnded(type(error).__name__)
            raise
        finally:
            self._events.emit(outcome)

    async def _publish_told(self, wanted: Publish, seconds: float) -> PublishEnded:
        activity, volume = self._activity, wanted.volume_id
        # Recorded before and after the work, so that `explain` can say why a pod waits.
        before = activity.asked(volume, wanted.pod, wanted.pod_name, str(wanted.image))
        try:
            key, pull = await self._publish(
                wanted, seconds if before.said else min(seconds, _FIRST_ANSWER)
            )
        except WeightyardError as error:
            if isinstance(error, StillPulling):
                said = f"{wanted.image}: {error.message}"
                self._pod_events.tell(PodEvent(wanted.pod, wanted.pod_name, "PullingModel", said))
            activity.answered(volume, error.message)
            raise
        activity.answered(volume, "")
        # kubelet repeats a publish, also of what is published.
        if before.published:
            return PublishEnded("done")
        done = Published(volume, key, pull, activity.clock(), before.since)
        self._tell_mounted(wanted, done)
        return PublishEnded(
            "done", done.seconds, bytes_by_tier(self._store, done), wanted.pod_name, wanted.trace
        )

    def _tell_mounted(self, wanted: Publish, done: Published) -> None:
        async def record() -> PublishRecord:
            return await self._threads.local.call(partial(publish_record, self._store, done))

        said = f"{wanted.image} is mounted, after {done.seconds:.0f} s"
        self._pod_events.tell(PodEvent(wanted.pod, wanted.pod_name, "ModelMounted", said, record))

    async def _publish(self, wanted: Publish, seconds: float) -> tuple[Digest, Pull | None]:
        """The model that is published, and the pull that brought it, if one had to."""
        admission = await self._admitted(wanted)
        # The caller is part of the key: an answer obtained with one pod's credentials must not serve another.
        what = (admission.caller, *wanted.what)
        key = await self._cached_keys.ask(what, lambda: self._cached(wanted, admission))
        pull = None
        if key is None:
            key, pull = await self._pulled(wanted, admission, seconds)
        # Leased before the mount exists: after a crash in between nothing can evict a mounted model.
        await self._lease(wanted, key)
        try:
            await self._mounts.bind(key, wanted.target)
        except Unreachable:
            raise  # the mount may exist: the lease stays until the volume is unpublished
        except WeightyardError:
            await self._releases.ask(wanted.use.lease)
            raise
        return key, pull

    async def unpublish(self, volume_id: str, target: str) -> None:
        """Unmount a volume and release its lease; a missing one isn't an error. Raises Busy while it is in use."""
        # The reverse order of publish: the lease must outlive the mount.
        await self._mounts.unbind(target)
        use = VolumeUse(volume_id, target, readonly=True)
        await asyncio.gather(*map(self._releases.ask, (use.lease, use.incompatible.lease)))
        self._activity.gone(volume_id)

    async def usage(self, volume_id: str, target: str, pod: str) -> Usage:
        """The usage of the model that a pod's volume shows at a target. Raises NotFound when there is none."""
        key = await self._mounts.look(target)
        use = VolumeUse(volume_id, target, readonly=True)
        model = await self._threads.local.call(lambda: self._published(use, pod, key))
        if model is None:
            raise NotFound(f"volume {volume_id} isn't published there")
        return Usage(model.size, model.files)

    def _published(self, use: VolumeUse, pod: str, key: Digest | None) -> StoredModel | None:
        """The model of a volume whose target shows `key`. Blocking."""
        if key is None:
            return None
        leases = self._store.leases
        own = leases.get(use.lease) or leases.get(use.incompatible.lease)
        # Leases that were restored after a ledger was lost don't name their volumes.
        holder = Holder(HolderKind.POD, pod)
        if own is None and not any(
            lease.model == key and lease.holder == holder and "@" not in lease.id
            for lease in leases.all()
        ):
            return None
        return self._store.models.get(key)

    async def _admitted(self, wanted: Publish) -> Admission:
        image = wanted.image
        repository = repository_of(image)
        caller = caller_of_pull_secret(wanted.secrets, image.registry, image.repository)
        question = self._access.questions.manifest_question(image)
        # A cached proof is checked in the event loop, so that the usual case takes no thread.
        return self._access.gate.known(repository, caller) or await self._admissions.ask(
            (repository, caller, image.name),
            lambda: self._access.gate.admit(repository, caller, question),
        )

    def _cached(self, wanted: Publish, admission: Admission) -> Digest | None:
        """The key of the cached model, if the image still resolves to it. Blocking."""
        meant = self._store.models.resolved_ref(*wanted.what)
        # A signature rule may have been added since the pull: then the image must be verified again, by a pull.
        if meant is None or not self._access.trust.knows(wanted.image, meant.root):
            return None
        # A digest can't move, so the registry needn't be contacted.
        if wanted.image.digest is not None:
            return meant.key
        reader = self._access.questions.repository(wanted.image, admission.caller)
        try:
            now = reader.resolve(wanted.image.name)
        except Unreachable:
            # A registry outage must not keep pods from a model that this caller may read and the node has.
            return meant.key
        return meant.key if now.digest == meant.root else None

    async def _pulled(
        self, wanted: Publish, admission: Admission, seconds: float
    ) -> tuple[Digest, Pull]:
        caller = admission.caller
        pull = await self._threads.local.call(lambda: self._pull(wanted, caller))
        try:
            # The timeout ends only the waiting. The pull goes on, so that kubelet's retries make progress.
            async with asyncio.timeout(max(0.0, seconds)):
                await end_of(pull).wait()
        except TimeoutError as error:
            raise StillPulling(describe(pull.snapshot())) from error
        result = pull.result()
        if result is None:
            raise RuntimeError("a pull that has ended has no result")
        return result.model.key, pull

    def _pull(self, wanted: Publish, caller: Caller) -> Pull:
        """Join this caller's running pull of the image, or start one. Callers never share: a pull uses one's token."""
        reader = self._access.transfers.repository(wanted.image, caller)
        request = PullRequest(wanted.image, wanted.variant, reader=reader, trace=wanted.trace)
        return self._pulls.join((caller, *wanted.what), request)

    async def _lease(self, wanted: Publish, key: Digest) -> None:
        """Lease the model to the pod. Raises VolumeConflict, and NotFound when the model was just removed."""
        use = Use(key, Holder(HolderKind.POD, wanted.pod), wanted.use.lease, wanted.pod_name)
        asked = (use, wanted.use.incompatible.lease)
        lease = await self._leases.ask(asked)
        if lease is not None and (lease.model, lease.id) != (key, use.lease):
            # A running server may have mapped the mounted files, so the model of a published volume never changes.
            if await self._mounts.look(wanted.target) is not None:
                raise _conflict(wanted, lease, key)
            # The lease of a publish that ended before its mount: nothing uses it.
            await self._releases.ask(lease.id)
            lease = await self._leases.ask(asked)
        if lease is None:
            raise NotFound(f"model {key.short} was removed just now", hint="Try again.")

    def _lease_all(self, asked: Sequence[tuple[Use, str]]) -> list[Lease | None]:
        """Each volume's lease afterwards; an existing lease stays, even of another model. None: the model is gone.

        With each use the id of the lease that excludes it.
        """
        store = self._store
        had = [store.leases.get(use.lease or "") or store.leases.get(other) for use, other in asked]
        # kubelet repeats a publish: the volume's lease of the first call is the answer, and keeps its model.
        kept = [
            lease if _is_answer(lease, use) else None
            for (use, _), lease in zip(asked, had, strict=True)
        ]
        missing = [use for (use, _), lease in zip(asked, kept, strict=True) if lease is None]
        given = iter(store.leases.take_all(missing))
        return [lease or next(given) for lease in kept]


def _is_answer(lease: Lease | None, use: Use) -> bool:
    """Whether a volume's lease needs no change; one that lacks its pod's name gets it, if it is the same use."""
    if lease is None:
        return False
    return (lease.model, lease.id) != (use.model, use.lease) or lease.pod == use.pod or not use.pod


def _conflict(wanted: Publish, lease: Lease, key: Digest) -> VolumeConflict:
    if lease.model != key:
        return VolumeConflict(
            f"volume {wanted.volume_id} shows model {lease.model.short}, not {key.short}",
            hint="The image's tag changed while the volume was published: recreate the pod.",
        )
    stated = str(not wanted.use.readonly).lower()
    return VolumeConflict(f"volume {wanted.volume_id} is published there with readonly {stated}")
