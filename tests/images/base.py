"""A base image without a registry: a root directory with this machine's Python, its libraries, and a shell.

What stands in for the public base image, so that Dockerfiles are built where none can be pulled. It holds no package
manager and nothing of this machine's site-packages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

_LIBRARY = re.compile(r"(/\S+\.so\S*)")
# what wheels of other languages need beside what Python itself does
_FOR_WHEELS = ("libstdc++.so.6", "libgcc_s.so.1", "librt.so.1", "libpthread.so.0", "libdl.so.2")
_UNWANTED = shutil.ignore_patterns(
    "site-packages", "test", "tests", "__pycache__", "idlelib", "*.a", "config-*"
)
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def make_root(root: Path) -> None:
    """Fill an empty directory. Raises CalledProcessError."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix, library = Path(sys.base_prefix), Path(sysconfig.get_path("stdlib"))
    for folder in (
        "bin",
        "etc/ssl/certs",
        "tmp",
        "usr/bin",
        "proc",
        "sys",
        "dev",
        "var",
        "usr/local/bin",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    python = Path(sys.executable).resolve()
    shutil.copytree(library, _under(root, library), ignore=_UNWANTED, symlinks=True)
    # Debian's ensurepip takes pip's wheel from beside the library.
    wheels = sysconfig.get_config_var("WHEEL_PKG_DIR")
    if wheels and Path(wheels).is_dir():
        shutil.copytree(wheels, _under(root, Path(wheels)))
    _copy(root, prefix / "bin" / version, python)
    for name in ("python3", "python"):
        (root / "usr/local/bin" / name).symlink_to(prefix / "bin" / version)
    shell = Path("/bin/sh").resolve()
    shutil.copy2(shell, root / "bin/sh")
    binaries = [python, shell, *library.glob("lib-dynload/*.so")]
    for found in _libraries(binaries):
        _copy(root, found, found)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    if _CERTIFICATES.exists():
        shutil.copy2(_CERTIFICATES, _under(root, _CERTIFICATES))


def make_base(buildah: Callable[..., str], root: Path, *, name: str) -> None:
    """The image `name` over a root directory."""
    container = buildah("from", "scratch").strip()
    buildah("copy", "--quiet", container, str(root), "/")
    buildah(
        "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", "--env", "LANG=C.UTF-8", container
    )
    buildah("commit", "--quiet", "--rm", container, name)


def _libraries(binaries: Iterable[Path]) -> set[Path]:
    """Every shared library that these load, and the loader."""
    listed = subprocess.run(
        ["ldd", *map(str, binaries)], check=True, capture_output=True, text=True
    ).stdout
    found = {Path(each) for each in _LIBRARY.findall(listed) if Path(each).is_file()}
    places = {each.parent for each in found}
    return found | {
        place / name for place in places for name in _FOR_WHEELS if (place / name).is_file()
    }


def _copy(root: Path, target: Path, source: Path) -> None:
    place = _under(root, target)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), place)


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
