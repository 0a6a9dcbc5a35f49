"""Writes desired models and reads their status, in a cluster through kubectl or from this machine's agent."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import yaml
from pydantic import ValidationError

from cache_agent.api import cached_model, node_cache
from cache_agent.api.cached_model import CachedModel
from cache_agent.api.control_client import AgentClient
from cache_agent.api.kube_objects import API_VERSION
from cache_agent.api.node_cache import NodeCache
from cache_agent.daemon.cache_api import open_cache
from cache_agent.prewarm.documents import explain
from cache_agent.store.paths import StorePaths
from modelimage import errors
from modelimage.access import Access
from modelimage.digest import Digest
from modelimage.errors import (
    Busy,
    EngineFailed,
    InvalidInput,
    NotFound,
    NotWritable,
    TimedOut,
)
from modelimage.reference import parse_image
from modelimage.yaml_text import parse_yaml
from weightyard.kubectl import Kubectl, kubectl

Json = dict[str, Any]

_MODELS: Final = f"/apis/{API_VERSION}/{cached_model.PLURAL}"
_NODES: Final = f"/apis/{API_VERSION}/{node_cache.PLURAL}"
# Waiting doesn't help with these errors: someone has to change something.
_LASTING: Final = ("NotFound", "AccessDenied", "UnknownVariant", "InvalidInput", "InvalidImage")


class PrewarmTarget(Protocol):
    """A target that holds desired models: a cluster, or this machine's agent."""

    @property
    def poll_seconds(self) -> float:
        """Seconds between two status requests."""

    @property
    def is_read(self) -> bool:
        """Whether somebody is there who reads desired models now."""

    def put(self, document: Json) -> None:
        """Creates or updates a desired model. Raises the target's access errors."""

    def spec(self, name: str) -> Json | None:
        """The spec of a desired model; None when there is none of this name."""

    def remove(self, name: str) -> None:
        """Removes a desired model. Raises NotFound."""

    def status(self, name: str) -> PrewarmStatus:
        """The status for the current version of the desired model."""

    def nodes(self) -> list[NodeCache]:
        """The reports of all nodes."""


@dataclass(frozen=True, slots=True)
class PrewarmStatus:
    """The status of one desired model. `failure` is the first failed node's (reason, message)."""

    ready: bool
    percent: int
    text: str
    failure: tuple[str, str] | None = None


