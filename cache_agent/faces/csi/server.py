"""The driver's gRPC: CSI's Identity and Node services, and the registration that kubelet looks for.

Translates messages to calls and errors to codes; decides nothing. kubelet shows a code's message in `describe pod`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import grpc

from cache_agent import errors as ours
from cache_agent.faces.csi import wire
from cache_agent.faces.csi.options import DRIVER, CsiOptions
from cache_agent.faces.csi.requests import parse_publish, parse_volume_id
from cache_agent.faces.csi.volumes import OtherVolume, StillPulling, Volumes
from cache_agent.mounter.orders import Target
from modelimage import errors
from modelimage.errors import NotWritable, WeightyardError

_THREADS: Final = 128
_LONGEST_SECONDS: Final = 110.0
# What is left of the caller's deadline for the answer to reach it.
_MARGIN_SECONDS: Final = 3.0
_STOP_SECONDS: Final = 5.0
Method = Callable[[Any, grpc.ServicerContext], Any]

# The most specific class that matches, from the top. kubelet tries all of them again.
_CODES: Final[tuple[tuple[type[WeightyardError], grpc.StatusCode], ...]] = (
    (StillPulling, grpc.StatusCode.ABORTED),
    (OtherVolume, grpc.StatusCode.ALREADY_EXISTS),
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
    """The gRPC code of an error; INTERNAL for what is this node's fault."""
    return next(
        (code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL
    )


@dataclass
class Driver:
    """The methods of the services, by name."""

    volumes: Volumes
    options: CsiOptions
    version: str
    registered: Callable[[bool, str], None] = lambda ok, error: None
    _answers: Mapping[str, Any] = field(default_factory=lambda: wire.MESSAGES)

    def identity(self) -> dict[str, Method]:
        info = self._answers["GetPluginInfoResponse"](name=DRIVER, vendor_version=self.version)
        ready = self._answers["ProbeResponse"](ready=self._answers["BoolValue"](value=True))
        nothing = self._answers["GetPluginCapabilitiesResponse"]()
        return {
            "GetPluginInfo": lambda request, context: info,
            "GetPluginCapabilities": lambda request, context: nothing,
            "Probe": lambda request, context: ready,
        }

    def node(self) -> dict[str, Method]:
        return {
            "NodePublishVolume": self._publish,
            "NodeUnpublishVolume": self._unpublish,
            "NodeGetVolumeStats": self._stats,
            "NodeGetCapabilities": lambda request, context: self._capabilities(),
            "NodeGetInfo": lambda request, context: self._answers["NodeGetInfoResponse"](
                node_id=self.options.node
            ),
        }

    def registration(self) -> dict[str, Method]:
        return {
            "GetInfo": lambda request, context: self._answers["PluginInfo"](
                type="CSIPlugin",
                name=DRIVER,
                endpoint=str(self.options.endpoint),
                supported_versions=["1.0.0"],
            ),
            "NotifyRegistrationStatus": self._note_registration,
        }

    def _publish(self, request: Any, context: grpc.ServicerContext) -> Any:
        wanted = parse_publish(
            volume_id=request.volume_id,
            target=request.target_path,
            attributes=dict(request.volume_context),
            secrets=dict(request.secrets),
            block=request.volume_capability.HasField("block"),
            kubelet=PurePosixPath(self.options.kubelet),
        )
        left = context.time_remaining()
        seconds = _LONGEST_SECONDS if left is None else left - _MARGIN_SECONDS
        self.volumes.publish(wanted, min(seconds, _LONGEST_SECONDS))
        return self._answers["NodePublishVolumeResponse"]()

    def _unpublish(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check_target(request.target_path)
        self.volumes.unpublish(parse_volume_id(request.volume_id), request.target_path)
        return self._answers["NodeUnpublishVolumeResponse"]()

    def _stats(self, request: Any, context: grpc.ServicerContext) -> Any:
        parse_volume_id(request.volume_id)
        self._check_target(request.volume_path)
        found = self.volumes.usage(request.volume_path)
        usage = self._answers["VolumeUsage"]
        return self._answers["NodeGetVolumeStatsResponse"](
            usage=[
                usage(total=found.size, used=found.size, unit=wire.UNIT_BYTES),
                usage(total=found.files, used=found.files, unit=wire.UNIT_INODES),
            ]
        )

    def _check_target(self, path: str) -> None:
        Target.parse(path, PurePosixPath(self.options.kubelet))

    def _capabilities(self) -> Any:
        rpc = self._answers["RPC"](type=wire.GET_VOLUME_STATS)
        capability = self._answers["NodeServiceCapability"](rpc=rpc)
        return self._answers["NodeGetCapabilitiesResponse"](capabilities=[capability])

    def _note_registration(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.registered(request.plugin_registered, request.error)
        return self._answers["RegistrationStatusResponse"]()


class CsiServer:
    """The driver on its two sockets, from `start` to `stop`. Raises NotWritable when it can't listen."""

    def __init__(self, driver: Driver) -> None:
        options = driver.options
        self._servers = [
            (options.endpoint, _server({"csi.v1.Identity": driver.identity(), "csi.v1.Node": driver.node()})),
            # Last, since kubelet calls the driver as soon as it sees this socket.
            (options.registration, _server({"pluginregistration.Registration": driver.registration()})),
        ]  # fmt: skip

    def start(self) -> None:
        for path, server in self._servers:
            _bind(server, path)
            server.start()

    def stop(self) -> None:
        """Let running calls end, and take the sockets away."""
        for path, server in reversed(self._servers):
            path.unlink(missing_ok=True)
            server.stop(_STOP_SECONDS).wait()


def _bind(server: grpc.Server, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        bound = server.add_insecure_port(f"unix:{path}")
    except (OSError, RuntimeError) as error:
        raise NotWritable(
            f"can't listen on {path}: {error}", hint="Check the mount of kubelet's directory."
        ) from error
    if not bound:
        raise NotWritable(f"can't listen on {path}")


def _server(services: Mapping[str, Mapping[str, Method]]) -> grpc.Server:
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="csi")
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
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
    request = wire.MESSAGES[_REQUESTS.get(name, f"{name}Request")]

    def call(message: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(message, context)
        except WeightyardError as error:
            hint = f" ({error.hint})" if error.hint else ""
            context.abort(code_of(error), f"{error.message}{hint}")

    return grpc.unary_unary_rpc_method_handler(
        call, request.FromString, lambda answer: answer.SerializeToString()
    )


_REQUESTS: Final = {"GetInfo": "InfoRequest", "NotifyRegistrationStatus": "RegistrationStatus"}
