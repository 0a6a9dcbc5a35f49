"""Builds a workspace's Hub or S3 model once, into an OCI layout under the cache's root.

Builder, variants and tag are the same as in a cluster, but the target is local, so no registry is needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from builder.build import BuildOptions, BuildTools, build
from builder.destination import open_destination
from builder.digest_cache import DigestCache
from builder.sources.factory import open_source
from builder.variants import chosen_variants
from modelimage.access import Access, open_reader
from modelimage.errors import NotFound
from modelimage.reference import LayoutReference
from weightyard.console import Console
from workspace.schema import Workspace
from workspace.sources import build_tag, is_pinned, source_uri, variants

_FOLDER: Final = "built"


def with_image(
    workspace: Workspace, *, checkpoint: Path | None = None, root: Path, access: Access,
    console: Console, environ: Mapping[str, str] = os.environ,
) -> Workspace:  # fmt: skip
    """The workspace with a local image as its model: built from `checkpoint`, or from the model's source.

    One that already names an image is returned unchanged. Raises the build's errors. An interrupted build resumes at
    the next call.
    """
    source = str(checkpoint) if checkpoint else source_uri(workspace.spec.model)
    if source is None:
        return workspace
    tag = _directory_tag(checkpoint) if checkpoint else build_tag(workspace)
    image = LayoutReference((root / _FOLDER / "images").absolute(), tag)
    # A directory may have changed since; its unchanged files aren't read again.
    if checkpoint or not _is_there(image, access):
        console.say(f"building {source} into an image of this machine")
        build(
            open_source(source, environ),
            open_destination(image, access),
            BuildOptions(variants=chosen_variants(variants(workspace))),
            BuildTools(DigestCache(root / _FOLDER / "digests"), root / _FOLDER / "work", console),
        )
    # A commit's image can't change either: whoever allowed the model's own code read it in that commit.
    if is_pinned(workspace.spec.model):
        image = replace(image, digest=open_reader(image, access).resolve(image.name).digest)
    document = workspace.to_document()
    model = {k: v for k, v in document["spec"]["model"].items() if k not in ("hub", "s3", "build")}
    document["spec"]["model"] = {**model, "image": str(image)}
    return Workspace.model_validate(document)


def _directory_tag(checkpoint: Path) -> str:
    return f"dir-{hashlib.sha256(os.fsencode(checkpoint)).hexdigest()[:12]}"


def _is_there(image: LayoutReference, access: Access) -> bool:
    try:
        open_reader(image, access).resolve(image.name)
    except NotFound:
        return False
    return True
