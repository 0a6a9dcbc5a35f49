"""Current activity of the node: running pulls, and pods' volumes that wait or were refused. In memory only."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.fetch.pull import Pull
from cache_agent.fetch.values import PullState

_MAX_PODS: Final = 1000
_ENDED: Final = (PullState.DONE, PullState.FAILED)


@dataclass(frozen=True, slots=True)
class Running:
    """A running pull; `began` is on the activity's clock."""

    image: str
    variant: str | None
    pull: Pull
    began: float


@dataclass(frozen=True, slots=True)
class PodVolume:
    """A pod's volume. `said`: the last error returned to the kubelet; empty when the model was published."""

    pod: str
    name: str
    image: str
    since: float
    said: str = ""
    published: bool = False


@dataclass
class Activity:
    """Tracks pulls and pods' volumes. Thread-safe. `clock` returns seconds."""

    clock: Callable[[], float]
    _pulls: list[Running] = field(default_factory=list)
    _pods: OrderedDict[str, PodVolume] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def began(self, image: str, variant: str | None, pull: Pull) -> None:
        """Record that a pull began."""
        with self._lock:
            # Pulls that ended are removed here and nowhere else.
            self._pulls = [each for each in self._pulls if not _ended(each)]
            self._pulls.append(Running(image, variant, pull, self.clock()))

    def running(self, image: str | None = None) -> list[Running]:
        """Running pulls, of one image or of all."""
        with self._lock:
            return [
                each for each in self._pulls if image in (None, each.image) and not _ended(each)
            ]

    def asked(self, volume: str, pod: str, name: str, image: str) -> PodVolume:
        """Record the kubelet's request to publish a volume; return what is known of it from earlier ones.

        The kubelet repeats it while the volume has to wait.
        """
        with self._lock:
            known = self._pods.get(volume)
            # A repeated request keeps the time at which the wait began.
            if known is None or known.image != image:
                known = self._pods[volume] = PodVolume(pod, name, image, self.clock())
            # Bounded: the kubelet may never report that a volume is gone.
            while len(self._pods) > _MAX_PODS:
                self._pods.popitem(last=False)
        return known

    def answered(self, volume: str, said: str) -> None:
        """Record the reply to the kubelet; an empty `said` means that the model is published."""
        with self._lock:
            known = self._pods.get(volume)
            if known is not None:
                self._pods[volume] = replace(known, said=said, published=not said)

    def gone(self, volume: str) -> None:
        """Record that a volume was unpublished."""
        with self._lock:
            self._pods.pop(volume, None)

    def waiting(self) -> list[PodVolume]:
        """The volumes that aren't published, the longest wait first."""
        with self._lock:
            known = [each for each in self._pods.values() if not each.published]
        return sorted(known, key=lambda each: each.since)

    def pods(self, text: str) -> list[PodVolume]:
        """The volumes of a pod, by its UID, name or namespace/name."""
        with self._lock:
            known = list(self._pods.values())
        return [
            each
            for each in known
            if text in (each.pod, each.name, each.name.rpartition("/")[2]) and text
        ]


def _ended(running: Running) -> bool:
    return running.pull.state in _ENDED
