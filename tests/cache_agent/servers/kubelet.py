"""kubelet's side of CSI: its directories, its gRPC client, and the calls that a pod's volume makes it do.

It speaks with the specification's own messages; only kubelet's registration, which has none to read, with ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from cache_agent.servers.csi.messages import MESSAGES, REGISTRATION
from tests.cache_agent.mounter.mounters import volume
from tests.cache_agent.servers.csi_spec import message

PREFIX = "csi.storage.k8s.io/"


@dataclass
class Kubelet:
    """Speaks CSI as kubelet does for inline volumes with podInfoOnMount. `directory` is its own."""

    directory: Path
    channels: list[grpc.Channel] = field(default_factory=list)

    def __enter__(self) -> Self:
        for name in ("pods", "plugins", "plugins_registry"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self.channels:
            channel.close()

    def register(self) -> Any:
        """Find the plugin by its registration socket, as the plugin watcher does; its info."""
        (path,) = (self.directory / "plugins_registry").glob("*.sock")
        info = self._call(
            path, "pluginregistration.Registration", "GetInfo", "InfoRequest", "PluginInfo"
        )
        self._call(
            path, "pluginregistration.Registration", "NotifyRegistrationStatus", "RegistrationStatus",
            "RegistrationStatusResponse", plugin_registered=True,
        )  # fmt: skip
        return info

    def call(self, service: str, method: str, seconds: float | None = None, **fields: Any) -> Any:
        """One call to the driver, which takes as long as it takes unless it has `seconds`. Raises grpc.RpcError."""
        path = self.directory / "plugins/cache.weightyard.dev/csi.sock"
        return self._call(
            path, f"csi.v1.{service}", method, f"{method}Request", f"{method}Response", seconds, **fields
        )  # fmt: skip

    def publish(
        self,
        pod: str,
        image: str,
        *,
        variant: str | None = None,
        secrets: Mapping[str, str] | None = None,
        seconds: float | None = None,
        **changed: Any,
    ) -> str:
        """Publish an image for a pod; the target. `changed` replaces fields of the request.

        Without `seconds` it asks again, as kubelet does, for as long as it is told that the model is on its way.
        """
        target = volume(self.directory, pod)
        request = publish_request(pod, target, image, variant, secrets) | changed
        while True:
            try:
                self.call("Node", "NodePublishVolume", seconds, **request)
            except grpc.RpcError as error:
                if seconds is None and error.code() is grpc.StatusCode.ABORTED:
                    continue
                raise
            return target

    def unpublish(self, pod: str, target: str | None = None) -> None:
        """Unpublish a pod's volume."""
        path = target or volume(self.directory, pod)
        self.call("Node", "NodeUnpublishVolume", volume_id=f"csi-{pod}", target_path=path)

    def forget(self, pod: str) -> None:
        """Remove a pod's directories, as after its end."""
        shutil.rmtree(self.directory / "pods" / pod)

    def _call(
        self,
        path: Path,
        service: str,
        method: str,
        request: str,
        answer: str,
        seconds: float | None = None,
        **fields: Any,
    ) -> Any:
        channel = grpc.insecure_channel(
            f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.channels.append(channel)
        call: Callable[..., Any] = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_message(answer).FromString,
        )
        return call(_message(request)(**fields), timeout=seconds, wait_for_ready=True)


def publish_request(
    pod: str,
    target: str,
    image: str,
    variant: str | None = None,
    secrets: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What kubelet asks for an inline volume with podInfoOnMount: the fields of a NodePublishVolumeRequest."""
    context = {
        "image": image,
        f"{PREFIX}ephemeral": "true",
        f"{PREFIX}pod.uid": pod,
        f"{PREFIX}pod.name": "a",
        f"{PREFIX}pod.namespace": "b",
        f"{PREFIX}serviceAccount.name": "default",
        **({"variant": variant} if variant else {}),
    }
    return {
        "volume_id": f"csi-{pod}",
        "target_path": target,
        "volume_capability": message("VolumeCapability")(
            mount=message("VolumeCapability.MountVolume")(),
            access_mode=message("VolumeCapability.AccessMode")(mode=1),
        ),
        "readonly": True,
        "secrets": dict(secrets or {}),
        "volume_context": context,
    }


def _message(name: str) -> Any:
    ours = MESSAGES.get(name)
    registration = ours is not None and ours.DESCRIPTOR.file.package == REGISTRATION
    return ours if registration else message(name)
