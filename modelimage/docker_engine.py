"""Loads an image into a docker engine, or podman through the same API, with the docker SDK.

The engine takes a tar stream in the format of `docker save`: config, layers, and a manifest.json that names them. The
stream is generated while it is sent, without a second copy on disk. Needs the extra `engine`.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import docker
import docker.errors
import requests.exceptions

from modelimage import canonical, mediatypes, tar
from modelimage.descriptor import Descriptor, Platform, descriptors
from modelimage.digest import Digest
from modelimage.errors import (
    DigestMismatch,
    InvalidImage,
    NotFound,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.push import relayed
from modelimage.repository import ImageReader
from modelimage.resolve import list_models
from modelimage.tar import TarEntry

DEFAULT_HOST: Final = "unix:///var/run/docker.sock"

_Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class EngineImage:
    """One platform's image: its manifest's digest, its config, and its layers in order."""

    manifest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes to send."""
        return self.config.size + sum(layer.size for layer in self.layers)


def image_for(reader: ImageReader, root: Descriptor, platform: Platform) -> EngineImage:
    """The image for a platform below an index or manifest. Raises NotFound, InvalidImage."""
    manifests = list_models(reader, root)
    # A single manifest was chosen by the user, for example by digest, so its platform isn't compared.
    named_alone = manifests == [root]
    chosen = [each for each in manifests if named_alone or each.platform == platform]
    if not chosen:
        raise NotFound(
            f"the image has no manifest for {platform.os}/{platform.architecture}",
            hint="Name another image or tag.",
        )
    what = f"manifest {chosen[0].digest}"
    document = canonical.parse(reader.manifest(chosen[0]), what=what)
    config = Descriptor.from_json(document.get("config"))
    if config.media_type != mediatypes.OCI_CONFIG:
        raise InvalidImage(
            f"{chosen[0].digest} isn't a container image but {config.media_type}",
            hint="Name the image's index instead: the tag without -modelpack.",
        )
    layers = descriptors(document, "layers", what=what)
    return EngineImage(chosen[0].digest, config, tuple(layers))


def archive(
    reader: ImageReader, image: EngineImage, names: Sequence[str], advance: _Advance
) -> Iterator[bytes]:
    """The tar stream for `docker load`. Verifies every blob; raises DigestMismatch before a bad blob is complete."""
    # Layers with equal digests share one path in the archive, so each blob is sent once.
    unique = {blob.digest: blob for blob in (image.config, *image.layers)}
    for blob in unique.values():
        yield tar.header(TarEntry(_path(blob), size=blob.size))
        yield from _checked(reader, blob, advance)
        yield bytes(tar.padding(blob.size))
    listed = [
        {
            "Config": _path(image.config),
            "RepoTags": list(names),
            "Layers": [_path(layer) for layer in image.layers],
        }
    ]
    data = canonical.to_bytes(listed)
    yield tar.header(TarEntry("manifest.json", size=len(data)))
    yield data + bytes(tar.padding(len(data))) + tar.TRAILER


class DockerEngine:
    """The docker engine selected by the environment, with its TLS settings (DOCKER_HOST and so on)."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        _check_socket(environment.get("DOCKER_HOST") or DEFAULT_HOST)
        with _engine_errors():
            self._client = docker.from_env(environment=dict(environment))

    def platform(self) -> Platform:
        """The platform of the engine's containers. Raises Unreachable."""
        with _engine_errors():
            version = self._client.version()
        return Platform("linux", str(version.get("Arch", "amd64")))

    def load(self, stream: Iterator[bytes]) -> None:
        """Load an archive. Raises RemoteRefused, Unreachable, and any error of the stream."""
        with _engine_errors():
            # No timeout: the engine unpacks a large image for minutes after the last byte without sending anything.
            self._client.api.timeout = cast("int", None)
            # The SDK sends an iterator in HTTP chunks, but its types accept only files.
            self._client.images.load(cast("Any", stream))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _check_socket(host: str) -> None:
    """Raise Unreachable when nothing listens; on this error the SDK would leak its own socket."""
    scheme, _, path = host.partition("://")
    # Only a socket's file can be tried without a handshake; for TCP the SDK's own error must do.
    if scheme != "unix":
        return
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except OSError as error:
        raise _unreachable(error) from error


@contextlib.contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except docker.errors.APIError as error:
        raise RemoteRefused(
            f"the docker engine refuses: {error.explanation or error}",
            hint="See the engine's log.",
        ) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise _unreachable(error) from error


def _path(blob: Descriptor) -> str:
    return f"blobs/sha256/{blob.digest.hex}"


def _checked(reader: ImageReader, blob: Descriptor, advance: _Advance) -> Iterator[bytes]:
    hasher, held = hashlib.sha256(), b""
    for buffer in relayed(reader, blob).read(0):
        hasher.update(buffer)
        advance(len(buffer))
        # The last buffer is held back until the digest is verified: the engine never gets a complete wrong blob.
        if held:
            yield held
        held = bytes(buffer)
    if Digest(hasher.hexdigest()) != blob.digest:
        raise DigestMismatch(
            f"blob {blob.digest} doesn't match its digest", hint="Try again, or push it again."
        )
    yield held


def _unreachable(error: Exception) -> WeightyardError:
    return Unreachable(
        f"can't talk to the docker engine: {error}",
        hint="Start it, or say where it is with DOCKER_HOST.",
    )
