"""What the product relies on in an API server. The fake one of the tests must do the same as real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache_agent.api.kube.refusals import Conflict
from modelimage.errors import InvalidInput, NotFound
from tests.conformance.cases import Case, Opening, collecting, run
from tests.conformance.subject import Subject, account, deployment, new_name, workspace

Json = dict[str, Any]
CASES: list[Case] = []
case = collecting(CASES)


def test_the_server_behaves(opening: Opening, case: Case) -> None:
    run(opening, case)


# Objects


@case
async def a_new_object_gets_its_metadata(api: Subject) -> None:
    made = await api.create(deployment(new_name()))
    metadata = made["metadata"]
    assert metadata["uid"]
    assert metadata["resourceVersion"].isdecimal()
    assert metadata["generation"] == 1
    assert metadata["namespace"] == api.namespace
    assert metadata["creationTimestamp"].endswith("Z")


@case
async def a_name_is_taken_once(api: Subject) -> None:
    document = account()
    await api.create(document)
    with pytest.raises(Conflict, match="already exists"):
        await api.create(document)


@case
async def a_generated_name_begins_with_what_was_asked_for(api: Subject) -> None:
    made = await api.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"generateName": "made-"}}
    )
    assert made["metadata"]["name"].startswith("made-")
    assert made["metadata"]["name"] != "made-"


@case
async def what_is_not_there_is_not_found(api: Subject) -> None:
    for kind in ("ServiceAccount", "Workspace"):
        with pytest.raises(NotFound):
            await api.get(kind, "nothing")
        with pytest.raises(NotFound):
            await api.delete(kind, "nothing")
        with pytest.raises(NotFound):
            await api.merge(kind, "nothing", {"metadata": {"labels": {"a": "b"}}})


@case
async def the_generation_counts_changes_of_the_spec_alone(api: Subject) -> None:
    for document in (deployment(new_name()), workspace(new_name())):
        kind, name = document["kind"], document["metadata"]["name"]
        await api.create(document)
        labelled = await api.merge(kind, name, {"metadata": {"labels": {"a": "b"}}})
        assert labelled["metadata"]["generation"] == 1
        changed = await api.merge(kind, name, {"spec": {"replicas": 1}})
        assert changed["metadata"]["generation"] == 2
        await api.merge(kind, name, {"spec": {"replicas": 0}})


@case
async def a_write_that_changes_nothing_makes_no_version(api: Subject) -> None:
    document = account(labels={"a": "b"})
    made = await api.create(document)
    again = await api.merge(
        "ServiceAccount", made["metadata"]["name"], {"metadata": {"labels": {"a": "b"}}}
    )
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


@case
async def defaults_are_filled_in_and_quantities_are_canonical(api: Subject) -> None:
    document = deployment(new_name())
    container = document["spec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"requests": {"cpu": "2000m", "memory": "1024Mi"}}
    container["env"] = [{"name": "EMPTY", "value": ""}]
    made = await api.create(document)
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": "25%"}
    assert made["spec"]["progressDeadlineSeconds"] == 600
    pod = made["spec"]["template"]["spec"]
    assert (pod["restartPolicy"], pod["dnsPolicy"]) == ("Always", "ClusterFirst")
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": "2", "memory": "1Gi"}
    assert pod["containers"][0]["env"] == [{"name": "EMPTY"}]


# Writers that meet


@case
async def a_stale_version_conflicts(api: Subject) -> None:
    made = await api.create(account())
    name = made["metadata"]["name"]
    await api.merge("ServiceAccount", name, {"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(Conflict, match="has been modified"):
        await api.replace({**made, "metadata": {**made["metadata"], "labels": {"a": "c"}}})
    version = {"resourceVersion": made["metadata"]["resourceVersion"], "labels": {"a": "c"}}
    with pytest.raises(Conflict, match="has been modified"):
        await api.merge("ServiceAccount", name, {"metadata": version})


@case
async def null_takes_a_field_away(api: Subject) -> None:
    made = await api.create(account(labels={"a": "b", "c": "d"}))
    found = await api.merge(
        "ServiceAccount", made["metadata"]["name"], {"metadata": {"labels": {"a": None}}}
    )
    assert found["metadata"]["labels"] == {"c": "d"}


@case
async def another_uid_is_another_object(api: Subject) -> None:
    made = await api.create(account())
    with pytest.raises(Conflict):
        await api.delete("ServiceAccount", made["metadata"]["name"], uid="0-1-2")
    await api.delete("ServiceAccount", made["metadata"]["name"], uid=made["metadata"]["uid"])


@case
async def two_managers_conflict_about_a_value_until_one_takes_over(api: Subject) -> None:
    name = new_name()
    for document in (deployment(name), workspace(name)):
        await api.apply(document, "one")
        other = {**document, "spec": {**document["spec"], "replicas": 1}}
        with pytest.raises(Conflict, match="one"):
            await api.apply(other, "two")
        taken = await api.apply(other, "two", force=True)
        assert taken["spec"]["replicas"] == 1
        await api.apply({**document, "spec": {**document["spec"], "replicas": 1}}, "one")
        with pytest.raises(Conflict, match="two"):
            await api.apply(document, "one")
        await api.delete(document["kind"], name)


@case
async def a_field_goes_with_the_last_manager_that_applies_it(api: Subject) -> None:
    document = account(labels={"shared": "x", "own": "y"})
    await api.apply(document, "one")
    shared = {**document, "metadata": {**document["metadata"], "labels": {"shared": "x"}}}
    await api.apply(shared, "two")
    nothing = {**document, "metadata": {"name": document["metadata"]["name"]}}
    found = await api.apply(nothing, "one")
    assert found["metadata"]["labels"] == {"shared": "x"}
    found = await api.apply(nothing, "two")
    assert "labels" not in found["metadata"]


@case
async def items_of_lists_belong_to_managers_by_their_names(api: Subject) -> None:
    document = deployment(new_name())
    await api.apply(document, "one")
    side = {"name": "side", "image": "registry.invalid/side"}
    more = {**document, "spec": {"template": {"spec": {"containers": [side]}}}}
    await api.apply(more, "two")
    found = await api.apply(document, "one")
    names = [each["name"] for each in found["spec"]["template"]["spec"]["containers"]]
    assert sorted(names) == ["main", "side"]


@case
async def an_item_that_is_applied_no_more_goes_with_its_defaults(api: Subject) -> None:
    document = deployment(new_name())
    template = document["spec"]["template"]
    main, side = (
        template["spec"]["containers"][0],
        {"name": "side", "image": "registry.invalid/side"},
    )
    both = {**template, "spec": {"containers": [main, side]}}
    found = await api.apply({**document, "spec": {**document["spec"], "template": both}}, "one")
    assert len(found["spec"]["template"]["spec"]["containers"]) == 2
    found = await api.apply(document, "one")
    names = [each["name"] for each in found["spec"]["template"]["spec"]["containers"]]
    assert names == ["main"]


@case
async def applying_what_is_there_makes_no_version(api: Subject) -> None:
    # A controller would write a Deployment's status in between.
    for document in (account(labels={"a": "b"}), workspace(new_name())):
        made = await api.apply(document, "one")
        again = await api.apply(document, "one")
        assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


@case
async def a_status_is_written_apart_from_the_spec(api: Subject) -> None:
    document = workspace(new_name())
    name = document["metadata"]["name"]
    made = await api.apply({**document, "status": {"replicas": 7}}, "one")
    assert "status" not in made
    base = {key: document[key] for key in ("apiVersion", "kind")} | {"metadata": {"name": name}}
    found = await api.apply({**base, "status": {"replicas": 3}}, "one", status=True)
    assert (found["status"]["replicas"], found["metadata"]["generation"]) == (3, 1)
    changed = {"spec": {"replicas": 9}, "status": {"replicas": 4}}
    found = await api.merge("Workspace", name, changed, status=True)
    assert (found["spec"]["replicas"], found["status"]["replicas"]) == (0, 4)
    found = await api.merge("Workspace", name, {"status": {"replicas": 5}})
    assert found["status"]["replicas"] == 4


@case
async def a_status_of_nothing_is_not_found(api: Subject) -> None:
    document = {**workspace("nothing"), "status": {"replicas": 1}}
    del document["spec"]
    with pytest.raises(NotFound):
        await api.apply(document, "one", status=True)


# Validation


@case
async def a_definitions_rules_hold(api: Subject) -> None:
    for spec in (
        {"replicas": -1},
        {"scale": {"min": 3, "max": 2}},
        {"runtime": {"engine": "none"}},
    ):
        with pytest.raises(InvalidInput):
            await api.create(workspace(new_name(), **spec))
        with pytest.raises(InvalidInput):
            await api.apply(workspace(new_name(), **spec), "one")


@case
async def a_field_that_no_schema_knows_cannot_be_applied(api: Subject) -> None:
    for document in (deployment(new_name(), unknown=1), workspace(new_name(), unknown=1)):
        with pytest.raises(Exception, match="field not declared in schema"):
            await api.apply(document, "one")


@case
async def a_field_that_no_schema_knows_is_dropped_when_created(api: Subject) -> None:
    for document in (deployment(new_name(), unknown=1), workspace(new_name(), unknown=1)):
        made = await api.create(document)
        assert "unknown" not in made["spec"]


# Lists and watches


@case
async def lists_are_selected_by_labels_and_fields(api: Subject) -> None:
    one, two = account(labels={"a": "b"}), account(labels={"a": "c", "d": ""})
    for document in (one, two):
        await api.create(document)

    async def names(**query: str) -> list[str]:
        found = await api.list("ServiceAccount", **query)
        return sorted(
            each["metadata"]["name"]
            for each in found["items"]
            if each["metadata"]["name"] != "default"
        )

    first, second = one["metadata"]["name"], two["metadata"]["name"]
    assert await names(labelSelector="a=b") == [first]
    assert await names(labelSelector="a") == sorted([first, second])
    assert await names(labelSelector="a,d") == [second]
    assert await names(labelSelector="a=b,d") == []
    assert await names(fieldSelector=f"metadata.name={second}") == [second]
    with pytest.raises(InvalidInput):
        await api.list("ServiceAccount", fieldSelector="metadata.uid=x")


@case
async def events_are_selected_by_what_they_are_about(api: Subject) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "namespace": api.namespace, "name": "p", "uid": "u"}
    for reason in ("FailedMount", "Other"):
        await api.create({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": new_name()}, "involvedObject": pod,
            "reason": reason, "message": "m", "type": "Warning",
        })  # fmt: skip
    found = await api.list("Event", fieldSelector="involvedObject.kind=Pod,reason=FailedMount")
    assert [each["reason"] for each in found["items"]] == ["FailedMount"]


@case
async def a_long_list_comes_in_pages(api: Subject) -> None:
    wanted = {
        (await api.create(account(labels={"page": "x"})))["metadata"]["name"] for _ in range(5)
    }
    seen: list[str] = []
    query = {"labelSelector": "page=x", "limit": "2"}
    while True:
        found = await api.list("ServiceAccount", **query)
        assert len(found["items"]) <= 2
        seen += [each["metadata"]["name"] for each in found["items"]]
        query["continue"] = found["metadata"].get("continue", "")
        if not query["continue"]:
            break
    assert (len(seen), set(seen)) == (5, wanted)


async def watched(
    api: Subject, kind: str, version: str, labels: str, count: int
) -> list[tuple[str, str]]:
    """The types and names of the next changes."""
    found: list[tuple[str, str]] = []
    watch: AsyncIterator[tuple[str, Json]] = api.client.watch(
        api.path(kind), {"labelSelector": labels}, version
    )
    async for change, document in watch:
        if change != "BOOKMARK":
            found.append((change, document["metadata"]["name"]))
        if len(found) == count:
            break
    return found


@case
async def a_watch_goes_on_from_a_lists_version(api: Subject) -> None:
    """What stops to match is deleted, as far as the watch can see."""
    before = await api.create(account(labels={"watched": "x"}))
    listed = await api.list("ServiceAccount", labelSelector="watched=x")
    name = before["metadata"]["name"]
    await api.merge("ServiceAccount", name, {"metadata": {"annotations": {"a": "b"}}})
    other = await api.create(account(labels={"watched": "x"}))
    await api.create(account())
    await api.merge("ServiceAccount", name, {"metadata": {"labels": {"watched": "y"}}})
    await api.merge("ServiceAccount", name, {"metadata": {"labels": {"watched": "x"}}})
    await api.delete("ServiceAccount", other["metadata"]["name"])
    version = listed["metadata"]["resourceVersion"]
    found = await watched(api, "ServiceAccount", version, "watched=x", 5)
    assert found == [
        ("MODIFIED", name), ("ADDED", other["metadata"]["name"]), ("DELETED", name), ("ADDED", name),
        ("DELETED", other["metadata"]["name"]),
    ]  # fmt: skip


# Owners


@case
async def what_is_owned_goes_with_its_owner(api: Subject) -> None:
    owner = await api.create(account())
    reference = {
        "apiVersion": "v1", "kind": "ServiceAccount", "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }  # fmt: skip
    owned = await api.create(account(ownerReferences=[reference]))
    await api.delete("ServiceAccount", owner["metadata"]["name"])

    remaining = [owned["metadata"]["name"]]
    while owned["metadata"]["name"] in remaining:
        found = await api.list("ServiceAccount")
        remaining = [each["metadata"]["name"] for each in found["items"]]
