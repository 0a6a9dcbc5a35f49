"""Container images that go with models, such as the inference server's: pulled ahead through the node's own runtime.

Speaks the ImageService of the Container Runtime Interface (CRI) v1 on the runtime's socket, as kubelet does, so that
the image is where kubelet looks for it. Without a socket nothing is pulled, and that is said. Only the fields that are
used have a place in the messages; numbers are the specification's (kubernetes/cri-api, api.proto).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import grpc

from cache_agent.protobuf import message_classes
from cache_agent.wanted.attempts import failure_of
from cache_agent.wanted.values import RuntimeImage
from modelimage.errors import AccessDenied, NotFound, RemoteRefused, Unreachable, WeightyardError

_PACKAGE: Final = "runtime.v1"
_MESSAGES: Final = message_classes(
    {
        _PACKAGE: {
            "ImageSpec": ((1, "image", "string"),),
            "Image": ((1, "id", "string"),),
            "AuthConfig": (
                (1, "username", "string"),
                (2, "password", "string"),
                (3, "auth", "string"),
                (4, "server_address", "string"),
                (5, "identity_token", "string"),
                (6, "registry_token", "string"),
            ),
            "ImageStatusRequest": ((1, "image", "ImageSpec"),),
            "ImageStatusResponse": ((1, "image", "Image"),),
            "PullImageRequest": ((1, "image", "ImageSpec"), (2, "auth", "AuthConfig")),
            "PullImageResponse": ((1, "image_ref", "string"),),
        }
    }
)
_STATUS_SECONDS: Final = 10.0
# kubelet gives up on a pull that makes no progress; the runtime does the same, so this only bounds the whole.
_PULL_SECONDS: Final = 3600.0
# How long it is believed that an image is there: kubelet removes unused ones when its disk fills.
_PRESENT_SECONDS: Final = 600.0


class ImageService(Protocol):
    """A container runtime's images."""

    async def has(self, image: str) -> bool:
        """Whether it has an image. Raises Unreachable, RemoteRefused, AccessDenied."""

    async def pull(self, image: str, auth: Mapping[str, str]) -> None:
        """Pull it; cancelled, the runtime stops. Raises the same, and NotFound."""


class Cri:
    """The ImageService on a runtime's unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def has(self, image: str) -> bool:
        request = _MESSAGES["ImageStatusRequest"](image={"image": image})
        answer = await self._call("ImageStatus", request, _STATUS_SECONDS)
        return bool(answer.image.id)

    async def pull(self, image: str, auth: Mapping[str, str]) -> None:
        request = _MESSAGES["PullImageRequest"](image={"image": image})
        if auth:
            request.auth.CopyFrom(_MESSAGES["AuthConfig"](**auth))
        await self._call("PullImage", request, _PULL_SECONDS)

    async def _call(self, method: str, request: Any, seconds: float) -> Any:
        channel = grpc.insecure_channel(f"unix:{self._socket}")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def ended() -> None:
            if not done.done():
                done.set_result(None)

        def tell(_: object) -> None:
            loop.call_soon_threadsafe(ended)

        call = channel.unary_unary(
            f"/{_PACKAGE}.ImageService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_MESSAGES[f"{method}Response"].FromString,
        ).future(request, timeout=seconds)
        try:
            call.add_done_callback(tell)
            await done
            return call.result()
        except grpc.RpcError as error:
            _refused(error, self._socket)
        finally:
            call.cancel()
            channel.close()


def _refused(error: grpc.RpcError, socket: Path) -> NoReturn:
    code, details = error.code(), error.details() or ""
    if "authorization" in details or "401" in details or "403" in details:
        raise AccessDenied(
            f"the container runtime may not pull it: {details}", hint="Check the pull secret."
        ) from error
    match code:
        case grpc.StatusCode.NOT_FOUND:
            raise NotFound(f"the container runtime finds no such image: {details}") from error
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            raise Unreachable(
                f"the container runtime at {socket} doesn't answer: {details}",
                hint="Check that it runs, and that the agent may open its socket.",
            ) from error
    raise RemoteRefused(f"the container runtime refused: {details}") from error


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
