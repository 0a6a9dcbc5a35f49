"""ML-BOM and provenance: valid by CycloneDX's official schema, about what was built, the same from the same input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from builder import mlbom, provenance
from builder.build import BuildOptions, BuildResult
from modelimage.digest import Digest
from modelimage.layout import Layout
from modelimage.record import ModelFacts, Record
from modelimage.referrers import list_referrers, read_artifact
from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import quantizable, single

ATTACHED = BuildOptions(sbom=True, provenance=True, created="2026-01-02T03:04:05Z")


def check_schema(document: bytes) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(document.decode()) is None


def attached(layout: Layout, name: str, kind: str) -> list[dict[str, Any]]:
    """The documents of one type about an image and the manifests in it."""
    root = layout.resolve(name)
    listed = json.loads(layout.manifest(root)).get("manifests", [])
    subjects = [root, *(layout.resolve(each["digest"]) for each in listed)]
    return [
        json.loads(file.data)
        for subject in subjects
        for artifact in list_referrers(layout, subject, kind)
        for file in read_artifact(layout, artifact)
    ]


def test_each_variant_has_a_valid_bom_of_its_files(tmp_path: Path) -> None:
    options = replace(ATTACHED, variants=("bf16", "int8"))
    result = build_here(
        quantizable(tmp_path / "source"), f"oci:{tmp_path / 'out'}:v1", tmp_path, options
    )
    layout = Layout(tmp_path / "out")
    # The index of all variants leads to the BOM of each; a variant's own tag and its bare manifest to its own.
    tags = [("v1", result.records), ("v1-int8", result.records[1:])]
    tags += [("v1-modelpack", result.records[:1]), ("v1-int8-modelpack", result.records[1:])]
    for tag, records in tags:
        found = attached(layout, tag, mlbom.MEDIA_TYPE)
        assert [hashes(document) for document in found] == [expected(record) for record in records]
        for document in found:
            check_schema(json.dumps(document).encode())
    published, int8 = attached(layout, "v1", mlbom.MEDIA_TYPE)
    assert "pedigree" not in published["metadata"]["component"]
    assert int8["metadata"]["component"]["pedigree"]["notes"].startswith("quantized; ")


def hashes(document: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["hashes"][0]["content"] for each in document["components"]}


def expected(record: Record) -> dict[str, str]:
    return {file.path: file.digest.hex for file in record.files}


def test_the_provenance_names_every_tag_and_what_it_was_made_from(tmp_path: Path) -> None:
    options = replace(ATTACHED, include=("*.txt",))
    result = build_here(
        single(tmp_path / "source"), f"oci:{tmp_path / 'out'}:v1", tmp_path, options
    )
    layout = Layout(tmp_path / "out")
    for tag, digest in result.publication.tags.items():
        found = attached(layout, tag, provenance.MEDIA_TYPE)
        assert found
        for statement in found:
            assert statement["_type"] == "https://in-toto.io/Statement/v1"
            assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
            assert {"name": tag, "digest": {"sha256": digest.hex}} in statement["subject"]
            predicate = statement["predicate"]
            assert predicate["buildDefinition"]["externalParameters"]["include"] == ["*.txt"]
            assert predicate["runDetails"]["metadata"] == {"finishedOn": ATTACHED.created}


def test_a_second_build_attaches_nothing_new(tmp_path: Path) -> None:
    source, options = single(tmp_path / "source"), replace(ATTACHED, created=None)
    listed: list[Sequence[str]] = []
    for _ in range(2):
        build_here(source, f"oci:{tmp_path / 'out'}:v1", tmp_path, options)
        entries = json.loads((tmp_path / "out/index.json").read_text())["manifests"]
        listed.append([each["digest"] for each in entries])
    assert sorted(listed[0]) == sorted(listed[1])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    scratch = tmp_path_factory.mktemp("built")
    return build_here(single(scratch / "source"), f"oci:{scratch / 'out'}:v1", scratch)


@pytest.mark.parametrize(
    ("source", "uri", "revision", "licence", "group", "name"),
    [
        ("hf://org/name", None, "a" * 40, "Apache-2.0", "org", "name"),
        ("s3://bucket/some/model", None, "", "MIT AND LicenseRef-llama3", "bucket/some", "model"),
        ("gs://bucket", None, "3", "", None, "bucket"),
        ("s3://bucket/a b/m#1#2", "s3://bucket/a%20b/m#1%232", "", "", "bucket/a b", "m#1#2"),
        (
            "http://[::1]:80/a<b>/ü%zz%20",
            "http://[::1]:80/a%3Cb%3E/%C3%BC%25zz%20",
            "",
            "",
            "[::1]:80/a<b>",
            "ü%zz%20",
        ),
        ("mlflow:models:/m/3", None, "", "", "mlflow:models:/m", "3"),
        ("local", "", "", "", None, "local"),
        ("trained here, on Monday <1>", "", "b" * 40, "", None, "trained here, on Monday <1>"),
        ("", "", "", "", None, "LlamaForCausalLM"),
    ],
)
def test_a_bom_of_any_source_is_valid(
    built: BuildResult, source: str, uri: str | None, revision: str, licence: str,
    group: str | None, name: str,
) -> None:  # fmt: skip
    """`uri`: how documents write the source; empty if it has no URI, None if it is one as it stands."""
    expected = source if uri is None else uri
    record = replace(built.records[0], source=source, revision=revision, license=licence)
    data = mlbom.ml_bom(record, builder_version="1.0", created=None)
    check_schema(data)
    component = json.loads(data)["metadata"]["component"]
    assert (component.get("group"), component["name"]) == (group, name)
    urls = [each["url"] for each in component.get("externalReferences", ())]
    assert urls == ([expected] if expected else [])
    statement = json.loads(
        provenance.provenance(
            built.publication,
            [record],
            parameters={},
            bases=[Digest.of(b"base")],
            builder_version="1.0",
        )
    )
    *found, base = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert base == {"name": "base image", "digest": {"sha256": Digest.of(b"base").hex}}
    commit = {"digest": {"gitCommit": revision}} if len(revision) == 40 else {}
    named = {"uri": expected} if expected else {"name": source}
    assert found == ([{**named, **commit}] if source else [])


def test_a_bom_of_a_model_without_facts_is_valid(built: BuildResult) -> None:
    check_schema(
        mlbom.ml_bom(
            replace(built.records[0], facts=ModelFacts(), source=""), builder_version="1.0"
        )
    )


def test_a_docker_engine_holds_no_attachments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = single(tmp_path / "source")
    for option in ("--sbom", "--provenance"):
        outcome = weightyard_here(capsys, "build", source, "--to", "docker:model:v1", option)
        assert outcome.code == 2
        assert "nothing can be attached" in outcome.err
