"""copy, diff, attach, discover, sign, verify --key and prune, on a real image, layouts and a real registry."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import oras.client
import oras.oci
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from modelimage.access import Access, open_repository
from modelimage.layout import Layout
from modelimage.reference import RegistryReference
from modelimage.referrers import cosign_tags, fallback_tag
from tests.builder.building import Outcome, build_here, weightyard_here
from tests.builder.checkpoints import single
from tests.modelimage.test_cosign import pem, public_pem
from tests.servers import skopeo
from tests.servers.faulty_registry import FaultyRegistry
from tests.servers.registry import DockerRegistry
from tests.servers.registry_kinds import KnowsReferrers

Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path) -> Run:
    def run_here(*arguments: str | Path, code: int = 0) -> Outcome:
        outcome = weightyard_here(capsys, *arguments)
        assert outcome.code == code, outcome.err
        return outcome

    return run_here


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the versions v1 and v2, which differ in one file. Not to be written."""
    scratch = tmp_path_factory.mktemp("built")
    source = single(scratch / "source")
    build_here(source, f"oci:{scratch / 'layout'}:v1", scratch)
    (source / "README.md").write_text("another")
    build_here(source, f"oci:{scratch / 'layout'}:v2", scratch)
    return scratch / "layout"


@pytest.fixture
def layout(built: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(built, tmp_path / "layout"))


def image_of(reference: RegistryReference, tag: str) -> str:
    return f"{reference.registry}/{reference.repository}:{tag}"


# copy


