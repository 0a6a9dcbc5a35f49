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
