"""The driver's gRPC services: CSI Identity and Node, and kubelet's plugin registration.

Translates messages to calls and errors to status codes; decides nothing. Kubelet shows an error's message in
`describe pod`. Calls run in the agent's event loop, because a thread for each would cost more than publishing does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import grpc
import grpc.aio

from cache_agent import errors as ours
from cache_agent.api.shared_names import CSI_DRIVER
from cache_agent.mounter.orders import VolumeTarget
from cache_agent.servers.csi import messages
from cache_agent.servers.csi.driver_options import CsiOptions
from cache_agent.servers.csi.requests import Capability, parse_publish, parse_volume_id
from cache_agent.servers.csi.volumes import StillPulling, VolumeConflict, Volumes
from modelimage import errors
from modelimage.errors import InvalidInput, NotFound, NotWritable, WeightyardError

# Below kubelet's two minutes per CSI call (csiTimeout), so that pods show our error and not a deadline.
_LONGEST_SECONDS: Final = 110.0
# Time reserved for the reply to arrive before the caller's deadline.
_MARGIN_SECONDS: Final = 3.0
_STOP_SECONDS: Final = 5.0
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Context], Awaitable[Any]]

# The first class that matches wins, so subclasses come before their bases. Kubelet retries after every code.
_CODES: Final[tuple[tuple[type[WeightyardError], grpc.StatusCode], ...]] = (
    (StillPulling, grpc.StatusCode.ABORTED),
    (VolumeConflict, grpc.StatusCode.ALREADY_EXISTS),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AccessDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.UnknownVariant, grpc.StatusCode.NOT_FOUND),
    (errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NoSpace, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.InUse, grpc.StatusCode.FAILED_PRECONDITION),
    (ours.Cancelled, grpc.StatusCode.ABORTED),
    (errors.Busy, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Unreachable, grpc.StatusCode.UNAVAILABLE),
    (errors.TimedOut, grpc.StatusCode.ABORTED),
    (errors.InvalidImage, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.DigestMismatch, grpc.StatusCode.DATA_LOSS),
)


def code_of(error: WeightyardError) -> grpc.StatusCode:
    """The gRPC code of an error; INTERNAL for this node's own faults."""
    return next(
        (code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL
    )


@dataclass
class Driver:
    """The implementation of the three services: for each a mapping of method names to coroutines."""

    volumes: Volumes
    options: CsiOptions
    version: str
    # Called with kubelet's verdict on the registration, and its error.
    registered: Callable[[bool, str], None] = lambda ok, error: None
    _answers: Mapping[str, Any] = field(default_factory=lambda: messages.MESSAGES)

    def identity(self) -> dict[str, Method]:
        info = self._answers["GetPluginInfoResponse"](name=CSI_DRIVER, vendor_version=self.version)
        ready = self._answers["ProbeResponse"](ready=self._answers["BoolValue"](value=True))
        nothing = self._answers["GetPluginCapabilitiesResponse"]()
        return {
            "GetPluginInfo": _always(info),
            "GetPluginCapabilities": _always(nothing),
            "Probe": _always(ready),
        }

    def node(self) -> dict[str, Method]:
        return {
            "NodePublishVolume": self._publish,
            "NodeUnpublishVolume": self._unpublish,
            "NodeGetVolumeStats": self._stats,
            "NodeGetCapabilities": _always(self._capabilities()),
            "NodeGetInfo": _always(self._answers["NodeGetInfoResponse"](node_id=self.options.node)),
        }

    def registration(self) -> dict[str, Method]:
        return {
            "GetInfo": _always(
                self._answers["PluginInfo"](
                    type="CSIPlugin",
                    name=CSI_DRIVER,
                    endpoint=str(self.options.endpoint),
                    supported_versions=["1.0.0"],
                )
            ),
            "NotifyRegistrationStatus": self._note_registration,
        }

    async def _publish(self, request: Any, context: Context) -> Any:
        capability = request.volume_capability
        wanted = parse_publish(
            volume_id=request.volume_id,
            target=request.target_path,
            attributes=dict(request.volume_context),
            secrets=dict(request.secrets),
            capability=Capability(
                block=capability.HasField("block"),
                mount=capability.HasField("mount"),
                access_mode=capability.access_mode.mode,
            ),
            readonly=request.readonly,
            kubelet=PurePosixPath(self.options.kubelet),
        )
        left = context.time_remaining()
        seconds = _LONGEST_SECONDS if left is None else left - _MARGIN_SECONDS
        await self.volumes.publish(wanted, min(seconds, _LONGEST_SECONDS))
        return self._answers["NodePublishVolumeResponse"]()

    async def _unpublish(self, request: Any, context: Context) -> Any:
        volume_id = parse_volume_id(request.volume_id)
        self._target(request.target_path)
        await self.volumes.unpublish(volume_id, request.target_path)
        return self._answers["NodeUnpublishVolumeResponse"]()

    async def _stats(self, request: Any, context: Context) -> Any:
        volume_id = parse_volume_id(request.volume_id)
        if not request.volume_path:
            raise InvalidInput("the volume's path is missing")
        try:
            place = self._target(request.volume_path)
        except InvalidInput as error:
            # The specification's answer for a path at which the volume isn't.
            raise NotFound(error.message) from error
        found = await self.volumes.usage(volume_id, request.volume_path, place.pod)
        usage = self._answers["VolumeUsage"]
        return self._answers["NodeGetVolumeStatsResponse"](
            usage=[
                usage(total=found.size, used=found.size, unit=messages.UNIT_BYTES),
                usage(total=found.files, used=found.files, unit=messages.UNIT_INODES),
            ]
        )

    def _target(self, path: str) -> VolumeTarget:
        # Paths come from outside: none but kubelet's volume directories may reach the mounter.
        return VolumeTarget.parse(path, PurePosixPath(self.options.kubelet))

    def _capabilities(self) -> Any:
        rpc = self._answers["RPC"](type=messages.GET_VOLUME_STATS)
        capability = self._answers["NodeServiceCapability"](rpc=rpc)
        return self._answers["NodeGetCapabilitiesResponse"](capabilities=[capability])

    async def _note_registration(self, request: Any, context: Context) -> Any:
        self.registered(request.plugin_registered, request.error)
        return self._answers["RegistrationStatusResponse"]()


class CsiServer:
    """Serves the driver on its two sockets, from `start` to `stop`. `start` raises NotWritable when it can't listen."""

    def __init__(self, driver: Driver) -> None:
        options = driver.options
        self._servers = [
            (options.endpoint, _server({"csi.v1.Identity": driver.identity(), "csi.v1.Node": driver.node()})),
            # Registration comes last: kubelet calls the driver as soon as this socket exists.
            (options.registration, _server({"pluginregistration.Registration": driver.registration()})),
        ]  # fmt: skip

    async def start(self) -> None:
        for path, server in self._servers:
            _bind(server, path)
            await server.start()

    async def stop(self) -> None:
        """Remove the sockets, registration first, and let running calls end for up to 5 seconds."""
        # A socket is removed before its server stops, so that kubelet makes no new calls meanwhile.
        for path, server in reversed(self._servers):
            path.unlink(missing_ok=True)
            await server.stop(_STOP_SECONDS)


def _always(answer: Any) -> Method:
    async def method(request: Any, context: Context) -> Any:
        return answer

    return method


def _bind(server: grpc.aio.Server, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        # The socket of a crashed agent was removed above: it would make this bind fail.
        bound = server.add_insecure_port(f"unix:{path}")
    except (OSError, RuntimeError) as error:
        raise NotWritable(
            f"can't listen on {path}: {error}", hint="Check the mount of kubelet's directory."
        ) from error
    if not bound:
        raise NotWritable(f"can't listen on {path}")


def _server(services: Mapping[str, Mapping[str, Method]]) -> grpc.aio.Server:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(
                service, {name: _handler(name, method) for name, method in methods.items()}
            )
            for service, methods in services.items()
        )
    )
    return server


def _handler(name: str, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
    request = messages.MESSAGES[_REQUESTS.get(name, f"{name}Request")]

    async def call(message: Any, context: Context) -> Any:
        try:
            return await method(message, context)
        # Any other exception is a bug: gRPC logs it and answers UNKNOWN.
        except WeightyardError as error:
            hint = f" ({error.hint})" if error.hint else ""
            await context.abort(code_of(error), f"{error.message}{hint}")

    return grpc.unary_unary_rpc_method_handler(
        call, request.FromString, lambda answer: answer.SerializeToString()
    )


_REQUESTS: Final = {"GetInfo": "InfoRequest", "NotifyRegistrationStatus": "RegistrationStatus"}
