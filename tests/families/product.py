"""The way of a model through the product, by its commands: built, pulled into a cache, its server planned."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.ports import free_port
from weightyard import cli


@dataclass(frozen=True)
class Planned:
    """A server's command and environment, as `weightyard up` would start it on this machine, and its directories."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    directories: tuple[Path, ...]

    def on(self, *sources: Path) -> tuple[str, ...]:
        """The same command on other directories and another port."""
        words = list(self.command)
        words[words.index("--port") + 1] = str(free_port())
        for directory, source in zip(self.directories, sources, strict=True):
            words = [word.replace(str(directory), str(source)) for word in words]
        assert words[words.index("--model") + 1] == str(sources[0])
        return tuple(words)


@dataclass
class Product:
    """Images and the cache below one directory; the environment names the cache as WEIGHTYARD_ROOT."""

    directory: Path

    def build(self, source: Path, name: str, *options: str) -> str:
        """The reference of an image made of `source`."""
        image = f"oci:{self.directory}/{name}:v1"
        weightyard("build", str(source), "--to", image, *options)
        return image

    def plan(self, image: str, *, variant: str = "auto", **runtime: Any) -> Planned:
        """Pulls a model with its adapters and plans a server on this machine's CPU."""
        spec = {
            "model": {"image": image, "variant": variant}, "resources": {"gpus": 0},
            "runtime": {"port": free_port(), **runtime},
        }  # fmt: skip
        document = {
            "apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "tiny"}, "spec": spec,
        }  # fmt: skip
        file = self.directory / "workspace.json"
        file.write_text(json.dumps(document))
        planned = weightyard("render", "-f", str(file), "--to", "up")
        adapters = [each["image"] for each in runtime.get("adapters", ())]
        paths = [self._pull(image, "--variant", planned["model"]["variant"])]
        paths += [self._pull(each) for each in adapters]
        return Planned(tuple(planned["command"]), planned["environment"], tuple(paths))

    def _pull(self, image: str, *options: str) -> Path:
        return Path(weightyard("pull", image, *options)["path"])


class Refused(Exception):
    """A command ended with an error; the message is its document."""


def weightyard(*arguments: str) -> Any:
    """What a command answers as JSON. Raises Refused."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        code = cli.main([*arguments, "--json"])
    if code:
        raise Refused(f"{arguments[0]}: exit code {code}: {errors.getvalue()[-2000:]}")
    return json.loads(output.getvalue())
