"""What is going on: pulls that run, and pods that wait for one or were told why they can't have it. In memory only."""

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
    """A pull that runs since `began`, on the clock that the activity uses."""

    image: str
    variant: str | None
    pull: Pull
    began: float


@dataclass(frozen=True, slots=True)
class PodVolume:
    """A pod's volume. `said` is what kubelet was told last, empty when the model was published."""

    pod: str
    name: str
    image: str
    since: float
    said: str = ""
    published: bool = False


@dataclass
class Activity:
    """Safe for threads. `clock` gives seconds."""

    clock: Callable[[], float]
    _pulls: list[Running] = field(default_factory=list)
    _pods: OrderedDict[str, PodVolume] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def began(self, image: str, variant: str | None, pull: Pull) -> None:
        """A pull began."""
        with self._lock:
            self._pulls = [each for each in self._pulls if not _ended(each)]
            self._pulls.append(Running(image, variant, pull, self.clock()))

    def running(self, image: str | None = None) -> list[Running]:
        """The pulls that run now, of one image or of all."""
        with self._lock:
            return [
                each for each in self._pulls if image in (None, each.image) and not _ended(each)
            ]

    def asked(self, volume: str, pod: str, name: str, image: str) -> None:
        """A pod's volume is asked for; again and again while it has to wait."""
        with self._lock:
            known = self._pods.get(volume)
            if known is None or known.image != image:
                self._pods[volume] = PodVolume(pod, name, image, self.clock())
            while len(self._pods) > _MAX_PODS:
                self._pods.popitem(last=False)

    def answered(self, volume: str, said: str) -> None:
        """kubelet was answered; `said` empty tells that the model is there."""
        with self._lock:
            known = self._pods.get(volume)
            if known is not None:
                self._pods[volume] = replace(known, said=said, published=not said)

    def gone(self, volume: str) -> None:
        """A volume was taken away."""
        with self._lock:
            self._pods.pop(volume, None)

    def pods(self, text: str) -> list[PodVolume]:
        """The volumes of a pod, by its UID, its name or namespace/name."""
        with self._lock:
            known = list(self._pods.values())
        return [
            each
            for each in known
            if text in (each.pod, each.name, each.name.rpartition("/")[2]) and text
        ]


def _ended(running: Running) -> bool:
    return running.pull.snapshot().state in _ENDED
