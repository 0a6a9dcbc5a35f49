"""A client of a container runtime's ImageService, Container Runtime Interface (CRI) v1, on its unix socket.

Kubelet uses the same API, so it finds the images that are pulled here. The messages hold only the fields that are used;
field numbers are the specification's (kubernetes/cri-api, api.proto).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc

from cache_agent.net.protobuf import message_classes
from modelimage.errors import AccessDenied, NotFound, RemoteRefused, Unreachable

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
# CRI has no status code for a registry's refusal, so the text of the error has to tell.
_REFUSALS: Final = ("authorization failed", "access denied", "401 Unauthorized", "403 Forbidden")
_STATUS_SECONDS: Final = 10.0
# The runtime itself ends a pull that makes no progress; this only bounds the total.
_PULL_SECONDS: Final = 3600.0


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

        def wake(_: object) -> None:
            # gRPC calls back in a thread of its own.
            loop.call_soon_threadsafe(ended)

        call = channel.unary_unary(
            f"/{_PACKAGE}.ImageService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_MESSAGES[f"{method}Response"].FromString,
        ).future(request, timeout=seconds)
        try:
            call.add_done_callback(wake)
            await done
            return call.result()
        except grpc.RpcError as error:
            _refused(error, self._socket)
        finally:
            # When this coroutine is cancelled the RPC must end too: the runtime pulls for as long as it runs.
            call.cancel()
            channel.close()


def _refused(error: grpc.RpcError, socket: Path) -> NoReturn:
    code, details = error.code(), error.details() or ""
    # NOT_FOUND is certain, whatever its text says: registries word a missing repository as a denied one.
    if code is not grpc.StatusCode.NOT_FOUND and any(word in details for word in _REFUSALS):
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
