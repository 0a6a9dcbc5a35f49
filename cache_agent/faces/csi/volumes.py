"""Publishing and unpublishing: who may, which model, here yet?, lease, mount; and all of it again when asked again.

The order is what makes it safe to die anywhere: a lease is durable before its mount is made, and outlives it until the
mount is gone. A pull goes on when its caller gives up, and the next call joins it. Blocking; knows no gRPC.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cache_agent.access.callers import Caller, caller_of_pull_secret
from cache_agent.access.gate import Admission, Gate
from cache_agent.access.together import Together
from cache_agent.access.upstream import Upstream
from cache_agent.faces.csi.mounting import MounterClient
from cache_agent.faces.csi.requests import Publish
from cache_agent.faces.progress import Watched, describe
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.values import PullRequest, PullState
from cache_agent.node import Node
from cache_agent.store.values import Holder, HolderKind, repository_of
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InUse, NotFound, TimedOut, Unreachable, WeightyardError


class StillPulling(TimedOut):
    """The model isn't here yet; the pull goes on, and the same call continues to wait for it."""


class OtherVolume(InUse):
    """A volume of this id is there already and shows something else."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a published volume holds."""

    size: int
    files: int


@dataclass
class Volumes:
    """The volumes of one node. Safe for threads."""

    node: Node
    gate: Gate
    questions: Upstream
    transfers: Upstream
    mounter: MounterClient
    monotonic: Callable[[], float] = time.monotonic
    _pulls: dict[tuple[object, ...], Pull] = field(default_factory=dict)
    _tags: Together[Descriptor] = field(default_factory=Together)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def publish(self, wanted: Publish, seconds: float) -> None:
        """Show a model in a pod, waiting for it at most `seconds`.

        Raises StillPulling, OtherVolume, Refused, RegistryNotAllowed, and what pulls and the mounter raise.
        """
        activity, volume = self.node.activity, wanted.volume_id
        activity.asked(volume, wanted.pod, wanted.pod_name, str(wanted.image))
        try:
            self._publish(wanted, seconds)
        except WeightyardError as error:
            activity.answered(volume, error.message)
            raise
        activity.answered(volume, "")

    def _publish(self, wanted: Publish, seconds: float) -> None:
        image = wanted.image
        caller = caller_of_pull_secret(wanted.secrets, image.registry, image.repository)
        question = self.questions.manifest_question(image)
        admission = self.gate.admit(repository_of(image), caller, question)
        key = self._cached(wanted, admission) or self._pulled(wanted, admission, seconds)
        self._check_same(wanted, key)
        holder = Holder(HolderKind.POD, wanted.pod)
        lease = self.node.store.lease(key, holder, wanted.volume_id)
        try:
            self.mounter.bind(key, wanted.target)
        except Unreachable:
            raise  # it may have been bound: the lease stays until the volume is unpublished
        except BaseException:
            self.node.store.release(lease.id)
            raise

    def unpublish(self, volume_id: str, target: str) -> None:
        """Take a volume away; one that isn't there is no error. Raises Busy while it is in use."""
        self.mounter.unbind(target)
        self.node.store.release(volume_id)
        self.node.activity.gone(volume_id)

    def usage(self, target: str) -> Usage:
        """What is shown at a target. Raises NotFound when no model is."""
        key = self.mounter.look(target)
        model = self.node.store.model(key) if key else None
        if model is None:
            raise NotFound("no model is mounted there")
        return Usage(model.size, model.files)

    def _cached(self, wanted: Publish, admission: Admission) -> Digest | None:
        """The model, when it is here and is what the image means now."""
        key = self.node.store.meaning(*wanted.what)
        if key is None:
            return None
        origin = self.node.store.origin(key)
        if not self.node.trust.knows(wanted.image, origin.root):
            return None
        if (origin.image, origin.requested_variant) != wanted.what:
            return None
        if wanted.image.digest is not None:
            return key
        reader = self.questions.repository(wanted.image, admission.caller)
        asked = (admission.caller, str(wanted.image))
        try:
            now = self._tags.ask(asked, lambda: reader.resolve(wanted.image.name))
        except Unreachable:
            return key
        return key if now.digest == origin.root else None

    def _pulled(self, wanted: Publish, admission: Admission, seconds: float) -> Digest:
        pull = self._pull(wanted, admission.caller)
        began, before = self.monotonic(), pull.snapshot().done
        result = pull.result(max(0.0, seconds))
        if result is None:
            watched = Watched(pull.snapshot(), before, self.monotonic() - began)
            raise StillPulling(describe(watched))
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
                reader = self.transfers.repository(wanted.image, caller)
                request = PullRequest(wanted.image, wanted.variant, reader=reader)
                running = self._pulls[name] = self.node.pull(request)
        return running

    def _check_same(self, wanted: Publish, key: Digest) -> None:
        held = self.node.store.lease_named(wanted.volume_id)
        if held is None or held.model == key:
            return
        if self.mounter.look(wanted.target) is not None:
            raise OtherVolume(
                f"volume {wanted.volume_id} shows model {held.model.short}, not {key.short}",
                hint="The image's tag moved on while the volume was published; make the pod anew.",
            )
        # Left by a publish that died before its mount.
        self.node.store.release(wanted.volume_id)
