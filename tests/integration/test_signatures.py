"""Signatures as container runtimes find and check them, before and after a copy."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import single
from tests.servers import skopeo
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers


@dataclass(frozen=True)
class Signed:
    """An image with a signature in one registry, its copy in another, and one without in both."""

    image: str
    copied: str
    unsigned: str
    key: Path


@pytest.fixture(scope="module")
def registries() -> Iterator[tuple[str, str]]:
    with DockerRegistry() as first, DockerRegistry() as second:
        yield first.host, second.host


@pytest.fixture
def signed(
    registries: tuple[str, str],
    unique_name: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Signed:
    first, second = registries
    name, private, public = unique_name("signed/model"), tmp_path / "key.pem", tmp_path / "key.pub"
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run(["openssl", "genpkey", *curve, "-out", private], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "pkey", "-in", private, "-pubout", "-out", public],
        check=True,
        capture_output=True,
    )
    image, unsigned = f"{first}/{name}:v1", f"{first}/{unique_name('unsigned/model')}:v1"
    source = single(tmp_path / "source")
    for each in (image, unsigned):
        build_here(source, each, tmp_path)
    commands = (
        ("sign", image, "--key", private),
        ("copy", image, f"{second}/{name}:v1"),
        ("verify", f"{second}/{name}:v1", "--key", public),
    )
    for command in commands:
        outcome = weightyard_here(capsys, *command)
        assert outcome.code == 0, outcome.err
    return Signed(image, f"{second}/{name}:v1", unsigned, public)


def found_by_skopeo(image: str, directory: Path) -> list[dict[str, Any]]:
    """The sigstore signatures of this platform's manifest that skopeo carries along from a registry."""
    attached = directory / "registries.d"
    attached.mkdir(parents=True)
    (attached / "default.yaml").write_text("default-docker:\n  use-sigstore-attachments: true\n")
    options = ("--src-tls-verify=false", f"--registries.d={attached}")
    skopeo.run_skopeo("copy", *options, f"docker://{image}", f"dir:{directory / 'copy'}")
    prefix = b"\0sigstore-json\n"
    return [
        json.loads(path.read_bytes().removeprefix(prefix))
        for path in sorted((directory / "copy").glob("signature-*"))
        if path.read_bytes().startswith(prefix)
    ]


def assert_satisfies_policy(
    found: dict[str, Any], manifest: Path, reference: str, key: Path, scratch: Path
) -> None:
    """What containers-policy.json(5) demands for sigstoreSigned with a keyPath and its default signedIdentity.

    Debian builds podman and skopeo without this check, so openssl and this function stand for it.
    """
    payload, signature = scratch / "payload", scratch / "signature"
    payload.write_bytes(base64.b64decode(found["payload"]))
    encoded = found["annotations"]["dev.cosignproject.cosign/signature"]
    signature.write_bytes(base64.b64decode(encoded))
    check = ["openssl", "dgst", "-sha256", "-verify", key, "-signature", signature, payload]
    assert "Verified OK" in subprocess.run(check, check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    # Exactly these members: the policy refuses payloads with any other.
    assert json.loads(payload.read_bytes()) == {
        "critical": {
            "type": "cosign container image signature",
            "image": {"docker-manifest-digest": f"sha256:{digest}"},
            "identity": {"docker-reference": reference},
        },
        "optional": None,
    }


def test_the_platform_s_manifest_has_a_signature_where_runtimes_look(
    signed: Signed, tmp_path: Path
) -> None:
    for number, image in enumerate((signed.image, signed.copied)):
        directory = tmp_path / str(number)
        (found,) = found_by_skopeo(image, directory)
        # A copy is signed as what it was copied from; policies name that with remapIdentity.
        assert_satisfies_policy(
            found, directory / "copy/manifest.json", signed.image, signed.key, directory
        )
    assert found_by_skopeo(signed.unsigned, tmp_path / "unsigned") == []
