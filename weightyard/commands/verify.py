"""`weightyard verify`: reads all of an image or a model directory and lists its problems."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from builder.verifier import (
    Verification,
    image_contents,
    read_record,
    verify_directory,
    verify_foreign,
    verify_image,
)
from modelimage.access import Access, open_reader
from modelimage.checkpoint_files import CONFIG
from modelimage.errors import InvalidInput
from modelimage.foreign import describe_foreign, resolve_ours
from modelimage.path_rules import RECORD_NAME
from modelimage.reference import EngineReference, parse_image
from weightyard.console import Console, pass_console
from weightyard.options import PathName, access_options
from weightyard.text import format_bytes, plural


@click.command(
    epilog="""\b
Examples:
  weightyard verify oci:./out:v1
  weightyard verify registry.example/team/model:v1
  weightyard verify ~/.cache/weightyard/store/models/<key>
"""
)
@click.argument("target", metavar="IMAGE|DIR")
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=PathName(exists=True, dir_okay=False),
    help="Also require a signature by this public key (PEM). Repeatable; one of several keys is enough.",
)
@click.option(
    "--signature-only", is_flag=True, help="Check the signature by --key, and read no weights."
)
@access_options
@pass_console
def verify(
    console: Console,
    /,
    *,
    target: str,
    keys: tuple[Path, ...],
    signature_only: bool,
    access: Access,
) -> None:
    """Check every byte of an image, or of an unpacked model directory.

    Every blob is read and compared with its digest, every file in it with the record; of a foreign image, the digests
    of its decompressed layers and the paths in them. All problems are listed; the exit code is 5 when there is one.
    """
    directory = Path(target)
    # Signatures first: an unsigned image isn't worth reading.
    if signature_only and not keys:
        raise InvalidInput("--signature-only needs a key", hint="Add --key FILE.")
    digest, signers = _check_signature(target, keys, access) if keys else (None, ())
    signed: dict[str, Any] = {"digest": digest, "signedBy": list(signers)} if keys else {}
    if signers:
        console.say(f"{digest} is signed by {', '.join(signers)}")
    if signature_only:
        console.result({"target": target, **signed}, f"{target} is signed by {', '.join(signers)}")
        return
    verification = (
        _directory(console, directory)
        if directory.is_dir()
        else _image(console, target, access, signed=digest)
    )
    for problem in verification.problems:
        console.say(f"{problem.where}: {problem.what}")
        console.event("problem", where=problem.where, what=problem.what)
    verification.raise_problems()
    document: dict[str, Any] = {
        "target": target,
        "checked": verification.checked,
        "size": verification.size,
        **signed,
    }
    if verification.original is not None:
        console.say(f"note: {verification.original}")
        document["original"] = verification.original.to_json()
    console.result(
        document,
        f"{target} is intact: {plural(verification.checked, 'part')}, {format_bytes(verification.size)}",
    )


def _check_signature(
    target: str, keys: tuple[Path, ...], access: Access
) -> tuple[str, tuple[str, ...]]:
    """The digest, and the files of those keys that signed it. Raises NotSigned, BadSignature when none did."""
    # Imported late: only signatures need the extra with the cryptography package.
    from modelimage import cosign  # noqa: PLC0415
    from modelimage.keys import load_public_key  # noqa: PLC0415

    reference = parse_image(target)
    if Path(target).is_dir() or isinstance(reference, EngineReference):
        raise InvalidInput(
            f"{target} can't hold signatures",
            hint="Give --key with an image: oci:DIR:TAG or a registry's.",
        )
    reader = open_reader(reference, access)
    accepted = {str(path): load_public_key(path.read_bytes()) for path in keys}
    root = reader.resolve(reference.name)
    cosign.verify(reader, root, list(accepted.values()))
    signers = []
    for path, key in accepted.items():
        with suppress(cosign.BadSignature):
            cosign.verify(reader, root, [key])
            signers.append(path)
    return str(root.digest), tuple(signers)


def _image(console: Console, target: str, access: Access, *, signed: str | None) -> Verification:
    """Verify the manifest whose signature was checked, if one was: a tag may have moved since, or its registry lie."""
    reference = parse_image(target)
    if isinstance(reference, EngineReference):
        raise InvalidInput(
            f"can't verify {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    reader = open_reader(reference, access)
    # Without a record there are no file digests to compare with: only layers and paths are checked.
    root = reader.resolve(signed or reference.name)
    if resolve_ours(reader, root) is None:
        model = describe_foreign(reader, root)
        size = sum(layer.descriptor.size for layer in model.layers)
        console.say(f"This is another's image ({model.kind.value}): its layers are checked.")
        with console.progress("verifying", size) as progress:
            return verify_foreign(reader, model, progress.advance)
    contents = image_contents(reader, str(root.digest))
    if not contents.records:
        console.say("This image has no weightyard record: only its blobs' digests are checked.")
    with console.progress("verifying", contents.size) as progress:
        return verify_image(reader, contents, progress.advance)


def _directory(console: Console, directory: Path) -> Verification:
    if not (directory / RECORD_NAME).exists() and (directory / "oci-layout").exists():
        raise InvalidInput(
            f"{directory} is an OCI layout, not a model directory",
            hint=f"Write oci:{directory}[:TAG].",
        )
    if not (directory / RECORD_NAME).exists():
        raise InvalidInput(
            f"{directory} is {_what(directory)}: it has no {RECORD_NAME} to compare its files with",
            hint=f"Pack it with `weightyard build {directory} --to IMAGE`, and verify the image."
            if (directory / CONFIG).exists()
            else "Give an image, or the directory of a pulled model: `weightyard pull` prints it.",
        )
    record = read_record(directory)
    with console.progress("verifying", record.size) as progress:
        return verify_directory(directory, record, progress.advance)


def _what(directory: Path) -> str:
    if (directory / CONFIG).exists():
        return "a plain checkpoint"
    return "an empty directory" if not any(directory.iterdir()) else "no model directory"
