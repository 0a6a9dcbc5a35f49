"""Runs the chart's own pods with podman, as a node would: its containers, users, capabilities, volumes and propagation.

What stands in for kubelet and its runtime. Networks are the host's; environment from fields is given by the test.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chart.charting import find
from tests.images.building import Workshop, answers

Json = dict[str, Any]
_PROPAGATION = {"Bidirectional": "rshared", "HostToContainer": "rslave", None: "rprivate"}


@dataclass
class NodePod:
    """A DaemonSet's pod on this machine. `fields` are values of fieldRefs by path; `folder` keeps its volumes."""

    workshop: Workshop
    objects: list[Json]
    folder: Path
    fields: Mapping[str, str]
    started: list[str] = field(default_factory=list)

    @property
    def spec(self) -> Json:
        found: Json = find(self.objects, "DaemonSet")["spec"]["template"]["spec"]
        return found

    def start(self) -> None:
        """Run the init containers one after another, then start the others."""
        for each in self.spec["initContainers"]:
            self.workshop.podman("run", "--rm", *self._options(each), *self._command(each))
        for each in self.spec["containers"]:
            name = self.name(each["name"])
            self.started.append(name)
            self.workshop.podman(
                "run", "--detach", "--name", name, *self._options(each), *self._command(each)
            )

    def wait_until_ready(self, port: int) -> None:
        """Wait for the agent's probe at a loopback port. Raises ServerFailed with what the containers wrote."""
        self.workshop.wait_for(lambda: answers(port, "/readyz"), *self.started, what="ready agent")

    def stop(self) -> None:
        """End and remove every container."""
        for name in self.started:
            self.workshop.podman("rm", "--force", "--time=10", name)

    def kill(self, container: str) -> None:
        """As a crash does."""
        self.workshop.podman("kill", "--signal=KILL", self.name(container))
        self.workshop.podman("wait", self.name(container))

    def restart(self, container: str) -> None:
        """Start a container again after it ended."""
        self.workshop.podman("start", self.name(container))

    def execute(self, container: str, *command: str) -> str:
        """Run a command in a container, as an exec probe does."""
        return self.workshop.podman("exec", self.name(container), *command)

    def name(self, container: str) -> str:
        return f"{self.folder.name}-{container}"  # fmt: skip

    def _options(self, container: Json) -> list[str]:
        security = container["securityContext"]
        options = [
            "--network=host",
            "--no-healthcheck",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
        ]
        options += ["--read-only"] if security.get("readOnlyRootFilesystem") else []
        options += [f"--user={security['runAsUser']}:{security.get('runAsGroup', 0)}"]
        if security.get("privileged"):
            options += ["--privileged"]
        else:
            options += ["--security-opt=no-new-privileges"]
            options += [f"--cap-drop={each.lower()}" for each in security["capabilities"]["drop"]]
            options += [f"--cap-add={each}" for each in security["capabilities"].get("add", ())]
        for each in container.get("env", ()):
            options.append(f"--env={each['name']}={self._value(each)}")
        for each in container["volumeMounts"]:
            access = "ro" if each.get("readOnly") else "rw"
            passed = _PROPAGATION[each.get("mountPropagation")]
            options.append(
                f"--volume={self._volume(each['name'])}:{each['mountPath']}:{access},{passed}"
            )
        if "command" in container:
            options.append(f"--entrypoint={container['command'][0]}")
        return options  # fmt: skip

    def _command(self, container: Json) -> list[str]:
        return [container["image"], *container.get("command", [])[1:], *container.get("args", [])]

    def _value(self, variable: Json) -> str:
        if "valueFrom" in variable:
            return self.fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        text = str(variable.get("value", ""))
        for path, value in self.fields.items():
            text = text.replace({"status.podIP": "$(POD_IP)"}.get(path, "\0"), value)
        return text

    def _volume(self, name: str) -> Path:
        """The directory of a volume, filled as kubelet fills it."""
        (volume,) = [each for each in self.spec["volumes"] if each["name"] == name]
        if "hostPath" in volume:
            path = Path(volume["hostPath"]["path"])
            if volume["hostPath"]["type"] == "DirectoryOrCreate":
                path.mkdir(parents=True, exist_ok=True)
            return path
        path = self.folder / name
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
        for file, data in self._files(volume).items():
            (path / file).write_bytes(data)
        return path

    def _files(self, volume: Json) -> dict[str, bytes]:
        if "configMap" in volume:
            data = find(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
            return {file: text.encode() for file, text in data.items()}
        if "secret" in volume:
            data = find(self.objects, "Secret", volume["secret"]["secretName"])["data"]
            return {file: base64.b64decode(text) for file, text in data.items()}
        return {}
