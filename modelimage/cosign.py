"""Signs and verifies images with a key pair, offline, compatible with cosign.

The format is cosign's (sigstore/cosign, specs/SIGNATURE_SPEC.md): a "simple signing" payload with the manifest's
digest, its signature in an annotation, under the tag `sha256-<hex>.sig`. The signature manifest also has the image as
its subject, so it is listed as a referrer. A sigstore bundle says the same to newer tools. Needs the extra `sign`.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    InvalidImage,
    NotFound,
    WeightyardError,
)
from modelimage.keys import PrivateKey, PublicKey, is_signed_by, sign_bytes
from modelimage.publication import Document
from modelimage.push import read_tree
from modelimage.referrers import (
    Artifact,
    ArtifactFile,
    LeaveOut,
    attach,
    cosign_tags,
    ignore,
    list_referrers,
    make_artifact,
    read_files,
)
from modelimage.repository import ImageReader, ImageWriter
from modelimage.signature_bundle import MEDIA_TYPE as BUNDLE_TYPE
from modelimage.signature_bundle import bundle_artifact, is_signature

ARTIFACT_TYPE: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
# A payload names one digest.
_MAX_PAYLOAD_BYTES: Final = 1 << 20
_CLAIM: Final = "cosign container image signature"


class NotSigned(AccessDenied):
    """The image has no signature."""


class BadSignature(AccessDenied):
    """The image has signatures, but none of this image by an accepted key."""


def payload(name: str, digest: Digest) -> bytes:
    """The payload to sign. `name` is the image's reference at signing time; only the digest is verified."""
    return canonical.to_bytes(
        {
            "critical": {
                "identity": {"docker-reference": name},
                "image": {"docker-manifest-digest": str(digest)},
                "type": _CLAIM,
            },
            "optional": None,
        }
    )


def signature_tag(subject: Digest) -> str:
    """The tag where cosign, podman, skopeo and CRI-O look for signatures."""
    return cosign_tags(subject)[0]


def sign(
    reader: ImageReader, writer: ImageWriter, subject: Descriptor, key: PrivateKey, *, name: str
) -> Digest:
    """Add a signature to the existing ones, and a sigstore bundle beside it; return the digest of their manifest.

    `name`: the reference that the signature is for; with a tag, policies that compare whole references accept it.
    Does nothing if there is already a signature of this name by this key.
    """
    # What can't be read is no signature of anybody's, so nothing is lost with it.
    found = list(_tagged(reader, subject.digest, ignore))
    data = payload(name, subject.digest)
    # ECDSA signatures contain a random number: signing again would add a second one on each run.
    public = [key.public_key()]
    bundles = _bundles(reader, subject, ignore)
    if not any(is_signature(file.data, subject.digest, public) for file in bundles):
        attach(writer, bundle_artifact(subject, key))
    if any(file.data == data and _accepted(file, subject.digest, public) for file in found):
        return reader.resolve(signature_tag(subject.digest)).digest
    encoded = base64.b64encode(sign_bytes(key, data)).decode()
    # The signatures of others are kept: all of them are in one manifest, which this one replaces.
    mine = ArtifactFile("payload.json", PAYLOAD_TYPE, data, {SIGNATURE_ANNOTATION: encoded})
    artifact = _artifact(subject, [*found, mine])
    # cosign looks under this tag only; the subject makes registries list the signature as a referrer, too.
    attach(writer, artifact, signature_tag(subject.digest))
    return artifact.manifest.descriptor.digest


def sign_all(
    reader: ImageReader, writer: ImageWriter, root: Descriptor, key: PrivateKey, *, name: str
) -> dict[Digest, Digest]:
    """Sign an image and every manifest in it; return the digests of the signatures by manifest, the image's own last.

    Container runtimes check the signature of their platform's manifest, not of the index that lists it.
    """
    manifests = [document.descriptor for document in read_tree(reader, root).manifests]
    return {each.digest: sign(reader, writer, each, key, name=name) for each in manifests}


