"""Runs whole builds for tests, in this process or through the command line in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder.build import BuildOptions, BuildResult, BuildTools, build
from builder.destination import open_destination
from builder.digest_cache import DigestCache
from builder.sources.local import LocalSource
from modelimage.access import Access
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from tests.builder.reports import Remembering
from weightyard.cli import main

REPOSITORY = Path(__file__).parents[2]


# The interpreter may be in a directory that the other user can't read, so all is imported before.
_PROGRAM = """
import os, sys
import resource
import weightyard.cli
if {largest} is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))
if {user} is not None:
    import weightyard.commands.build
    os.setgroups([])
    os.setgid({user})
    os.setuid({user})
sys.exit(weightyard.cli.main())
"""


def an_hour_later() -> float:
    return time.time() + 3600


def build_here(
    source: Path, to: str, scratch: Path, options: BuildOptions | None = None
) -> BuildResult:
    """Build a directory in this process; `scratch` holds its caches, whose clock says that no file is new."""
    reference = parse_image(to)
    assert isinstance(reference, LayoutReference | RegistryReference)
    tools = BuildTools(
        DigestCache(scratch / "digests", clock=an_hour_later), scratch / "work", Remembering()
    )
    return build(
        LocalSource(source), open_destination(reference, Access()), options or BuildOptions(), tools
    )


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, the result on stdout, and what stderr says."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def weightyard(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    given: str = "",
    umask: int = -1,
    user: int | None = None,
    largest_file: int | None = None,
) -> Outcome:
    """Run the command line in a process of its own, as another user where `user` says so.

    `largest_file` is how many bytes the system lets it write into one file, as a full disk or quota would.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            _PROGRAM.format(user=user, largest=largest_file),
            *map(str, arguments),
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        input=given,
        capture_output=True,
        text=True,
        check=False,
        umask=umask,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def weightyard_here(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Outcome:
    """Run the command line in this process, which is ten times faster."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return Outcome(code, *capsys.readouterr())