def wait_ready(
    target: PrewarmTarget,
    name: str,
    *,
    seconds: float | None,
    show: Callable[[PrewarmStatus], None],
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Waits until all selected nodes hold the model. Raises TimedOut, and errors that waiting can't fix."""
    deadline = None if seconds is None else monotonic() + seconds
    while True:
        status = target.status(name)
        show(status)
        if status.ready:
            return
        if status.failure is not None and status.failure[0] in _LASTING:
            reason, message = status.failure
            # A node's reason for a failure is the name of its error's class.
            kind = getattr(errors, reason)
            raise kind(message, hint="Correct it and try again; the agents keep retrying.")
        # Checked after the status, so that a deadline of 0 still reports a model that is ready.
        if deadline is not None and monotonic() >= deadline:
            raise TimedOut(
                f"{name} isn't ready after {seconds:g} s: {status.text}",
                hint="It continues in the background; see `weightyard status`.",
            )
        sleep(target.poll_seconds)


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """This machine's agent, which reads desired models from a directory beside its store."""

    root: Path
    access: Access
    poll_seconds: float = 0.3

    @property
    def is_read(self) -> bool:
        return AgentClient.from_socket(StorePaths(self.root).socket) is not None

    def put(self, document: Json) -> None:
        path = self._path(document["metadata"]["name"])
        text = yaml.safe_dump(document, sort_keys=False)
        # Written under a hidden name and renamed: the agent must never read half a document.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text)
            temporary.replace(path)
        except OSError as error:
            raise NotWritable(f"can't write {path}: {error.strerror}") from error

    def spec(self, name: str) -> Json | None:
        path = self._path(name)
        try:
            documents = parse_yaml(path.read_text(), what=str(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotWritable(f"can't read {path}: {error.strerror}") from error
        found = documents[0].get("spec") if documents and isinstance(documents[0], dict) else None
        return found if isinstance(found, dict) else {}

    def remove(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink()
        except FileNotFoundError as error:
            raise NotFound(
                f"no CachedModel named {name} is here", hint="See `weightyard status`."
            ) from error
        except OSError as error:
            raise NotWritable(f"can't remove {path}: {error.strerror}") from error

    def status(self, name: str) -> PrewarmStatus:
        (node,) = self.nodes()
        found = next((each for each in node.status.desired if each.name == name), None)
        if found is None:
            return PrewarmStatus(ready=False, percent=0, text="the agent hasn't seen it yet")
        if found.reason == "NoAgent":
            raise Busy(
                f"no agent is running on {self.root}",
                hint="It is desired, and fetched once `weightyard agent` runs; `weightyard pull` fetches it now.",
            )
        failure = (found.reason, found.message) if found.state == "Failed" else None
        text = f"{found.state.lower()} {found.message}".strip()
        return PrewarmStatus(found.state == "Ready", percent(found), text, failure)

    def nodes(self) -> list[NodeCache]:
        with open_cache(self.root, self.access, create=False) as cache:
            return [cache.status()]

    def _path(self, name: str) -> Path:
        return StorePaths(self.root).prewarm / f"{name}.yaml"


@dataclass(frozen=True, slots=True)
class ClusterTarget:
    """A cluster with Weightyard installed."""

    kubectl: Kubectl
    poll_seconds: float = 2.0

    @property
    def is_read(self) -> bool:
        return True

    def put(self, document: Json) -> None:
        name = document["metadata"]["name"]
        try:
            found = self.kubectl.get(f"{_MODELS}/{name}")
        except NotFound:
            self._installed(lambda: self.kubectl.create(_MODELS, document))
            return
        # Replaced with the resourceVersion that was read: a concurrent change fails with a
        # conflict.
        if found.get("spec") != document["spec"]:
            self.kubectl.replace(f"{_MODELS}/{name}", {**found, "spec": document["spec"]})

    def spec(self, name: str) -> Json | None:
        try:
            return dict(self.kubectl.get(f"{_MODELS}/{name}").get("spec") or {})
        except NotFound:
            return None

    def remove(self, name: str) -> None:
        # Read first: deleting a missing object isn't an error for Kubectl, but a mistyped name is one for the user.
        self.kubectl.get(f"{_MODELS}/{name}")
        self.kubectl.delete(f"{_MODELS}/{name}")

    def status(self, name: str) -> PrewarmStatus:
        model = CachedModel.parse(self.kubectl.get(f"{_MODELS}/{name}"))
        status = model.status
        # The status of an earlier spec would show an updated model as ready.
        if status.observed_generation < model.metadata.generation:
            return PrewarmStatus(ready=False, percent=0, text="the controller hasn't seen it yet")
        ready = next((each for each in status.conditions if each.type == "Ready"), None)
        failure = status.failures[0] if status.failures else None
        text = f"{status.held or '0/0'} nodes" + (f": {ready.message}" if ready else "")
        return PrewarmStatus(
            ready=ready is not None and ready.status == "True",
            percent=status.percent,
            text=text,
            failure=(failure.reason, f"{failure.node}: {failure.message}") if failure else None,
        )

    def nodes(self) -> list[NodeCache]:
        found = self._installed(lambda: self.kubectl.get(_NODES))
        items = found.get("items") or []
        head = {"apiVersion": API_VERSION, "kind": node_cache.KIND}
        return [NodeCache.model_validate({**head, **each}) for each in items]

    @staticmethod
    def _installed(call: Callable[[], Json]) -> Json:
        """Runs a call; NotFound for a whole kind means that Weightyard isn't installed."""
        try:
            return call()
        except NotFound as error:
            raise EngineFailed(
                "Weightyard isn't installed in this cluster",
                hint="Install the chart: `weightyard help cluster`.",
            ) from error


def prewarm_target(
    root: Path, access: Access, *, cluster: bool, context: str | None, kubeconfig: str | None
) -> PrewarmTarget:
    """The cluster, where one of its options is given, else this machine's agent."""
    if cluster or context or kubeconfig:
        return ClusterTarget(kubectl(context, kubeconfig))
    return LocalTarget(root, access)


def percent(wanted: node_cache.DesiredModelStatus) -> int:
    """The percentage of the model that a node holds."""
    if wanted.state == "Ready":
        return 100
    # At most 99 until Ready: all bytes may be there before they are verified.
    return min(99, 100 * wanted.bytes_done // wanted.bytes_total) if wanted.bytes_total else 0


def name_of(image: str, variant: str | None) -> str:
    """A default name from an image reference: `llama-v1-int8`."""
    last = image.removeprefix("oci:").rstrip("/").rpartition("/")[2].partition("@")[0]
    text = re.sub(r"[^a-z0-9]+", "-", f"{last}-{variant}" if variant else last, flags=re.I)
    return text.lower().strip("-")[:63].rstrip("-") or "model"


def free_name(target: PrewarmTarget, image: str, variant: str | None) -> str:
    """The default name of the CachedModel of an image: `name_of`, unless that is another image's here.

    Then the beginning of the reference's digest makes it unique, so that no image takes the place of another.
    """
    plain = name_of(image, variant)
    whole = f"{canonical_image(image)} {variant or ''}".encode()
    # 54 characters, a hyphen and 8 digits: the 63 of `name_of`.
    unique = f"{plain[:54].rstrip('-')}-{Digest.of(whole).hex[:8]}"
    # This one first: an image that once got the unique name keeps it, also when the plain one is free again.
    if target.spec(unique) is not None:
        return unique
    found = target.spec(plain)
    taken = found is not None and not is_of(found, image, variant)
    return unique if taken else plain


def is_of(spec: Json, image: str, variant: str | None) -> bool:
    """Whether a desired model is this variant of this image."""
    known = str(spec.get("image") or "")
    return (canonical_image(known), spec.get("variant")) == (canonical_image(image), variant)


def canonical_image(text: str) -> str:
    """An image's name in full; as it is, where it is none."""
    try:
        return str(parse_image(text))
    except InvalidInput:
        return text


def node_selector(nodes: tuple[str, ...]) -> dict[str, str]:
    """Labels from `key=value` arguments and at most one node name. Raises InvalidInput."""
    selector: dict[str, str] = {}
    for each in (part for text in nodes for part in text.split(",") if part):
        key, equals, value = each.partition("=")
        label, wanted = (key, value) if equals else ("kubernetes.io/hostname", each)
        if selector.setdefault(label, wanted) != wanted:
            raise InvalidInput(
                f"no node has both {label}={selector[label]} and {label}={wanted}",
                hint="Label the nodes (kubectl label node), and give that label.",
            )
    return selector


def checked(document: Json) -> Json:
    """The document, if agents can parse it. Raises InvalidInput."""
    try:
        CachedModel.parse(document)
    except ValidationError as error:
        raise InvalidInput(explain(error)) from error
    return document
