"""Pre-pulls container images that go with models, such as the inference server's, through the node's own runtime.

Without a runtime's socket nothing is pulled, and the image is reported as unsupported.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from cache_agent.prewarm.attempts import failure_of
from cache_agent.prewarm.values import Failure, RuntimeImage
from modelimage.errors import WeightyardError

# An image counts as present for this long. Then it is checked again, because kubelet removes unused images.
_PRESENT_SECONDS: Final = 600.0


class ImageService(Protocol):
    """The images of a container runtime."""

    async def has(self, image: str) -> bool:
        """Whether the runtime has an image. Raises Unreachable, RemoteRefused, AccessDenied."""

    async def pull(self, image: str, auth: Mapping[str, str]) -> None:
        """Pull an image; cancelling stops the runtime's pull. Raises the same, and NotFound."""


Authorizing = Callable[[str, str], Awaitable[Mapping[str, str]]]


@dataclass
class RuntimeImages:
    """The state of the images that desired models name, and their pulls. `authorize` reads an image's pull secret."""

    service: ImageService | None
    authorize: Authorizing
    clock: Callable[[], float]
    random: Callable[[], float] = random.random
    known: dict[str, RuntimeImage] = field(default_factory=dict)
    _failures: dict[str, Failure] = field(default_factory=dict)
    # When each image was last found present, in seconds since the epoch.
    _seen: dict[str, float] = field(default_factory=dict)

    def keep(self, images: Collection[str]) -> None:
        """Forget images that are no longer desired, and results that are older than ten minutes."""
        now = self.clock()
        for image in images:
            if self.service is None:
                self.known[image] = RuntimeImage(supported=False)
        self._failures = {image: each for image, each in self._failures.items() if image in images}
        # Results expire because the runtime's own garbage collection removes images without telling anyone.
        for image in list(self.known):
            old = now - self._seen.get(image, now) > _PRESENT_SECONDS
            if (image not in images or old) and not self.known[image].pulling:
                del self.known[image]
                self._seen.pop(image, None)

    def begin(self, image: str) -> None:
        """Mark an image as being pulled, before the pull starts."""
        self.known[image] = RuntimeImage(pulling=True)

    async def pull(self, image: str, secret: str | None) -> None:
        """Pull an image unless the runtime has it. The result, or the failure, goes into `known`."""
        if self.service is None:
            self.known[image] = RuntimeImage(supported=False)
            return
        try:
            # Pulling a present image would still contact its registry, which may be down.
            if not await self.service.has(image):
                auth = await self.authorize(image, secret) if secret else {}
                await self.service.pull(image, auth)
        except WeightyardError as error:
            failure = self._failures[image] = failure_of(
                error, before=self._failures.get(image), now=self.clock(), random=self.random
            )
            self.known[image] = RuntimeImage(failure=failure)
        else:
            self._failures.pop(image, None)
            self._seen[image] = self.clock()
            self.known[image] = RuntimeImage(present=True)
