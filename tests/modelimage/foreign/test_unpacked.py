"""Random images against umoci, which unpacks them, and the kernel, which follows their links in a root of their own."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelimage.errors import InvalidImage
from modelimage.foreign import describe_foreign
from modelimage.layout import Layout
from tests.modelimage.foreign.images import Entry, Maker, directory, hardlink, pull, symlink, tar
from tests.servers.process import ServerFailed, child_environment, program, run

pytestmark = pytest.mark.servers

_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
IMAGES = 25


class _How(ctypes.Structure):
    """openat2(2)'s `struct open_how`."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_inside(root: int, path: str) -> bytes:
    """A file as a process sees it whose root directory is `root`."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = _How(os.O_RDONLY, 0, _RESOLVE_IN_ROOT)
    descriptor = libc.syscall(_OPENAT2, root, path.encode(), ctypes.byref(how), ctypes.sizeof(how))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def regular_files(root: Path) -> set[str]:
    """The paths of files that are no links, by no link."""
    return {
        str((Path(folder) / name).relative_to(root))
        for folder, _, names in os.walk(root)
        for name in names
        if not (Path(folder) / name).is_symlink()
    }


def random_layers(dice: random.Random) -> list[bytes]:
    """Up to four layers of files, directories, links and whiteouts that get into each other's way."""
    return [
        tar([_entry(dice, f"{layer}.{n}") for n in range(dice.randint(1, 7))])
        for layer in range(dice.randint(1, 4))
    ]


def _entry(dice: random.Random, label: str) -> Entry:
    def name() -> str:
        return "/".join(dice.choices("abc", k=dice.randint(1, 3)))

    path = name()
    folder = path.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    targets = [name(), f"../{name()}", f"/{name()}", "."]
    made = (
        Entry(path, label.encode()), Entry(path, label.encode()), Entry(path, label.encode()), directory(path),
        symlink(path, dice.choice(targets)), hardlink(path, name()), Entry(f"{prefix}.wh.{path[-1]}"),
        Entry(f"{prefix}.wh..wh..opq"),
    )  # fmt: skip
    return dice.choice(made)


def unpacked(layout: Path, bundle: Path) -> Path | None:
    """The root directory as umoci makes it; None when it can't, as no runtime then could."""
    command = ["umoci", "unpack", "--rootless", "--image", f"{layout}:latest", str(bundle)]
    try:
        run([program(command[0]), *command[1:]], environment=child_environment(layout.parent))
    except ServerFailed:
        return None
    return bundle / "rootfs"


def test_an_image_is_what_a_container_sees(tmp_path: Path) -> None:
    """Those that both accept: 48 of the first 250 seeds. A bad link that a later layer hides is none to us."""
    compared = 0
    for seed in range(250):
        place = tmp_path / str(seed)
        dice = random.Random(seed)  # noqa: S311 (not for secrets)
        Maker(place / "image").image(*random_layers(dice))
        layout = Layout(place / "image")
        try:
            model = describe_foreign(layout, layout.resolve("latest"))
        except InvalidImage:
            continue
        files = pull(layout, model)[1]
        root = unpacked(place / "image", place / "bundle")
        if root is None:
            continue
        assert regular_files(root) <= set(files), seed
        with opened(root) as descriptor:
            assert {path: read_inside(descriptor, path) for path in files} == files, seed
        compared += 1
        if compared == IMAGES:
            return
    raise AssertionError(f"only {compared} images could be compared")
