"""Rendering the chart with the real helm, and finding things in what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.servers.process import child_environment

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "weightyard"
ADMISSION = "admissionregistration.k8s.io/v1"
HELM = Path(sys.prefix) / "bin" / "helm"


class Refused(Exception):
    """helm didn't render; the message is helm's."""


def helm(*arguments: str, values: Json | None = None) -> str:
    """Run helm. Raises Refused."""
    extra = ["--values", "-"] if values is not None else []
    done = subprocess.run(
        [str(HELM), *arguments, *extra],
        input=json.dumps(values or {}),
        env=child_environment(Path.home()),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(values: Json | None = None, *, kube: str = "1.36.0") -> list[Json]:
    """The chart's objects. Raises Refused."""
    text = _rendered(json.dumps(values or {}), kube)
    # libyaml's loader: the other one takes longer than helm
    return [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


@cache
def _rendered(values: str, kube: str) -> str:
    command = ["template", "weightyard", str(CHART), "--namespace", "weightyard-system"]
    if tuple(map(int, kube.split(".")[:2])) >= (1, 30):
        # what a server of such a version has; `helm template` asks none
        command += ["--api-versions", f"{ADMISSION}/ValidatingAdmissionPolicy"]
    return helm(*command, "--kube-version", kube, values=json.loads(values))


def find(objects: list[Json], kind: str, suffix: str = "") -> Json:
    """The one object of a kind whose name ends so."""
    (found,) = [e for e in objects if e["kind"] == kind and e["metadata"]["name"].endswith(suffix)]
    return found


def pod_specs(objects: list[Json]) -> Iterator[tuple[str, Json]]:
    """Every pod in them, by its object's name."""
    for each in objects:
        spec = (
            each["spec"]
            if each["kind"] == "Pod"
            else each.get("spec", {}).get("template", {}).get("spec")
        )
        if spec and "containers" in spec:
            yield f"{each['kind']}/{each['metadata']['name']}", spec


def containers(objects: list[Json]) -> Iterator[tuple[str, Json]]:
    """Every container, init containers too."""
    for name, spec in pod_specs(objects):
        for each in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{name}/{each['name']}", each
