"""Turns KAITO's Workspaces and InferenceSets into Workspaces, and tells what has no equivalent. Pure.

By the types of kaito.sh/v1alpha1 and v1beta1 (2026-08). What is there and isn't understood becomes a note, so that
nothing is lost in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cache_agent.api.document_errors import values_of
from modelimage.bounds import parse_count
from modelimage.errors import InvalidInput
from modelimage.reference import RegistryReference, parse_image
from weightyard.kaito.instances import INSTANCES
from workspace.document import parse_workspace

Json = dict[str, Any]

GROUP: Final = "kaito.sh/"
_SCALER: Final = "scaledobject.kaito.sh/"
_CONFIG_KEY: Final = "inference_config.yaml"
_WAITING: Final = "vllm:num_requests_waiting"
_MOST_NAME: Final = 52
_SCALARS: Final = (str, int, float)
# Annotations that need no equivalent, since servers are vLLM's anyway or nothing is measured at their start.
_NEEDLESS: Final = frozenset({"kaito.sh/disable-benchmark"})
_OTHERS: Final[Mapping[str, str]] = {
    "RAGEngine": "retrieval isn't served here",
    "ModelMirror": "nodes hold models by a CachedModel",
    "MultiRoleInference": "servers that share prefill and decode are llm-d's: see `weightyard render --to llm-d`",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """One of KAITO's documents. `workspace` is None where it has no equivalent, for the reason in `notes`."""

    source: str
    workspace: Json | None
    notes: tuple[str, ...]


def import_documents(
    documents: Iterable[Json], *, presets: Mapping[str, str], target: str | None = None
) -> list[Imported]:
    """What KAITO's documents are here, in order; others are left out, but for the ConfigMaps that they name.

    `target`: the repository below which each model is to be built. Raises InvalidInput.
    """
    listed = list(documents)
    configs = {
        _name(each): _mapping(each, "data") for each in listed if each.get("kind") == "ConfigMap"
    }
    ours = [each for each in listed if _text(each, "apiVersion").startswith(GROUP)]
    return [_imported(each, configs, presets, target) for each in ours]


@dataclass
class _Draft:
    """A Workspace in the making, and what is to be said of it."""

    document: Json
    notes: list[str] = field(default_factory=list)

    @property
    def spec(self) -> Json:
        found: Json = self.document["spec"]
        return found


def _imported(
    document: Json, configs: Mapping[str, Json], presets: Mapping[str, str], target: str | None
) -> Imported:
    kind, name = _text(document, "kind"), _name(document)
    source = f"KAITO's {kind} {name}"
    if kind == "InferenceSet":
        spec = _mapping(document, "spec")
        template = _mapping(spec, "template")
    elif kind == "Workspace":
        spec, template = {}, document
    else:
        return Imported(source, None, (_OTHERS.get(kind, "this kind isn't known here"),))
    inference, resource = _mapping(template, "inference"), _mapping(template, "resource")
    refusal = _refusal(template, inference)
    if refusal:
        return Imported(source, None, (refusal,))
    draft = _Draft(
        {
            "apiVersion": "weightyard.dev/v1alpha1",
            "kind": "Workspace",
            "metadata": _metadata(document),
            "spec": {"model": {}},
        }
    )
    if draft.document["metadata"]["name"] != name:
        draft.notes.append(f"Its name was {name}, which a Workspace can't have.")
    _model(draft, _mapping(inference, "preset"), presets, target)
    _runtime(draft, inference, configs)
    _resources(draft, resource, _mapping(spec, "labelSelector"))
    annotations = _mapping(_mapping(document, "metadata"), "annotations")
    _replicas(draft, spec, annotations)
    draft.notes += _annotation_notes(annotations)
    # Parsed as a file would be, for errors that name the field.
    parse_workspace(json.dumps(draft.document), name=source)
    return Imported(source, draft.document, tuple(draft.notes))


def _refusal(template: Json, inference: Json) -> str:
    """Why there is no equivalent; empty where there is one."""
    if template.get("tuning"):
        return (
            "it tunes a model, which isn't done here: a tuned adapter is served by runtime.adapters"
        )
    if not inference:
        return "it serves no model"
    if inference.get("template"):
        return "it serves a pod template of your own, which stays a Deployment; a model volume gives it the weights"
    return ""


