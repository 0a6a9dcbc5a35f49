"""The same source and options give the same digests on any machine, by anyone, at any time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.build import BuildOptions, BuildResult
from builder.records import created_time
from builder.sources.local import LocalSource
from modelimage import hash_pipeline
from modelimage.errors import InvalidInput
from modelimage.layout import Layout
from tests.builder.building import build_here, weightyard
from tests.builder.checkpoints import sharded, single

# Pins the format: whoever changes these digests changes every published image's, and says so in the changelog.
GOLDEN = {
    "v1": "sha256:71495cdbb926e8168005e37ade481b36c0497e3d798d9387880851b17df8ac65",
    "v1-modelpack": "sha256:9d372e6cd30aabde7db298fdac7641982be1b2f9b4beb90966a62658e0c3ea83",
}
NOBODY = 65534


@pytest.fixture
def golden(tmp_path: Path) -> dict[str, str]:
    """The tags of a build of the sharded checkpoint, here and now."""
    return tags(build_here(sharded(tmp_path / "golden"), f"oci:{tmp_path}/golden-out:v1", tmp_path))


def tags(result: BuildResult) -> dict[str, str]:
    return {tag: str(digest) for tag, digest in result.publication.tags.items()}


def test_the_format_is_what_it_was(tmp_path: Path) -> None:
    assert (
        tags(build_here(single(tmp_path / "source"), f"oci:{tmp_path}/out:v1", tmp_path)) == GOLDEN
    )


class BackwardScan:
    """A directory listing in the opposite order, as another filesystem may give it."""

    def __init__(self, path: Path) -> None:
        with os_scandir(path) as scan:
            self._entries = sorted(scan, key=lambda entry: entry.name, reverse=True)

    def __enter__(self) -> list[os.DirEntry[str]]:
        return self._entries

    def __exit__(self, *details: object) -> None:
        """Nothing is open."""


os_scandir = os.scandir


def test_the_order_of_a_directory_changes_nothing(
    tmp_path: Path, golden: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sharded(tmp_path / "source")
    forward = [entry.name for entry in BackwardScan(source).__enter__()]
    monkeypatch.setattr("builder.sources.local.os.scandir", BackwardScan)
    assert forward != sorted(forward)
    assert LocalSource(source).list().files
    assert tags(build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)) == golden


def test_times_modes_and_links_change_nothing(tmp_path: Path, golden: dict[str, str]) -> None:
    real = sharded(tmp_path / "real")
    source = tmp_path / "source"
    source.mkdir()
    for number, path in enumerate(sorted(real.iterdir(), reverse=True)):
        os.utime(path, ns=(number, number * 1_000_000_007 + 123))
        path.chmod(0o400 if number % 2 else 0o777)
        (source / path.name).symlink_to(path)
    assert tags(build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)) == golden


@pytest.mark.parametrize("cores", [1, 3, 64])
def test_the_number_of_threads_changes_nothing(
    tmp_path: Path, golden: dict[str, str], monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr("builder.pack.available_cores", lambda: cores)
    monkeypatch.setattr(hash_pipeline, "RING_BUFFERS", max(1, cores % 5))
    source = sharded(tmp_path / "source")
    assert tags(build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)) == golden


def in_utc(source: Path, to: str, home: Path) -> dict[str, str]:
    return run(source, to, {"TZ": "UTC", "PYTHONHASHSEED": "0", "HOME": str(home)}, umask=0o022)


def far_away(source: Path, to: str, home: Path) -> dict[str, str]:
    environment = {
        "TZ": "Pacific/Kiritimati",
        "PYTHONHASHSEED": "4242",
        "LC_ALL": "C.UTF-8",
        "HOME": str(home),
    }
    return run(source, to, environment, umask=0o077)


def as_nobody(source: Path, to: str, home: Path) -> dict[str, str]:
    return run(source, to, {"HOME": str(home), "PYTHONHASHSEED": "1"}, umask=0o002, user=NOBODY)


def run(
    source: Path, to: str, environment: dict[str, str], *, umask: int, user: int | None = None
) -> dict[str, str]:
    arguments = ("build", source, "--to", to, "--json", "--quiet")
    outcome = weightyard(*arguments, environment=environment, umask=umask, user=user)
    assert outcome.code == 0, outcome.err
    found: dict[str, str] = outcome.json["tags"]
    return found


@pytest.mark.parametrize("build", [in_utc, far_away, as_nobody])
def test_process_user_umask_and_time_zone_change_nothing(
    tmp_root: Path, golden: dict[str, str], build: Callable[[Path, str, Path], dict[str, str]]
) -> None:
    if build is as_nobody and os.geteuid() != 0:
        pytest.fail("only root can run as another user")
    tmp_root.chmod(0o777)
    source = sharded(tmp_root / "source")
    assert build(source, f"oci:{tmp_root}/out:v1", tmp_root) == golden
    assert (tmp_root / "out").stat().st_uid == (NOBODY if build is as_nobody else os.geteuid())


def test_the_path_of_the_source_and_of_the_layout_change_nothing(
    tmp_path: Path, golden: dict[str, str]
) -> None:
    source = tmp_path / "some" / "where else"
    shutil.copytree(sharded(tmp_path / "source"), source)
    assert tags(build_here(source, f"oci:{tmp_path}/elsewhere:v1", tmp_path)) == golden


def test_only_source_date_epoch_brings_a_time_and_layers_never_have_it(tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    plain = build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    dated = BuildOptions(created=created_time("1700000000"))
    first = build_here(source, f"oci:{tmp_path}/out:v2", tmp_path, dated)
    again = build_here(source, f"oci:{tmp_path}/other:v2", tmp_path / "other", dated)
    assert first.publication.tags == again.publication.tags
    assert first.records == plain.records
    assert first.publication.layers == plain.publication.layers
    assert first.publication.tags["v2"] != plain.publication.tags["v1"]
    config = b"2023-11-14T22:13:20Z"
    layout = Layout(tmp_path / "out")
    blobs = [layout.blob_path(digest).read_bytes() for digest, _ in layout.blobs()]
    assert any(config in blob for blob in blobs)


@pytest.mark.parametrize("epoch", ["tomorrow", "1.5", "9" * 30])
def test_an_epoch_that_is_no_time_is_refused(epoch: str) -> None:
    with pytest.raises(InvalidInput, match="SOURCE_DATE_EPOCH"):
        created_time(epoch)


def test_no_epoch_is_no_time() -> None:
    assert created_time(None) is None
    assert created_time("") is None
    assert created_time("0") == "1970-01-01T00:00:00Z"
