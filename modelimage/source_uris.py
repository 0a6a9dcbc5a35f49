"""The schemes of the URIs that name where weights come from: on the command line, in records and in Workspaces. Pure.

Each scheme is written here only. The modules that open a source (`builder.sources`) and the Workspace's `model` (which
names a source by a field of its own) use these names; adding a scheme begins with a line here.
"""

from __future__ import annotations

from typing import Final

HUB: Final = "hf://"
S3: Final = "s3://"
GS: Final = "gs://"
MLFLOW: Final = "mlflow:"

_HUB_PAGES: Final = "https://huggingface.co/"


def source_url(uri: str) -> str:
    """The URL at which a person or program finds a source; empty if it has none that others can open."""
    if uri.startswith(HUB):
        return _HUB_PAGES + uri.removeprefix(HUB).partition("@")[0]
    return uri if uri.startswith(("https://", "http://")) else ""
