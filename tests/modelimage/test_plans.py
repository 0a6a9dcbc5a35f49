"""Pure plans: what to push, what differs, what to prune, what a registry won't take, how a blob is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.image_diff import Change, compare
from modelimage.prune_plan import PrunePolicy, plan_prune, unreferenced, version_key
from modelimage.publication import Document
from modelimage.push import plan_push
from modelimage.record import Record
from modelimage.registry.blob_upload import chunk_stop
from modelimage.registry.preflight import RegistryLimit, check_image, findings
from modelimage.registry.profiles import GIB, MIB, UNLISTED, UploadStyle, profile_for
from modelimage.registry.upload import Session, Tally
from tests.modelimage.strategies import descriptors, digests, records

# Pushing


@given(st.lists(descriptors, max_size=8), st.data())
def test_a_push_plan_holds_each_blob_once(blobs: list[Descriptor], data: st.DataObject) -> None:
    """Law: `send` and `held` together are the blobs, once each."""
    every = {blob.digest for blob in blobs}
    present = data.draw(st.sets(st.sampled_from(sorted(every))) if every else st.just(set()))
    plan = plan_push(blobs, present)
    assert {blob.digest for blob in plan.held} == present
    assert {blob.digest for blob in plan.send} == every - present
    assert len(plan.send) + len(plan.held) == len(every)
    assert plan.size == sum(blob.size for blob in plan.send)
    assert [blob.size for blob in plan.send] == sorted(
        (blob.size for blob in plan.send), reverse=True
    )


@given(st.integers(1, 10**12), st.integers(1, 10**9), st.integers(0, 10**9), st.integers(0, 10**12))
def test_chunks_cover_the_blob_and_none_is_too_small(
    size: int, chunk: int, minimum: int, offset: int
) -> None:
    session = Session("u", offset % size, minimum)
    stop = chunk_stop(session, size, chunk)
    length = stop - session.offset
    assert length > 0
    assert stop <= size
    assert stop == size or (length >= minimum and length >= chunk)
    assert stop == size or size - stop >= minimum


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_a_tally_tells_exactly_where_it_is(positions: list[int]) -> None:
    told: list[int] = []
    tally = Tally(told.append)
    for position in positions:
        tally.reach(position)
        assert sum(told) == position
    assert 0 not in told


# Comparing


@given(records())
def test_equal_records_differ_in_nothing(record: Record) -> None:
    found = compare(record, record)
    assert (found.files, found.layers, found.moved_bytes) == ((), (), 0)
    assert found.shared_bytes == sum(layer.size for layer in record.layers)


@given(records(), records())
def test_a_difference_is_the_way_from_one_to_the_other(before: Record, after: Record) -> None:
    found = compare(before, after)
    files = {file.path: file.size for file in before.files}
    for change in found.files:
        assert files.get(change.path) == change.before
        if change.change is Change.REMOVED:
            del files[change.path]
        else:
            assert change.after is not None
            files[change.path] = change.after
    assert files == {file.path: file.size for file in after.files}
    assert found.moved_bytes + found.shared_bytes == sum(layer.size for layer in after.layers)


# Pruning

A, B, C, D = (Digest.of(name) for name in (b"a", b"b", b"c", b"d"))


def test_versions_sort_as_people_sort_them() -> None:
    tags = ["v10", "v2", "v2-int8", "latest", "v2.10", "v2.9", "1.0"]
    assert sorted(tags, key=version_key) == [
        "1.0", "latest", "v2", "v2-int8", "v2.9", "v2.10", "v10",
    ]  # fmt: skip


def test_the_last_versions_are_kept_with_their_variants() -> None:
    tags = {"v1": A, "v1-int8": B, "v2": B, "v2-int8-modelpack": C, "v10": D, "v10-int8": D}
    plan = plan_prune(tags, PrunePolicy(keep_last=2))
    assert plan.kept == ("v2", "v2-int8-modelpack", "v10", "v10-int8")
    assert plan.removed == ("v1", "v1-int8")
    assert plan.manifests == (A,), "v2 still names what v1-int8 named"


def test_patterns_keep_too() -> None:
    tags = {"v1": A, "v2": B, "stable": C}
    assert plan_prune(tags, PrunePolicy(keep=("stable",), keep_last=1)).removed == ("v1",)
    assert plan_prune(tags, PrunePolicy(keep=("v*",))).removed == ("stable",)


def test_what_is_about_a_manifest_goes_with_it() -> None:
    tags = {
        "v1": A, "v2": B,
        f"sha256-{A.hex}": C, f"sha256-{A.hex}.sig": D, f"sha256-{B.hex}.sig": C,
    }  # fmt: skip
    plan = plan_prune(tags, PrunePolicy(keep_last=1))
    assert set(plan.removed) == {"v1", f"sha256-{A.hex}", f"sha256-{A.hex}.sig"}
    assert set(plan.manifests) == {A, D}


def test_what_is_about_a_manifest_inside_an_image_goes_with_the_last_image_that_has_it() -> None:
    tags = {"v1": A, "v2": B, f"sha256-{C.hex}.sig": D}
    alone = plan_prune(tags, PrunePolicy(keep_last=1), {A: {A, C}, B: {B}})
    assert set(alone.removed) == {"v1", f"sha256-{C.hex}.sig"}
    assert set(alone.subjects) == {A, C}
    shared = plan_prune(tags, PrunePolicy(keep_last=1), {A: {A, C}, B: {B, C}})
    assert set(shared.removed) == {"v1"}
    assert shared.subjects == (A,)


_tags = st.from_regex(r"v[0-9]{1,2}(-int[48])?(-modelpack)?", fullmatch=True)


@given(
    st.dictionaries(_tags, st.sampled_from([A, B, C, D])),
    st.integers(0, 3),
    st.lists(st.sampled_from(["v1*", "*int8*", "nothing"]), max_size=2),
)
def test_no_manifest_of_a_kept_tag_is_ever_removed(
    tags: dict[str, Digest], last: int, keep: list[str]
) -> None:
    """Law: a manifest that a kept tag names is never in the plan."""
    if not last and not keep:
        with pytest.raises(InvalidInput):
            PrunePolicy(tuple(keep), last)
        return
    plan = plan_prune(tags, PrunePolicy(tuple(keep), last))
    assert {*plan.kept, *plan.removed} == tags.keys()
    assert not {*plan.kept} & {*plan.removed}
    assert not {tags[tag] for tag in plan.kept} & {*plan.manifests}


@given(
    st.dictionaries(digests, st.integers(0, 9), max_size=5),
    st.lists(st.lists(digests, max_size=3), max_size=3),
)
def test_garbage_is_what_nothing_reaches(
    blobs: dict[Digest, int], reachable: list[list[Digest]]
) -> None:
    garbage = unreferenced(blobs, reachable)
    alive = {digest for each in reachable for digest in each}
    assert garbage.keys() == blobs.keys() - alive


# Profiles and limits


@pytest.mark.parametrize(
    ("host", "name", "style"),
    [
        ("ghcr.io", "GitHub Container Registry", UploadStyle.MONOLITHIC),
        ("123.dkr.ecr.eu-west-1.amazonaws.com", "Amazon ECR", UploadStyle.MONOLITHIC),
        ("public.ecr.aws", "Amazon ECR Public", UploadStyle.MONOLITHIC),
        ("europe-docker.pkg.dev", "Google Artifact Registry", UploadStyle.MONOLITHIC),
        ("team.azurecr.io:443", "Azure Container Registry", UploadStyle.MONOLITHIC),
        ("registry-1.docker.io", "Docker Hub", UploadStyle.CHUNKED),
        ("harbor.example.com", "Harbor", UploadStyle.CHUNKED),
        ("notghcr.io", "unlisted", UploadStyle.CHUNKED),
        ("127.0.0.1:5000", "unlisted", UploadStyle.CHUNKED),
    ],
)
def test_registries_are_known_by_their_hosts(host: str, name: str, style: UploadStyle) -> None:
    assert (profile_for(host).name, profile_for(host).style) == (name, style)


def test_a_layer_too_large_is_refused_with_the_option_that_mends_it() -> None:
    blob = Descriptor("x", A, 10 * 10**9 + 1)
    with pytest.raises(RegistryLimit, match="GitHub") as caught:
        check_image("ghcr.io", [], [blob])
    assert "--max-layer-size 10000000000" in str(caught.value.hint)
    assert check_image("quay.io", [], [blob]) == []


def test_a_manifest_too_large_is_refused() -> None:
    document = Document.from_bytes("x", b" " * (4 * MIB + 1))
    with pytest.raises(RegistryLimit, match="manifests of at most"):
        check_image("r.azurecr.io", [document], [])


def test_what_may_fail_is_said_and_not_refused() -> None:
    slow = findings(profile_for("ghcr.io"), layer_sizes=[9 * 10**9])
    assert [(finding.fatal, "600 s" in finding.message) for finding in slow] == [(False, True)]
    many = findings(UNLISTED, layer_sizes=[], layer_count=101)
    assert [(finding.fatal, "127" in finding.message) for finding in many] == [(False, True)]
    assert findings(UNLISTED, layer_sizes=[500 * GIB], layer_count=100) == []
