"""What the task pages find: registries, a Hub, keys, models, an engine, a cluster. Each name is one function."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from tests.chart.charting import HELM
from tests.modelimage.foreign.images import Maker
from tests.modelimage.test_cosign import pem, public_pem
from tests.servers.base_image import base_layout
from tests.servers.fixtures import PATIENCE, USERS
from tests.servers.hub import Hub
from tests.servers.ports import free_port
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.doctor.fakecluster import FakeCluster
from tests.weightyard.doctor.sound import EXPECTED, NODE, node
from tests.weightyard.local import FAKE_ENGINE, Terminal
from tests.weightyard.tasks.pages import REPOSITORY, placed

MODEL: Final = "SmolLM2-135M-Instruct"
PROGRAMS: Final = Path(__file__).parents[1] / "cluster_programs"
RAW_KUBECTL: Final = REPOSITORY / "tests" / "workspace" / "controller" / "kubectl"
CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@dataclass
class Surroundings:
    """Where a page's script runs: `terminal`'s directory, with `names` of hosts and ports replaced.

    `stack` ends what was started.
    """

    terminal: Terminal
    stack: ExitStack
    names: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return self.terminal.directory

    @property
    def applied(self) -> Path:
        """The documents that the cluster was given, one in a line."""
        return self.directory / "applied.jsonl"

    def provide(self, wanted: frozenset[str]) -> None:
        """Sets up what a page states, in the table's order. Raises KeyError for what there is no function of."""
        missing = wanted - _PROVIDERS.keys()
        if missing:
            raise KeyError(f"no such surroundings: {sorted(missing)}")
        for name, provider in _PROVIDERS.items():
            if name in wanted:
                provider(self)
        self.names["8137"] = str(free_port())
        for source in ("examples", "charts"):
            _copied(REPOSITORY / source, self.directory / source, self.names)


def _copied(source: Path, target: Path, names: dict[str, str]) -> None:
    """A copy in which files name the hosts of this run."""
    shutil.copytree(source, target)
    for path in target.rglob("*.yaml"):
        path.write_text(placed(path.read_text(), names))


def _registry(here: Surroundings) -> None:
    here.names["registry.example"] = here.stack.enter_context(DockerRegistry(delete=True)).host


def _users(here: Surroundings) -> None:
    here.names["registry.example"] = here.stack.enter_context(DockerRegistry(users=USERS)).host
    here.terminal.extra["REGISTRY_PASSWORD"] = USERS["alice"]


def _mirror(here: Surroundings) -> None:
    here.names["mirror.example"] = here.stack.enter_context(DockerRegistry()).host


def _model(here: Surroundings) -> None:
    synthetic_checkpoint(here.directory / MODEL, total_bytes=4_000_000)
    base_layout(here.directory / "busybox")


def _hub(here: Surroundings) -> None:
    """With a small random model that reads bytes, so that a page can measure quality in seconds."""
    source = here.directory / "on-the-hub"
    synthetic_checkpoint(source, total_bytes=4_000_000)
    (source / "tokenizer.json").write_text(json.dumps(_byte_tokenizer()))
    hub = here.stack.enter_context(Hub())
    hub.add(f"HuggingFaceTB/{MODEL}", source)
    # One thread: on a busy machine torch's threads wait for each other most of the time.
    here.terminal.extra |= {"HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1", **PATIENCE}


def _byte_tokenizer() -> dict[str, object]:
    """One token for each character, all others the same one."""
    vocabulary = {"?": 0} | {chr(code): code for code in range(1, 128) if chr(code) != "?"}
    return {
        "version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated",
                          "invert": False},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    }  # fmt: skip


def _image(here: Surroundings) -> None:
    """team/smollm2:v1 in the registry."""
    source = here.directory / "elsewhere"
    synthetic_checkpoint(source, total_bytes=4_000_000)
    image = f"{here.names['registry.example']}/team/smollm2:v1"
    here.terminal.ok("build", str(source), "--to", image)


def _keys(here: Surroundings) -> None:
    """A pair in the directory; a page that makes its own writes over it."""
    key = ec.generate_private_key(ec.SECP256R1())
    (here.directory / "key.pem").write_bytes(pem(key))
    (here.directory / "key.pub").write_bytes(public_pem(key))


def _docker_model(here: Surroundings) -> None:
    """An image as Docker's model runner has it, ai/smollm2:latest in the registry."""
    maker = Maker(here.directory / "docker-model")
    maker.manifest(
        maker.json("application/vnd.docker.ai.model.config.v0.1+json", {}),
        [maker.blob("application/vnd.docker.ai.gguf.v3", os.urandom(70_000))],
    )
    image = f"{here.names['registry.example']}/ai/smollm2:latest"
    here.terminal.ok("copy", f"oci:{maker.layout.path}:latest", image)


def _engine(here: Surroundings) -> None:
    """The stand-in for vLLM; the tour of the README runs the real one."""
    here.terminal.extra |= {
        "PYTHONPATH": f"{FAKE_ENGINE}{os.pathsep}{REPOSITORY}",
        "FAKE_ENGINE_ANSWER": " Paris",
    }


def _cluster(here: Surroundings) -> None:
    """A sound cluster of two nodes for the doctor, and stand-ins for kubectl and helm."""
    cluster = here.stack.enter_context(
        FakeCluster(lambda name: NODE.model_copy(update={"node": name}), [node("n1"), node("n2")])
    )
    for each in EXPECTED.crds.values():
        cluster.documents[f"{CRDS}/{each['metadata']['name']}"] = dict(each)
    here.terminal.extra |= {
        "KUBE_SERVER": cluster.url,
        "KUBECTL_RAW": str(RAW_KUBECTL),
        "REAL_HELM": str(HELM),
        "CLUSTER_APPLIED": str(here.applied),
        "PATH": os.pathsep.join([str(PROGRAMS), here.terminal.environment()["PATH"]]),
    }


# In the order in which they need each other.
_PROVIDERS: Final[dict[str, Callable[[Surroundings], None]]] = {
    "registry": _registry, "users": _users, "mirror": _mirror, "model": _model, "hub": _hub,
    "image": _image, "keys": _keys, "docker-model": _docker_model, "engine": _engine,
    "cluster": _cluster,
}  # fmt: skip
