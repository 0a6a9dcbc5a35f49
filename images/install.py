"""Installs the wheel in /wheel with one extra into a new virtual environment, takes pip out again, lists what is in.

    python3 images/install.py DIRECTORY EXTRA [OPTION OF PIP...]

Runs while an image is built. What is compiled here isn't compiled at each start, on a root that can't be written.
"""

from __future__ import annotations

import compileall
import py_compile
import subprocess
import sys
import venv
from pathlib import Path

WHEELS = Path("/wheel")
SBOM_PROGRAM = "/opt/tools/bin/cyclonedx-py"


def main(directory: Path, extra: str, options: list[str]) -> None:
    """Make the environment. Raises CalledProcessError when pip fails."""
    (wheel,) = WHEELS.glob("weightyard-*.whl")
    venv.create(directory, with_pip=True)
    python = str(directory / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "install", *options, "--no-cache-dir", "--no-compile", f"{wheel}[{extra}]"],
        check=True,
    )
    subprocess.run([*pip, "uninstall", "--yes", "pip"], check=True)
    # What is in it, for scanners: the same bytes for the same packages.
    subprocess.run(
        [
            SBOM_PROGRAM,
            "environment",
            "--output-reproducible",
            "-o",
            directory / "sbom.cdx.json",
            python,
        ],
        check=True,
    )
    # Only what is unchecked stays valid when a layer's times are rewritten.
    compileall.compile_dir(
        directory, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
