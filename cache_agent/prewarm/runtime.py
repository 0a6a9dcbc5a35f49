"""Container images that go with models, such as the inference server's: pulled ahead through the node's own runtime.

Without a runtime's socket nothing is pulled, and that is said.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from cache_agent.prewarm.attempts import failure_of
from cache_agent.prewarm.values import RuntimeImage
from modelimage.errors import WeightyardError

# How long it is believed that an image is there: kubelet removes unused ones when its disk fills.
_PRESENT_SECONDS: Final = 600.0


class ImageService(Protocol):
    """A container runtime's images."""

    async def has(self, image: str) -> bool:
        """Whether it has an image. Raises Unreachable, RemoteRefused, AccessDenied."""

    async def pull(self, image: str, auth: Mapping[str, str]) -> None:
        """Pull it; cancelled, the runtime stops. Raises the same, and NotFound."""


Authorizing = Callable[[str, str], Awaitable[Mapping[str, str]]]


@dataclass
class RuntimeImages:
    """What is known of each image that wishes name, and pulls of it. `authorize` reads a pull secret for an image."""

    service: ImageService | None
    authorize: Authorizing
    clock: Callable[[], float]
    random: Callable[[], float] = random.random
    known: dict[str, RuntimeImage] = field(default_factory=dict)
    _failures: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, float] = field(default_factory=dict)

    def keep(self, images: Collection[str]) -> None:
        """Forget images that nobody names any more, and what is too old to be believed."""
        now = self.clock()
        for image in images:
            if self.service is None:
                self.known[image] = RuntimeImage(supported=False)
        for image in list(self.known):
            old = now - self._seen.get(image, now) > _PRESENT_SECONDS
            if (image not in images or old) and not self.known[image].pulling:
                del self.known[image]
                self._seen.pop(image, None)

    def begin(self, image: str) -> None:
        """It is about to be pulled."""
        self.known[image] = RuntimeImage(pulling=True)

    async def pull(self, image: str, secret: str | None) -> None:
        """Make the runtime have it; how that went is in `known`."""
        if self.service is None:
            self.known[image] = RuntimeImage(supported=False)
            return
        try:
            if not await self.service.has(image):
                auth = await self.authorize(image, secret) if secret else {}
                await self.service.pull(image, auth)
        except WeightyardError as error:
            times = self._failures[image] = self._failures.get(image, 0) + 1
            failure = failure_of(error, times=times, now=self.clock(), random=self.random)
            self.known[image] = RuntimeImage(failure=failure)
        else:
            self._failures.pop(image, None)
            self._seen[image] = self.clock()
            self.known[image] = RuntimeImage(present=True)
