"""`weightyard mount` and `umount` in a mount namespace of their own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cache_agent.servers.published import publish_model
from tests.servers.process import ServerFailed, child_environment, program, run
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers


@pytest.fixture
def image(registry: DockerRegistry, unique_name: Callable[[str], str]) -> str:
    return f"{registry.host}/{unique_name('mount')}:v1"


def in_a_namespace(root: Path, *commands: str) -> str:
    """Run shell commands in one new mount namespace; `wy` is the command line over the store at `root`."""
    call = f"{shlex.quote(sys.executable)} -m weightyard.cli"
    define = f'wy() {{ {call} "$@" --root {shlex.quote(str(root))}; }}; set -e'
    script = "\n".join((define, *commands))
    command = [program("unshare"), "-m", "--propagation", "private", program("bash"), "-c", script]
    return run(command, environment=child_environment(root.parent))


def test_a_model_is_shown_read_only_and_leased_until_it_is_taken_away(
    tmp_root: Path, image: str
) -> None:
    publish_model(image, seed=61)
    target = tmp_root / "model"
    said = in_a_namespace(
        tmp_root / "store",
        f"wy mount {image} {target}",
        f"wy mount {image} {target}",
        f"grep -c ' {target} ro,nosuid,nodev,noexec' /proc/self/mountinfo",
        f"cat {target}/config.json; echo",
        f"touch {target}/x 2>&1 && echo written || echo refused",
        "wy lease ls | tail -1",
        f"wy rm {image} 2>/dev/null || echo kept",
        f"wy umount {target}",
        f"grep {target} /proc/self/mountinfo || echo nothing",
        "wy lease ls --json",
        f"wy rm {image} >/dev/null && echo removed",
    )
    assert [str(target), str(target), "1"] == said.splitlines()[:3]
    for expected in (
        '"seed": 61',
        "refused",
        f"mount {target}",
        "kept",
        "nothing",
        "removed",
    ):
        assert expected in said
    assert "written" not in said


def test_what_is_in_the_way_is_left_alone(tmp_root: Path, image: str) -> None:
    publish_model(image, seed=62)
    target = tmp_root / "model"
    target.mkdir()
    (target / "mine").write_text("mine")
    with pytest.raises(ServerFailed, match="isn't empty"):
        in_a_namespace(tmp_root / "store", f"wy mount {image} {target}")
    with pytest.raises(ServerFailed, match="isn't a model"):
        in_a_namespace(
            tmp_root / "store", f"mount -t tmpfs tmpfs {target}", f"wy mount {image} {target}"
        )
    with pytest.raises(ServerFailed, match="isn't a model"):
        in_a_namespace(tmp_root / "store", f"mount -t tmpfs tmpfs {target}", f"wy umount {target}")
    with pytest.raises(ServerFailed, match="no model is mounted"):
        in_a_namespace(tmp_root / "store", f"wy umount {target}")
    assert (target / "mine").read_text() == "mine"
    assert in_a_namespace(tmp_root / "store", "wy lease ls --json") == "[]\n"


def test_a_moved_tag_needs_a_umount_first_and_keeps_the_lease_of_what_is_shown(
    tmp_root: Path, image: str
) -> None:
    publish_model(image, seed=63)
    target = tmp_root / "model"
    in_a_namespace(tmp_root / "store", f"wy mount {image} {target}")
    # The namespace is gone, and the mount with it, as after a reboot: only the lease is left.
    publish_model(image, seed=64)
    said = in_a_namespace(
        tmp_root / "store", f"wy mount {image} {target}", f"cat {target}/config.json; echo",
        "wy lease ls --json",
    )  # fmt: skip
    assert '"seed": 64' in said
    assert said.count("manual:mount") == 1


def test_mounting_needs_the_right_to(tmp_root: Path, image: str) -> None:
    publish_model(image, seed=65)
    drop = [program("setpriv"), "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    call = [sys.executable, "-m", "weightyard.cli", "mount", image, str(tmp_root / "m")]
    with pytest.raises(ServerFailed, match="Mounting needs root"):
        run(
            [*drop, *call, "--root", str(tmp_root / "store")],
            environment=child_environment(tmp_root),
        )
