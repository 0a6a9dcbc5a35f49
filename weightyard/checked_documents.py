"""Checks the documents of files as a cluster's API server would, without one: Workspaces and CachedModels.

Documents of other kinds are others' affair: a directory of GitOps has many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import yaml
from pydantic import ValidationError

from cache_agent.api.cached_model import KIND as CACHED_MODEL
from cache_agent.api.cached_model import CachedModel
from cache_agent.api.document_errors import compose, construct, lines_of
from cache_agent.api.kube_objects import API_VERSION
from modelimage.bounds import MOST_DOCUMENT_BYTES
from modelimage.errors import InvalidInput
from modelimage.reference import parse_image
from weightyard.text import format_duration
from workspace.document import workspace_in, workspace_of
from workspace.hardware import requested_hardware
from workspace.images import images_of
from workspace.rollout_spec import Rollout, RolloutStep, Strategy
from workspace.schema import Workspace

_WORKSPACE: Final = "Workspace"
_KINDS: Final = (_WORKSPACE, CACHED_MODEL)
_GROUP: Final = f"{API_VERSION.partition('/')[0]}/"
_MOST_DEPTH: Final = 4  # of Lists in Lists, and of merged mappings


@dataclass(frozen=True, slots=True)
class CheckedDocument:
    """A document of ours. `problems`: one line each, with file and line. `does`: what it asks for, in words."""

    where: str
    kind: str
    name: str
    does: str = ""
    problems: tuple[str, ...] = ()


def check_documents(text: str, file: str) -> list[CheckedDocument]:
    """The documents of a file that are ours, in order. Raises InvalidInput where it is no YAML, or too large."""
    # Bounded before parsing: YAML aliases and nesting make large input expensive.
    if len(text) > MOST_DOCUMENT_BYTES:
        raise InvalidInput(f"{file} has more than {MOST_DOCUMENT_BYTES >> 20} MiB")
    nodes = [each for node in compose(text, file, hint="") for each in _items(node)]
    return [_checked(node, file) for node in nodes if _is_ours(node)]


def mentions_ours(text: str) -> bool:
    """Whether a text may have a document of ours, without parsing it."""
    return _GROUP in text


def _items(node: yaml.Node, depth: int = 0) -> Iterator[yaml.Node]:
    """The documents of a List, as kubectl writes them, or the document itself."""
    items = _field(node, "items")
    is_list = _text(node, "kind").endswith("List") and isinstance(items, yaml.SequenceNode)
    if is_list and items is not None and depth < _MOST_DEPTH:
        for each in items.value:
            yield from _items(each, depth + 1)
    else:
        yield node


def _is_ours(node: yaml.Node) -> bool:
    """By the group; by the kind alone, which others have too, only where the group is missing."""
    version = _text(node, "apiVersion")
    return version.startswith(_GROUP) or (not version and _text(node, "kind") in _KINDS)


def _checked(node: yaml.Node, file: str) -> CheckedDocument:
    kind = _text(node, "kind")
    where = f"{file}:{node.start_mark.line + 1}"
    name = _text(_field(node, "metadata"), "name")
    try:
        if kind == _WORKSPACE:
            workspace = _workspace(node, file)
            # For their errors, which the controller alone would tell otherwise: of names that can't be an image's,
            # and of GPUs. Without a GPU named, that of the nodes is taken.
            images_of(workspace)
            if workspace.spec.resources.gpu:
                requested_hardware(workspace.spec.resources)
            return CheckedDocument(where, kind, name, _does(workspace))
        if kind == CACHED_MODEL:
            image = _cached_model(node, file).spec.image
            parse_image(image)
            return CheckedDocument(where, kind, name, f"holds {image}")
    except InvalidInput as error:
        lines = [
            each if each.startswith(file) else f"{where}: {each}"
            for each in error.message.splitlines()
        ]
        return CheckedDocument(where, kind, name, problems=tuple(lines))
    problem = f"{where}: expected a {_WORKSPACE} or a {CACHED_MODEL}, found {kind or 'no kind'}"
    return CheckedDocument(where, kind, name, problems=(problem,))


def _workspace(node: yaml.Node, file: str) -> Workspace:
    # What a server has set doesn't belong into a file, but is no fault of an object that was read from one.
    is_read = _field(_field(node, "metadata"), "uid") is not None
    if is_read and _text(node, "apiVersion"):
        return workspace_of(construct(node, file), to_be_stored=True)
    return workspace_in(node, file)


def _cached_model(node: yaml.Node, file: str) -> CachedModel:
    try:
        return CachedModel.parse(construct(node, file))
    except ValidationError as error:
        raise InvalidInput(lines_of(error, node, file, CachedModel)) from error


def _field(node: yaml.Node | None, name: str, depth: int = 0) -> yaml.Node | None:
    """The value of a mapping's key, merged ones included."""
    if not isinstance(node, yaml.MappingNode):
        return None
    merged: list[yaml.Node] = []
    for key, value in node.value:
        if key.value == name:
            return value  # type: ignore[no-any-return]
        # YAML's merge key: what the mapping states itself wins.
        if key.value == "<<":
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
    found = (_field(each, name, depth + 1) for each in merged if depth < _MOST_DEPTH)
    return next((each for each in found if each is not None), None)


def _text(node: yaml.Node | None, name: str) -> str:
    found = _field(node, name)
    return found.value if isinstance(found, yaml.ScalarNode) else ""


def _does(workspace: Workspace) -> str:
    """How many servers a Workspace asks for, how a new version replaces them, and what it adds to their pods."""
    spec = workspace.spec
    if spec.scale is not None:
        count = f"{spec.scale.min} to {spec.scale.max} servers by {spec.scale.by.value}"
    else:
        replicas = 1 if spec.replicas is None else spec.replicas
        count = f"{replicas} server{'' if replicas == 1 else 's'}"
    added = spec.template.used
    return f"{count}; {_rollout(spec.rollout)}" + (
        f"; pods with {', '.join(added)}" if added else ""
    )


def _rollout(rollout: Rollout) -> str:
    """Its strategy and steps, and what it asks a new version and does with the old one."""
    steps = [_step(each) for each in rollout.given_steps]
    text = f"{rollout.strategy.value}: {', '.join(steps)}" if steps else rollout.strategy.value
    probes = rollout.analysis.probes
    if probes is not None:
        place = probes.config_map
        text += f"; probes of {f'ConfigMap {place.name}' if place else 'the image'} first"
    if rollout.strategy is Strategy.BLUE_GREEN:
        text += f"; the old version stays for {format_duration(rollout.keep_seconds)}"
    return text


def _step(step: RolloutStep) -> str:
    if step.weight is not None:
        return f"{step.weight} %"
    if step.analysis is not None:
        return f"analysis of {format_duration(step.analysis.seconds)}"
    seconds = step.pause.seconds if step.pause else None
    return "pause until resumed" if seconds is None else f"pause of {format_duration(seconds)}"