def _metadata(document: Json) -> Json:
    found = _mapping(document, "metadata")
    name = re.sub(r"[^a-z0-9]+", "-", _name(document).lower()).strip("-")
    # Workspaces' names begin with a letter, as Services' do.
    named = name if name[:1].isalpha() else f"m-{name}"
    made: Json = {"name": named[:_MOST_NAME].rstrip("-")}
    if namespace := _text(found, "namespace"):
        made["namespace"] = namespace
    labels = {key: each for key, each in _strings(found, "labels").items() if GROUP not in key}
    return {**made, **({"labels": labels} if labels else {})}


def _model(draft: _Draft, preset: Json, presets: Mapping[str, str], target: str | None) -> None:
    name = _text(preset, "name")
    repository = name if "/" in name else presets.get(name.lower())
    if repository is None:
        known = ", ".join(sorted(presets))
        raise InvalidInput(
            f"{draft.document['metadata']['name']}: no preset {name!r} is known",
            hint=f"Name its repository in a file, as `{name}: org/name@revision`, and give that by --catalogue. "
            f"Known are {known}.",
        )
    model = draft.spec["model"]
    model["hub"] = repository
    if target is not None:
        model["build"] = {"to": _below(target, repository)}
    else:
        draft.notes.append(
            "Nodes serve images: give --to REGISTRY/PATH to have the model built there, or build it with "
            f"`weightyard build hf://{repository} --to …` and name that as model.image."
        )
    options = _mapping(preset, "presetOptions")
    secret = _text(options, "modelAccessSecret")
    if secret and target is not None:
        # KAITO's Secret has the key HF_TOKEN, by which the build reads it too.
        model["build"]["secret"] = secret
    elif secret:
        draft.notes.append(f"The Secret {secret} has the Hub's token that a build needs.")
    if image := _text(options, "image"):
        draft.notes.append(
            f"presetOptions.image ({image}) has server and weights in one; here they are apart."
        )
    if options.get("imagePullSecrets"):
        draft.notes.append("imagePullSecrets: model.pullSecret is the one of the model's image.")


def _below(target: str, repository: str) -> str:
    """A repository below the target, named as the Hub's. Raises InvalidInput."""
    name = repository.partition("@")[0].partition("/")[2].lower()
    reference = f"{target.rstrip('/')}/{re.sub(r'[^a-z0-9._-]+', '-', name)}"
    if not isinstance(parse_image(reference), RegistryReference):
        raise InvalidInput(
            f"--to: {target!r} isn't a repository", hint="Such as registry.example/team."
        )
    return reference


def _runtime(draft: _Draft, inference: Json, configs: Mapping[str, Json]) -> None:
    runtime: Json = {}
    config = _text(inference, "config")
    if config and config not in configs:
        draft.notes.append(
            f"The ConfigMap {config} isn't in these files: put its vLLM settings into runtime.args."
        )
    elif config:
        settings = _vllm_settings(configs[config], name=config)
        runtime, notes = _arguments(settings)
        draft.notes += notes
    adapters = inference.get("adapters")
    for each in adapters if isinstance(adapters, list) else ():
        found = _mapping(each, "source") if isinstance(each, dict) else {}
        named = _text(found, "image") or _text(found, "name")
        draft.notes.append(
            f"The adapter {named} needs an image of its own: build it with `weightyard build`, and list it under "
            "runtime.adapters."
        )
    if runtime:
        draft.spec["runtime"] = runtime


def _vllm_settings(data: Json, *, name: str) -> Json:
    """The section `vllm` of a ConfigMap's settings. Raises InvalidInput."""
    text, what = data.get(_CONFIG_KEY), f"ConfigMap {name}, {_CONFIG_KEY}"
    if not isinstance(text, str):
        raise InvalidInput(f"ConfigMap {name} has no {_CONFIG_KEY}")
    found = next(iter(values_of(text, what)), None)
    return _mapping(found if isinstance(found, dict) else {}, "vllm")


def _arguments(settings: Json) -> tuple[Json, list[str]]:
    """`spec.runtime` for vLLM's settings, and what is said of them."""
    args: list[str] = []
    runtime: Json = {}
    notes: list[str] = []
    for key, value in settings.items():
        flag = str(key).replace("_", "-")
        if not isinstance(value, _SCALARS):
            notes.append(f"{flag}: not a single value.")
        elif flag == "max-model-len" and _number(value, 0):
            runtime["contextLength"] = _number(value, 0)
        elif flag in ("tensor-parallel-size", "pipeline-parallel-size"):
            notes.append(f"{flag} {value}: derived from resources.gpus and nodes.")
        elif isinstance(value, bool):
            args.append(f"--{'' if value else 'no-'}{flag}")
        else:
            args += [f"--{flag}", str(value)]
    if args:
        runtime["args"] = args
        notes.append(
            "runtime.args are KAITO's for its vLLM: `weightyard up --dry-run` tells which this one refuses."
        )
    return runtime, notes


