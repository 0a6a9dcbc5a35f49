"""skopeo, the independent client: copies and inspects images over plain HTTP on loopback."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.servers.process import child_environment, program, run


def copy(source: str, destination: str, *options: str) -> None:
    """`skopeo copy` between transports (oci:DIR:TAG, docker://HOST/REPO:TAG, dir:DIR), keeping digests."""
    run_skopeo(
        "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests", *options,
        source, destination,
    )  # fmt: skip


def inspect(image: str, *options: str) -> Any:
    """`skopeo inspect` as JSON; `--raw` or `--config` among `options` as it takes them."""
    return json.loads(run_skopeo("inspect", "--tls-verify=false", *options, image))


def run_skopeo(*arguments: str) -> str:
    """Run `skopeo` with a policy that accepts everything and return its output. Raises ServerFailed."""
    with tempfile.TemporaryDirectory(prefix="skopeo-") as home:
        policy = Path(home) / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        command = [program("skopeo"), "--policy", str(policy), *arguments]
        return run(command, environment=child_environment(Path(home)))
