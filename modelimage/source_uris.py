"""The schemes of the URIs that name where weights come from: on the command line, in records and in Workspaces. Pure.

Each scheme is written here only. The modules that open a source (`builder.sources`) and the Workspace's `model` (which
names a source by a field of its own) use these names; adding a scheme begins with a line here.
"""

from __future__ import annotations

import re
from typing import Final

HUB: Final = "hf://"
DOCUMENTS: Final = (".yaml", ".yml", ".json")  # the ends of files that no image is named like
S3: Final = "s3://"
GS: Final = "gs://"
MLFLOW: Final = "mlflow:"

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HUB_PAGES: Final = "https://huggingface.co/"


def is_commit(revision: str) -> bool:
    """Whether a revision of the Hub is a commit, which can't change, and no branch or tag."""
    return _COMMIT.fullmatch(revision) is not None


def source_url(uri: str) -> str:
    """The URL at which a person or program finds a source; empty if it has none that others can open."""
    if uri.startswith(HUB):
        return _HUB_PAGES + uri.removeprefix(HUB).partition("@")[0]
    return uri if uri.startswith(("https://", "http://")) else ""


def hub_uri(text: str) -> str:
    """`hf://ORG/NAME` for a model's page at the Hub, or for a bare ORG/NAME; empty for anything else."""
    name = text.removeprefix(_HUB_PAGES)
    if name != text:
        # What follows the name is a view of the page: /tree/main, ?library=vllm.
        name = "/".join(re.split("[?#]", name)[0].split("/")[:2])
    return HUB + name if re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*", name) else ""


def instead_of_image(text: str) -> str:
    """The hint for a text that isn't an image reference: what was likely meant, and how it is written."""
    # The most telling first: a page of the Hub is a URL too.
    if any(text.startswith(scheme) for scheme in (HUB, S3, GS, MLFLOW)):
        return f"It names weights, not an image of them: build one with `weightyard build {text} --to oci:DIR:TAG`."
    if text.startswith(_HUB_PAGES) and hub_uri(text):
        return f"For weights of the Hub, write {hub_uri(text)}: `weightyard build` makes an image of them."
    scheme, mark, rest = text.partition("://")
    if mark and scheme in ("http", "https"):
        return f"Write it without {scheme}://, as {rest}."
    if text.endswith(DOCUMENTS):
        return "That is a file: name the image in it. `weightyard up` and `weightyard render` take a Workspace's file."
    if text.startswith((".", "/", "~")):
        return f"For an OCI layout, write oci:{text}:TAG; `weightyard build {text}` packs a checkpoint."
    return "Write registry.example/team/model:tag (lower case), or oci:DIR:TAG for a directory."