def verify(reader: ImageReader, subject: Descriptor, keys: Sequence[PublicKey]) -> None:
    """Verify a signature in any of the places that it may be in: cosign's tag, a referrer, a sigstore bundle.

    Raises NotSigned if there are none, BadSignature if none for this digest is by one of `keys`.
    """
    left_out: list[WeightyardError] = []
    found = 0
    # One by one, the usual place first: mostly the first one is accepted.
    for is_accepted in _signatures(reader, subject, keys, left_out.append):
        if is_accepted:
            return
        found += 1
    if not found and not left_out:
        raise NotSigned(
            f"{subject.digest} isn't signed", hint="Sign it with `weightyard sign --key`."
        )
    unread = f" ({left_out[0].message})" if left_out else ""
    raise BadSignature(
        f"{subject.digest} isn't signed with an accepted key{unread}",
        hint="Check which key signed the image. Don't use it until a trusted key has signed it.",
    )


def _signatures(
    reader: ImageReader, subject: Descriptor, keys: Sequence[PublicKey], leave_out: LeaveOut
) -> Iterator[bool]:
    """For each signature in any place, whether it is of this manifest and by one of the keys."""
    payloads = itertools.chain(
        _tagged(reader, subject.digest, leave_out),
        _referred(reader, subject, ARTIFACT_TYPE, _is_payload, leave_out),
    )
    for file in payloads:
        yield _accepted(file, subject.digest, keys)
    for file in _bundles(reader, subject, leave_out):
        yield is_signature(file.data, subject.digest, keys)


def _tagged(reader: ImageReader, subject: Digest, leave_out: LeaveOut) -> Iterator[ArtifactFile]:
    try:
        manifest = reader.resolve(signature_tag(subject))
    except NotFound:
        return
    # Anyone who may push can move the tag: that mustn't hide what is attached.
    except (InvalidImage, DigestMismatch) as error:
        leave_out(error)
        return
    yield from read_files(reader, manifest, _is_payload, leave_out)


def _bundles(
    reader: ImageReader, subject: Descriptor, leave_out: LeaveOut
) -> Iterator[ArtifactFile]:
    return _referred(
        reader, subject, BUNDLE_TYPE, lambda layer: layer.size <= _MAX_PAYLOAD_BYTES, leave_out
    )


def _referred(
    reader: ImageReader,
    subject: Descriptor,
    kind: str,
    wanted: Callable[[Descriptor], bool],
    leave_out: LeaveOut,
) -> Iterator[ArtifactFile]:
    """The files of the referrers of one type."""
    for referrer in list_referrers(reader, subject, kind, leave_out):
        yield from read_files(reader, referrer, wanted, leave_out)


def _is_payload(layer: Descriptor) -> bool:
    # Anyone who may push can add a layer to the tag: one that isn't a payload mustn't hide the valid ones.
    return layer.media_type == PAYLOAD_TYPE and layer.size <= _MAX_PAYLOAD_BYTES


def _accepted(file: ArtifactFile, subject: Digest, keys: Sequence[PublicKey]) -> bool:
    # The payload must name this digest: a valid signature of another image could be copied under this tag.
    return _names(file.data, subject) and any(
        is_signed_by(key, _raw(file), file.data) for key in keys
    )


def _names(data: bytes, subject: Digest) -> bool:
    """Whether a payload is for this digest. The payload is untrusted until its signature has been verified."""
    try:
        critical = canonical.parse(data, what="a signature's payload").get("critical")
    # Anyone who may push can add a payload to the tag: one that can't be read mustn't hide the valid ones.
    except InvalidImage:
        return False
    if not isinstance(critical, dict) or critical.get("type") != _CLAIM:
        return False
    image = critical.get("image")
    return isinstance(image, dict) and image.get("docker-manifest-digest") == str(subject)


def _raw(file: ArtifactFile) -> bytes:
    try:
        return base64.b64decode(file.annotations.get(SIGNATURE_ANNOTATION, ""), validate=True)
    # A malformed signature counts as none: another one may still be valid.
    except ValueError:
        return b""


def _artifact(subject: Descriptor, signatures: Sequence[ArtifactFile]) -> Artifact:
    # cosign reads only the layers, but registries and scanners expect an image config as well.
    config = canonical.to_bytes(
        {
            "architecture": "",
            "config": {},
            "os": "",
            "rootfs": {
                "type": "layers",
                "diff_ids": [str(Digest.of(each.data)) for each in signatures],
            },
        }
    )
    return make_artifact(
        subject,
        ARTIFACT_TYPE,
        signatures,
        config=Document.from_bytes(mediatypes.OCI_CONFIG, config),
    )
