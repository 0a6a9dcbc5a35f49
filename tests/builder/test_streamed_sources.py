"""Weights that pass from a source to a destination: the same image, and nothing of them on this disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from builder.build import BuildOptions, BuildResult, BuildTools, build
from builder.destination import open_destination
from builder.digest_cache import DigestCache
from builder.sources.interface import Listing, RemoteFile, SourceFile
from builder.sources.local import LocalSource
from modelimage.access import Access, open_reader
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch
from modelimage.layout import Layout
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from tests.builder.building import an_hour_later, build_here, weightyard_here
from tests.builder.checkpoints import quantizable, sharded
from tests.builder.reports import Remembering
from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry
from tests.servers.s3 import S3


class FarAway(LocalSource):
    """A directory whose weights may not be fetched, only read from where they are. `asked` lists the readings."""

    is_local = False  # type: ignore[assignment]

    def __init__(self, root: Path, claims: dict[str, Digest] | None = None) -> None:
        super().__init__(root)
        self._claims = claims or {}
        self.asked: list[tuple[str, int]] = []

    def list(self) -> Listing:
        listing = super().list()
        files = (replace(f, claimed=self._claims.get(f.path)) for f in listing.files)
        return Listing(tuple(files), listing.ignored)

    def fetch(self, file: SourceFile, advance: Callable[[int], None]) -> Path:
        assert not file.path.endswith(".safetensors"), "weights are to pass"
        return super().fetch(file, advance)

    def remote(self, file: SourceFile) -> RemoteFile:  # type: ignore[override]
        def read(start: int) -> Iterator[bytes]:
            self.asked.append((file.path, start))
            data = (self._root / file.path).read_bytes()
            for position in range(start, len(data), 1000):
                yield data[position : position + 1000]

        return RemoteFile(f"far {file.path}", read)


def build_far(source: FarAway, to: str, scratch: Path) -> BuildResult:
    reference = parse_image(to)
    assert isinstance(reference, LayoutReference | RegistryReference)
    tools = BuildTools(
        DigestCache(scratch / "digests", clock=an_hour_later), scratch / "work", Remembering()
    )
    return build(source, open_destination(reference, Access()), BuildOptions(), tools)


def test_an_image_that_passed_is_the_one_from_a_directory(tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path / "checkpoint")
    near = build_here(checkpoint, f"oci:{tmp_path}/near:v1", tmp_path / "near-work")
    far = build_far(FarAway(checkpoint), f"oci:{tmp_path}/far:v1", tmp_path)
    assert far.publication.tags == near.publication.tags
    assert dict(Layout(tmp_path / "far").blobs()) == dict(Layout(tmp_path / "near").blobs())
    assert far.sent == near.sent


def test_a_second_build_reads_headers_only(tmp_path: Path) -> None:
    source = FarAway(sharded(tmp_path / "checkpoint"))
    build_far(source, f"oci:{tmp_path}/far:v1", tmp_path)
    twice = len(source.asked)
    again = build_far(source, f"oci:{tmp_path}/far:v1", tmp_path)
    assert len(source.asked) == twice + twice // 2, "each was read for its header, then whole"
    assert again.sent.sent == 0


def test_what_was_digested_before_is_sent_from_the_source(
    tmp_path: Path, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    """A destination that lacks what an earlier build passed elsewhere gets it without another digest."""
    source = FarAway(sharded(tmp_path / "checkpoint"))
    first = build_far(source, f"{registry.host}/{unique_name('far')}:v1", tmp_path)
    other = f"{registry.host}/{unique_name('other')}"
    again = build_far(source, f"{other}:v1", tmp_path)
    assert again.sent == first.sent
    assert open_reader(parse_image(other), Access()).tags()


def test_bytes_that_are_not_what_the_source_claims_are_not_published(tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path / "checkpoint")
    name = next(path.name for path in checkpoint.glob("*.safetensors"))
    source = FarAway(checkpoint, {name: Digest.of(b"other bytes")})
    with pytest.raises(DigestMismatch, match="its source says"):
        build_far(source, f"oci:{tmp_path}/far:v1", tmp_path)
    assert Layout(tmp_path / "far").tags() == []


def stored(home: Path) -> int:
    """Bytes of all files below a directory, links not counted."""
    return sum(
        (Path(folder) / name).lstat().st_size
        for folder, _, names in os.walk(home)
        for name in names
    )


@pytest.mark.servers
@pytest.mark.parametrize("scheme", ["hf", "s3"])
def test_the_disk_holds_nothing_of_the_weights(
    scheme: str,
    *,
    hub: Hub,
    s3: S3,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hub and bucket to a registry, by the command itself; with --stage the weights lie here for a while."""
    checkpoint = quantizable(tmp_path / "checkpoint")
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    source = place(scheme, checkpoint, hub, s3, unique_name, monkeypatch)
    near = build_here(checkpoint, f"oci:{tmp_path}/near:v1", tmp_path / "near-work")
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hf/hub"))
    target = f"{registry.host}/{unique_name('passed')}:v1"
    passed = weightyard_here(capsys, "--json", "build", source, "--to", target)
    assert passed.code == 0, passed.err
    assert stored(home) < size / 2
    digests = {str(layer.digest) for layer in near.publication.layers}
    reader = open_reader(parse_image(target), Access())
    assert passed.json["sent"] >= size
    assert digests <= set(registry_blobs(reader))
    staged = weightyard_here(capsys, "--json", "build", source, "--to", target, "--stage")
    assert (staged.code, staged.json["digest"]) == (0, passed.json["digest"])
    assert stored(home) > size


def registry_blobs(reader: object) -> list[str]:
    from modelimage.push import read_tree  # noqa: PLC0415

    return [str(blob.digest) for blob in read_tree(reader, reader.resolve("v1")).blobs]  # type: ignore[attr-defined,arg-type]


def place(
    scheme: str,
    checkpoint: Path,
    hub: Hub,
    s3: S3,
    unique_name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    if scheme == "hf":
        name = unique_name("org/streamed")
        hub.add(name, checkpoint)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        return f"hf://{name}"
    options = s3.client_options()
    bucket = unique_name("streamed")
    client = boto3.session.Session().client("s3", **options)  # type: ignore[call-overload]
    client.create_bucket(Bucket=bucket)
    for path in (path for path in checkpoint.rglob("*") if path.is_file()):
        key = f"model/{path.relative_to(checkpoint)}"
        client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(options["endpoint_url"]))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(options["aws_access_key_id"]))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(options["aws_secret_access_key"]))
    monkeypatch.setenv("AWS_DEFAULT_REGION", str(options.get("region_name", "us-east-1")))
    return f"s3://{bucket}/model"