@pytest.mark.servers
def test_an_image_goes_to_a_registry_and_back_over_the_air_gap(
    run: Run,
    built: Path,
    tmp_path: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:
    remote = RegistryReference(registry.host, unique_name("team/model"))
    sent = run("--json", "copy", f"oci:{built}:v1", image_of(remote, "v1"), "--all-tags").json
    assert set(sent["tags"]) == {"v1", "v1-modelpack"}
    assert sent["sent"] == sum(blob["size"] for blob in sent["blobs"]) > 0
    run("copy", image_of(remote, "v1"), f"oci:{tmp_path / 'disk'}:v9", "--all-tags")
    there, here = Layout(built), Layout(tmp_path / "disk")
    assert here.tags() == ["v9", "v9-modelpack"]
    assert here.resolve("v9").digest == there.resolve("v1").digest
    run("verify", f"oci:{tmp_path / 'disk'}:v9")
    digest = skopeo.inspect(f"docker://{image_of(remote, 'v1-modelpack')}", "--raw")
    assert digest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"


@pytest.mark.servers
def test_a_second_copy_sends_only_what_is_new_and_a_third_nothing(
    run: Run, built: Path, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    remote = RegistryReference(registry.host, unique_name("team/model"))
    first = run("--json", "copy", f"oci:{built}:v1", image_of(remote, "v1")).json
    plan = run("--json", "copy", f"oci:{built}:v2", image_of(remote, "v2"), "--dry-run").json
    second = run("--json", "copy", f"oci:{built}:v2", image_of(remote, "v2")).json
    assert plan["sent"] == second["sent"] < first["sent"]
    assert second["held"] > 0
    third = run("--json", "copy", f"oci:{built}:v2", image_of(remote, "v2")).json
    assert third["sent"] == 0


@pytest.mark.servers
def test_a_copy_within_a_registry_sends_no_byte(
    run: Run, built: Path, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    source = RegistryReference(registry.host, unique_name("team/model"))
    target = RegistryReference(registry.host, unique_name("other/model"))
    run("copy", f"oci:{built}:v1", image_of(source, "v1"))
    before = len(registry.accesses())
    run("copy", image_of(source, "v1"), image_of(target, "v1"))
    requests = [each for each in registry.accesses()[before:] if "/blobs/" in each.path]
    # The record is read, to check that nodes can pull the image.
    assert {each.method for each in requests} == {"HEAD", "GET", "POST"}
    assert len({each.path for each in requests if each.method == "GET"}) == 1


def test_a_copy_that_makes_no_sense_is_refused(run: Run, built: Path, tmp_path: Path) -> None:
    run("copy", "docker:x", f"oci:{tmp_path}/x:v1", code=2)
    run("copy", f"oci:{built}:v1", f"oci:{tmp_path}/x:v1@sha256:{'0' * 64}", code=2)
    run("copy", f"oci:{built}:absent", f"oci:{tmp_path}/x:v1", code=3)
    run("copy", f"oci:{tmp_path}/nothing:v1", f"oci:{tmp_path}/x:v1", code=3)
    assert not (tmp_path / "x").exists()


def test_a_damaged_source_is_not_copied(run: Run, layout: Path, tmp_path: Path) -> None:
    plan = run("--json", "copy", f"oci:{layout}:v1", f"oci:{tmp_path}/copy:v1", "--dry-run").json
    digest = max(plan["blobs"], key=lambda blob: int(blob["size"]))["digest"]
    largest = layout / "blobs" / "sha256" / digest.split(":")[1]
    data = bytearray(largest.read_bytes())
    data[100] ^= 1
    largest.write_bytes(data)
    run("copy", f"oci:{layout}:v1", f"oci:{tmp_path}/copy:v1", code=5)
    assert not (tmp_path / "copy" / "blobs" / "sha256" / largest.name).exists()
    assert Layout(tmp_path / "copy").tags() == []


# diff


def test_a_difference_names_the_file_and_the_bytes(run: Run, built: Path) -> None:
    found = run("--json", "diff", f"oci:{built}:v1", f"oci:{built}:v2").json
    (file,) = found["files"]
    assert (file["path"], file["change"], file["after"]) == ("README.md", "changed", 7)
    (layer,) = found["layers"]
    assert found["moved"] == layer["size"]
    text = run("diff", f"oci:{built}:v1", f"oci:{built}:v2").out
    assert "README.md" in text
    assert "All files are the same" in run("diff", f"oci:{built}:v1", f"oci:{built}:v1").out


# attach, discover


@pytest.mark.servers
@pytest.mark.parametrize("place", ["layout", "registry"])
def test_what_is_attached_is_discovered_and_copied_along(
    run: Run,
    layout: Path,
    tmp_path: Path,
    place: str,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:
    image = f"oci:{layout}:v1"
    if place == "registry":
        remote = RegistryReference(registry.host, unique_name("team/model"))
        image = image_of(remote, "v1")
        run("copy", f"oci:{layout}:v1", image)
    sbom = tmp_path / "sbom.json"
    sbom.write_text('{"bomFormat": "CycloneDX"}')
    kind = "application/vnd.cyclonedx+json"
    added = run("--json", "attach", image, sbom, "--type", kind, "-a", "who=ci").json
    run("attach", image, sbom, "--type", "application/x-other")
    run("discover", image, "--type", kind, "--to", tmp_path / "found")
    (fetched,) = (tmp_path / "found").rglob("*.json")
    assert fetched.read_text() == sbom.read_text()
    rows = run("--json", "discover", image).json
    assert {row["type"] for row in rows} == {kind, "application/x-other"}
    run("copy", image, f"oci:{tmp_path / 'copy'}:v1", "--referrers")
    again = run("--json", "discover", f"oci:{tmp_path / 'copy'}:v1", "--type", kind).json
    assert [row["digest"] for row in again] == [added["digest"]]


def test_signatures_are_copied_to_where_they_are_looked_for(
    run: Run, layout: Path, tmp_path: Path
) -> None:
    """Those without a subject too, as cosign writes them; and not with --no-referrers."""
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(pem(key))
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    run("sign", f"oci:{layout}:v1", "--key", tmp_path / "key.pem")
    source = Layout(layout)
    digest = source.resolve("v1").digest
    attestation = source.resolve("v1-modelpack")  # any manifest without a subject
    source.put_manifest(attestation, source.manifest(attestation), cosign_tags(digest)[1])
    copies = {name: tmp_path / name for name in ("with", "without")}
    run("copy", f"oci:{layout}:v1", f"oci:{copies['with']}:v1", "--referrers")
    run("copy", f"oci:{layout}:v1", f"oci:{copies['without']}:v1", "--no-referrers")
    run("verify", f"oci:{copies['with']}:v1", "--key", tmp_path / "key.pub")
    assert set(Layout(copies["with"]).tags()) >= {"v1", *cosign_tags(digest)[:2]}
    assert Layout(copies["without"]).tags() == ["v1"]


@pytest.mark.servers
def test_another_client_finds_and_fetches_an_attachment(
    run: Run,
    built: Path,
    tmp_path: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """oras reads the index under the fallback tag and pulls the artifact."""
    remote = RegistryReference(registry.host, unique_name("team/model"))
    image = image_of(remote, "v1")
    run("copy", f"oci:{built}:v1", image)
    report = tmp_path / "report.md"
    report.write_text("good")
    attached = run("--json", "attach", image, report, "--type", "application/x-report").json
    client = oras.client.OrasClient(hostname=registry.host, insecure=True)
    subject = Layout(built).resolve("v1").digest
    index = client.get_manifest(f"{registry.host}/{remote.repository}:{fallback_tag(subject)}")
    (listed,) = index["manifests"]
    assert (listed["digest"], listed["artifactType"]) == (
        attached["digest"],
        "application/x-report",
    )
    (path,) = client.pull(
        f"{registry.host}/{remote.repository}@{listed['digest']}", outdir=str(tmp_path / "pulled")
    )
    assert Path(path).read_text() == "good"


@pytest.mark.servers
def test_what_another_client_attached_is_found_and_fetched(
    run: Run,
    built: Path,
    tmp_path: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:
    """oras writes no fallback tag, so a registry with the referrers API is what its attachments are found in."""
    report = tmp_path / "report.md"
    report.write_text("from oras")
    with FaultyRegistry(registry.host, KnowsReferrers()) as proxy:
        name = f"{proxy.host}/{unique_name('team/model')}"
        run("copy", f"oci:{built}:v1", f"{name}:v1")
        subject = Layout(built).resolve("v1")
        oras.client.OrasClient(hostname=proxy.host, insecure=True).push(
            target=f"{name}:attached",
            files=[f"{report}:text/markdown"],
            subject=oras.oci.Subject(subject.media_type, str(subject.digest), subject.size),
            manifest_annotations={"by": "oras"},
            disable_path_validation=True,
        )
        run("attach", f"{name}:v1", report, "--type", "application/x-ours")
        rows = run("--json", "discover", f"{name}:v1", "--to", tmp_path / "found").json
        tags = run("--json", "inspect", f"{name}:v1").code, oras_tags(proxy.host, name)
    by_type = {row["type"]: row for row in rows}
    assert set(by_type) == {"application/vnd.unknown.config.v1+json", "application/x-ours"}
    found = [path.read_text() for path in (tmp_path / "found").rglob("report.md")]
    assert found == ["from oras", "from oras"]
    assert fallback_tag(subject.digest) not in tags[1], "the registry itself knows"


def oras_tags(host: str, name: str) -> list[str]:
    return list(oras.client.OrasClient(hostname=host, insecure=True).get_tags(name))


def test_an_attachment_with_an_evil_name_stays_in_its_folder(
    run: Run, layout: Path, tmp_path: Path
) -> None:
    evil = tmp_path / "evil.txt"
    evil.write_text("x")
    run("attach", f"oci:{layout}:v1", evil, "--type", "application/x-evil")
    (path,) = [
        each
        for each in (layout / "blobs/sha256").iterdir()
        if b'"evil.txt"' in each.read_bytes() and b'"subject"' in each.read_bytes()
    ]
    forged = path.read_bytes().replace(b'"evil.txt"', b'"../../evl"')
    index = layout / "index.json"
    digest = hashlib.sha256(forged).hexdigest()
    (path.parent / digest).write_bytes(forged)
    document = json.loads(index.read_text().replace(path.name, digest))
    for entry in document["manifests"]:
        if entry["digest"] == f"sha256:{digest}":
            entry["size"] = len(forged)
    index.write_text(json.dumps(document))
    run("discover", f"oci:{layout}:v1", "--to", tmp_path / "found", code=15)
    assert not (tmp_path / "evl").exists()


def test_attaching_nonsense_is_refused(run: Run, layout: Path, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    run("attach", f"oci:{layout}:v1", file, "--type", "nonsense", code=2)
    run("attach", f"oci:{layout}:v1", file, "--type", "a/b", "-a", "novalue", code=2)
    run("attach", f"oci:{layout}:absent", file, "--type", "a/b", code=3)


# sign, verify --key


def test_a_signed_image_verifies_and_an_unsigned_or_foreign_one_does_not(
    run: Run, layout: Path, tmp_path: Path
) -> None:
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    (tmp_path / "key.pem").write_bytes(pem(key))
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    (tmp_path / "other.pub").write_bytes(public_pem(other))
    image = f"oci:{layout}:v1"
    run("verify", image, "--key", tmp_path / "key.pub", code=4)
    run("sign", image, "--key", tmp_path / "key.pem")
    run("verify", image, "--key", tmp_path / "key.pub")
    run("verify", image, "--key", tmp_path / "other.pub", code=4)
    keys = ("--key", tmp_path / "other.pub", "--key", tmp_path / "key.pub")
    assert run("--json", "verify", image, *keys).json["signedBy"] == [str(tmp_path / "key.pub")]
    alone = run("--json", "verify", image, *keys, "--signature-only").json
    assert alone["signedBy"] == [str(tmp_path / "key.pub")]
    assert "checked" not in alone
    run("verify", image, "--signature-only", code=2)
    run("verify", f"oci:{layout}:v2", "--key", tmp_path / "key.pub", code=4)
    run("sign", image, "--key", tmp_path / "key.pub", code=2)


# prune


def test_pruning_a_layout_shows_first_and_frees_what_nothing_names(run: Run, layout: Path) -> None:
    before = dict(Layout(layout).blobs())
    dry = run("--json", "prune", f"oci:{layout}", "--keep-last", "1", "--grace", "0").json
    assert dry["removed"] == ["v1", "v1-modelpack"]
    assert dry["bytes"] > 0
    assert dict(Layout(layout).blobs()) == before
    done = run("--json", "prune", f"oci:{layout}", "--keep-last", "1", "--grace", "0", "--yes").json
    assert {**done, "done": False} == dry
    assert Layout(layout).tags() == ["v2", "v2-modelpack"]
    assert sum(before.values()) - sum(dict(Layout(layout).blobs()).values()) == done["bytes"]
    run("verify", f"oci:{layout}:v2")


def test_pruning_leaves_young_blobs_alone(run: Run, layout: Path) -> None:
    """A build stores blobs before the manifest that names them."""
    for path in (layout / "blobs/sha256").iterdir():
        os.utime(path)
    done = run("--json", "prune", f"oci:{layout}", "--keep-last", "1", "--yes").json
    assert (done["blobs"], done["removed"]) == (0, ["v1", "v1-modelpack"])


def test_pruning_takes_what_is_attached_along(run: Run, layout: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.write_text("about v1")
    for tag in ("v1", "v2"):
        run("attach", f"oci:{layout}:{tag}", report, "--type", "application/x-report")
    # Signing signs the manifests inside the image too.
    (tmp_path / "key.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    run("sign", f"oci:{layout}:v1", "--key", tmp_path / "key.pem")
    dry = run("--json", "prune", f"oci:{layout}", "--keep-last", "1", "--grace", "0").json
    done = run("--json", "prune", f"oci:{layout}", "--keep-last", "1", "--grace", "0", "--yes").json
    assert done["blobs"] == dry["blobs"]
    assert Layout(layout).tags() == ["v2", "v2-modelpack"]
    untagged = [entry for entry in Layout(layout).entries() if entry.artifact_type]
    assert sum(entry.artifact_type == "application/x-report" for entry in untagged) == 1
    assert len(run("--json", "discover", f"oci:{layout}:v2").json) == 1


@pytest.mark.servers
def test_pruning_a_registry_keeps_what_a_kept_tag_names(
    run: Run, built: Path, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    remote = RegistryReference(registry.host, unique_name("team/model"))
    for tag, source in (("v1", "v1"), ("v2", "v2"), ("stable", "v1")):
        run("copy", f"oci:{built}:{source}", image_of(remote, tag), "--all-tags")
    where = f"{remote.registry}/{remote.repository}"
    done = run("--json", "prune", where, "--keep-last", "1", "--keep", "stable*", "--yes").json
    assert done["manifests"] == [], "stable still names what v1 named"
    run("--json", "prune", where, "--keep", "v2*", "--yes")
    repository = open_repository(remote, Access())
    assert [tag for tag in repository.tags() if tag.startswith("v2")] == ["v2", "v2-modelpack"]
    assert repository.resolve("v2").digest == Layout(built).resolve("v2").digest
    run("inspect", image_of(remote, "stable"), code=3)


@pytest.mark.servers
def test_a_registry_that_forbids_deletion_says_so(
    run: Run, built: Path, unique_name: Callable[[str], str]
) -> None:
    with DockerRegistry(delete=False) as server:
        remote = RegistryReference(server.host, "m")
        for tag in ("v1", "v2"):
            run("copy", f"oci:{built}:{tag}", image_of(remote, tag))
        failed = run("prune", f"{server.host}/m", "--keep-last", "1", "--yes", code=16)
        assert "doesn't allow deletion" in failed.err


def test_pruning_without_a_policy_is_refused(run: Run, layout: Path) -> None:
    run("prune", f"oci:{layout}", "--yes", code=2)