def _resources(draft: _Draft, resource: Json, selector: Json) -> None:
    resources: Json = {}
    instance = _text(resource, "instanceType")
    count = _number(resource.get("count"), 1)
    known = INSTANCES.get(instance)
    if known is not None:
        resources["gpu"] = known.gpu
        resources["gpus"] = known.count * count
        draft.notes.append(
            f"Nodes of {instance} must exist, or be made: see `weightyard help nodes`, resources.provisioning."
        )
    else:
        named = f"Nothing is known of {instance}" if instance else "No instanceType is named"
        draft.notes.append(f"{named}: set resources.gpu, and gpus unless the model is to choose.")
    if count > 1:
        resources["nodes"] = count
    _partition(draft, resources, _mapping(resource, "partition"))
    labels = _strings(_mapping(resource, "labelSelector") or selector, "matchLabels")
    if labels:
        resources["nodeSelector"] = labels
    if _mapping(resource, "labelSelector").get("matchExpressions"):
        draft.notes.append("labelSelector.matchExpressions: nodeSelector takes labels alone.")
    if resource.get("preferredNodes"):
        draft.notes.append(
            "preferredNodes: nodes that hold the model are preferred, and no others."
        )
    if resources:
        draft.spec["resources"] = resources


def _partition(draft: _Draft, resources: Json, partition: Json) -> None:
    if not partition:
        return
    profile = _text(partition, "profile")
    if partition.get("mode") == "mig" and profile:
        resources["migProfile"] = profile.removeprefix("mig-")
        resources["gpus"] = 1
    else:
        draft.notes.append("resource.partition: a share of a GPU is resources.fraction.")


def _replicas(draft: _Draft, spec: Json, annotations: Json) -> None:
    replicas = _number(spec.get("replicas"), 1) if spec else None
    if annotations.get(f"{_SCALER}auto-provision") == "true":
        least = _number(annotations.get(f"{_SCALER}min-replicas"), replicas or 1)
        most = _number(
            annotations.get(f"{_SCALER}max-replicas"), _number(spec.get("nodeCountLimit"), least)
        )
        scale: Json = {"min": least, "max": max(1, least, most)}
        metric = _text(annotations, f"{_SCALER}metricName")
        threshold = _number(annotations.get(f"{_SCALER}threshold"), 0)
        if threshold and metric in ("", _WAITING):
            scale["queueDepth"] = threshold
        else:
            draft.notes.append(
                "It scales by another measure; here servers are added by waiting requests."
            )
        draft.spec["scale"] = scale
    elif replicas is not None:
        draft.spec["replicas"] = replicas
        if spec.get("nodeCountLimit"):
            draft.notes.append(
                "nodeCountLimit: scale.max bounds the replicas of a Workspace that scales."
            )
    for name in ("updateStrategy", "autoUpgrade"):
        if spec.get(name):
            draft.notes.append(f"{name}: a new version rolls as spec.rollout says.")


def _annotation_notes(annotations: Json) -> Iterator[str]:
    for name, value in annotations.items():
        if name == "kaito.sh/runtime" and value != "vllm":
            yield f"It ran on {value}; it is served by vLLM here."
        elif name == "kaito.sh/enablelb":
            yield "kaito.sh/enablelb: spec.route gives it an address outside of the cluster."
        elif name.startswith(GROUP) and name != "kaito.sh/runtime" and name not in _NEEDLESS:
            yield f"The annotation {name} has no equivalent."


def _mapping(document: Json, name: str) -> Json:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _strings(document: Json, name: str) -> dict[str, str]:
    """The members that are text. Never more than that: aliases of YAML make a small text a huge value."""
    found = _mapping(document, name)
    return {
        key: each for key, each in found.items() if isinstance(key, str) and isinstance(each, str)
    }


def _text(document: Json, name: str) -> str:
    found = document.get(name)
    return found if isinstance(found, str) else ""


def _name(document: Json) -> str:
    return _text(_mapping(document, "metadata"), "name")


def _number(value: object, default: int) -> int:
    """A number, or one in text; `default` for anything else."""
    found = parse_count(str(value)) if isinstance(value, _SCALARS) else None
    return default if found is None else found
