"""The CEL rules of `spec.template` in the CustomResourceDefinition: the checks that its models make in code."""

from __future__ import annotations

from typing import Final

from cache_agent.api.crd_schema import Path, Rules
from workspace.runtime_spec import DEFAULT_PORT, GROUP_PORT
from workspace.template_spec import (
    CONTAINER_TAKEN,
    INJECTING_LABEL,
    KEY,
    KEY_TAKEN,
    LABEL_TAKEN,
    LONGEST_KEY,
    RESERVED_KEY,
    SERVER_PATHS,
    SERVER_PORT_NAME,
    SYSTEM_CLASSES,
    SYSTEM_PATHS,
    VOLUME_TAKEN,
)

_KEYS: Final = (
    (
        f"self.all(key, key.size() <= {LONGEST_KEY} && key.matches('{KEY}'))",
        f"a key is PREFIX/NAME or NAME, of up to {LONGEST_KEY} characters",
    ),
    (f"self.all(key, !key.matches('{RESERVED_KEY}'))", KEY_TAKEN),
)
_WHEN: Final = "(has({0}.whenUnsatisfiable) ? {0}.whenUnsatisfiable : 'DoNotSchedule')"
_SERVER_PORT: Final = (
    "(has(self.runtime) && has(self.runtime.port) && self.runtime.port != 0 "
    f"? self.runtime.port : {DEFAULT_PORT})"
)
_SPANS: Final = "has(self.resources) && has(self.resources.nodes) && self.resources.nodes > 1"
_KNOWN: Final = (
    "{0}.all(mount, has(self.volumes) && self.volumes.exists(each, each.name == mount.name))"
)

# Of the whole spec, since it compares the template with the rest.
PORTS_RULE: Final = (
    "!has(self.template) || !has(self.template.sidecars) || !self.template.sidecars.exists(sidecar, "
    f"has(sidecar.ports) && sidecar.ports.exists(port, port.containerPort == {_SERVER_PORT} || "
    f"port.containerPort == {GROUP_PORT} && {_SPANS}))",
    "a sidecar's port is the server's: choose another",
)

TEMPLATE_RULES: Final[Rules] = {
    ("template",): (
        (
            f"(!has(self.volumeMounts) || {_KNOWN.format('self.volumeMounts')}) && "
            "(!has(self.sidecars) || self.sidecars.all(sidecar, !has(sidecar.volumeMounts) || "
            f"{_KNOWN.format('sidecar.volumeMounts')}))",
            "volumeMounts names a volume that isn't in volumes",
        ),
        (
            "!has(self.sidecars) || self.sidecars.all(one, !has(one.ports) || one.ports.all(port, "
            "self.sidecars.map(other, has(other.ports) ? "
            "other.ports.filter(each, each.containerPort == port.containerPort).size() : 0)"
            ".filter(count, count > 0) == [1]))",
            "two ports of sidecars have the same number",
        ),
    ),
    ("template", "labels"): (
        *_KEYS,
        (f"self.all(key, !key.matches('{INJECTING_LABEL}'))", LABEL_TAKEN),
    ),
    ("template", "annotations"): _KEYS,
    ("template", "priorityClassName"): (
        (
            f"!self.startsWith('{SYSTEM_CLASSES}')",
            "classes that begin with system- are for Kubernetes' own pods",
        ),
    ),
    ("template", "topologySpreadConstraints"): (
        (
            "self.all(one, self.filter(other, other.topologyKey == one.topologyKey && "
            f"{_WHEN.format('other')} == {_WHEN.format('one')}).size() == 1)",
            "topologySpreadConstraints has a topologyKey twice with the same whenUnsatisfiable",
        ),
    ),
    ("template", "topologySpreadConstraints", "[]"): (
        (
            f"!has(self.minDomains) || {_WHEN.format('self')} == 'DoNotSchedule'",
            "minDomains goes with whenUnsatisfiable: DoNotSchedule",
        ),
    ),
    ("template", "volumes", "[]"): (
        (
            "[has(self.configMap), has(self.secret), has(self.emptyDir), has(self.persistentVolumeClaim)]"
            ".filter(given, given).size() == 1",
            "give exactly one of configMap, secret, emptyDir and persistentVolumeClaim",
        ),
        (
            f"!self.name.matches('{VOLUME_TAKEN}')",
            "the pod has a volume of its own with this name: choose another",
        ),
    ),
    ("template", "volumeMounts", "[]"): (
        (
            f"!self.mountPath.matches('{SERVER_PATHS}')",
            "volumeMounts has a path at which the server has directories of its own",
        ),
    ),
    ("template", "sidecars", "[]"): (
        (
            f"!self.name.matches('{CONTAINER_TAKEN}')",
            "the pod has a container of its own with this name: choose another",
        ),
    ),
    ("template", "sidecars", "[]", "env", "[]"): (
        ("has(self.value) != has(self.secret)", "give exactly one of value and secret"),
    ),
    ("template", "sidecars", "[]", "ports", "[]"): (
        (
            f"self.name != '{SERVER_PORT_NAME}'",
            "the port name http is the server's: choose another",
        ),
    ),
    ("template", "sidecars", "[]", "volumeMounts", "[]"): (
        (
            f"!self.mountPath.matches('{SYSTEM_PATHS}')",
            "volumeMounts has a path of the system: /dev, /proc or /sys",
        ),
    ),
}  # fmt: skip

# Lists that are maps by a key.
TEMPLATE_KEYED: Final[tuple[tuple[Path, str], ...]] = (
    (("template", "volumes"), "name"),
    (("template", "volumeMounts"), "mountPath"),
    (("template", "sidecars"), "name"),
    (("template", "sidecars", "[]", "env"), "name"),
    (("template", "sidecars", "[]", "ports"), "name"),
    (("template", "sidecars", "[]", "volumeMounts"), "mountPath"),
)
