"""Accesses the cluster through kubectl, with the user's own contexts, plugins and permissions.

All calls but `forward` are raw: no discovery, and errors in the API server's words.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypeVar

import click

from modelimage.child import run_child
from modelimage.errors import (
    AccessDenied,
    Busy,
    EngineFailed,
    InvalidInput,
    NotFound,
    TimedOut,
    Unreachable,
    WeightyardError,
)

Json = dict[str, Any]
P = ParamSpec("P")
R = TypeVar("R")
_STALL_SECONDS: Final = 60.0
# kubectl itself waits a minute for a pod that runs.
_FORWARD_SECONDS: Final = 2 * _STALL_SECONDS
_FORWARDING: Final = re.compile(rb"^Forwarding from (127\.0\.0\.1:[0-9]{1,5}) ", re.MULTILINE)
_DEFAULT: Final = "default"


class InvalidContext(InvalidInput):
    """The requested kubeconfig or context doesn't exist or can't be read."""


# kubectl prints `Error from server (NotFound): …`; errors without a reason are connection failures.
# The first match counts.
_ANSWERS: Final[tuple[tuple[str, type[WeightyardError]], ...]] = (
    ("(NotFound)", NotFound), ("(Forbidden)", AccessDenied), ("(Unauthorized)", AccessDenied),
    ("must be logged in", AccessDenied), ("(AlreadyExists)", Busy), ("(Conflict)", Busy),
    ("(Invalid)", InvalidInput), ("(BadRequest)", InvalidInput), ("connection refused", Unreachable),
    ("was refused", Unreachable),
    ("does not exist", InvalidContext), ("no such file", InvalidContext), ("error loading config", InvalidContext),
    ("Unable to connect", Unreachable), ("no such host", Unreachable), ("timed out", Unreachable),
)  # fmt: skip
_HINTS: Final[dict[type[WeightyardError], str]] = {
    Unreachable: "Check the context: kubectl config current-context.",
    InvalidContext: "See which there are: kubectl config get-contexts.",
}


class Kubectl:
    """Raw calls by path. `options` are passed to kubectl, such as `--context=NAME`."""

    def __init__(self, *options: str) -> None:
        self._options = options

    def get(self, path: str) -> Json:
        """Reads the document at a path. Raises NotFound, AccessDenied, Unreachable, EngineFailed."""
        return _document(self._run("get", path))

    def text(self, path: str) -> str:
        """Reads the text at a path, such as a log. Raises the errors of `get`."""
        return self._run("get", path)

    def create(self, path: str, document: Json) -> Json:
        """Creates an object. Raises the errors of `get`, and Busy, InvalidInput."""
        return _document(self._run("create", path, document))

    def replace(self, path: str, document: Json) -> Json:
        """Replaces an object. Raises the errors of `create`."""
        return _document(self._run("replace", path, document))

    def delete(self, path: str) -> None:
        """Deletes an object; a missing one is fine. Raises the errors of `get`."""
        try:
            self._run("delete", path)
        except NotFound:
            return

    @contextmanager
    def forward(self, namespace: str, resource: str, port: int) -> Iterator[str]:
        """An address of this machine, HOST:PORT, that leads to a port of a Service or pod while the context lasts.

        By the kubelet, so that no NetworkPolicy keeps it out, and with the user's rights: whoever else is on this
        machine reaches it too. Raises the errors of `get`.
        """
        command = ["kubectl", *self._options, f"--namespace={namespace}", "port-forward"]
        command += ["--address=127.0.0.1", resource, f":{port}"]
        with tempfile.TemporaryFile() as said:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
                )
            except FileNotFoundError as error:
                raise _missing_program() from error
            with process:
                try:
                    address = _forwarded(process)
                    if address is None:
                        process.kill()
                        process.wait()
                        said.seek(0)
                        # kubectl tells of every try of its discovery; the last line is what came of it.
                        lines = said.read().decode(errors="replace").strip().splitlines()
                        raise refused(lines[-1] if lines else "port-forward ended without a word")
                    yield address
                finally:
                    process.terminate()

    def namespace(self) -> str:
        """The namespace of the kubeconfig's context, as kubectl itself takes it. Raises EngineFailed."""
        try:
            return (
                self._call("config", "view", "--minify", "--output=jsonpath={..namespace}")
                or _DEFAULT
            )
        except (InvalidInput, EngineFailed):
            # Without a context, as in a pod; a wrong one is told by the call that follows.
            return _DEFAULT

    def _run(self, verb: str, path: str, document: Json | None = None) -> str:
        if document is None:
            return self._call(verb, "--raw", path)
        return self._call(verb, "--raw", path, "-f", "-", given=json.dumps(document))

    def _call(self, *words: str, given: str | None = None) -> str:
        command = ["kubectl", *self._options, *words]
        try:
            # Limited by silence, not by total time: credential plugins and slow links may take
            # long.
            done = run_child(command, stdin=given, stall_seconds=_STALL_SECONDS)
        except FileNotFoundError as error:
            raise _missing_program() from error
        except TimedOut as error:
            raise EngineFailed(error.message, hint="Check that the API server answers.") from error
        if done.returncode:
            raise refused(done.stderr.strip())
        return done.stdout


def _missing_program() -> EngineFailed:
    return EngineFailed("kubectl isn't installed", hint="Install kubectl, or add it to PATH.")


def _forwarded(process: subprocess.Popen[bytes]) -> str | None:
    """The address that `kubectl port-forward` says it listens on; None when it ends or stays silent without one."""
    said, output = b"", process.stdout
    while output is not None and select.select([output], [], [], _FORWARD_SECONDS)[0]:
        piece = os.read(output.fileno(), 4096)
        if not piece:
            return None
        said += piece
        found = _FORWARDING.search(said)
        if found is not None:
            return found[1].decode()
    return None


def refused(said: str) -> WeightyardError:
    """The error for kubectl's stderr."""
    # kubectl has one exit status for every failure, so the text has to tell them apart.
    kind = next((kind for mark, kind in _ANSWERS if mark in said), EngineFailed)
    return kind(f"kubectl: {said.removeprefix('error: ')}", hint=_HINTS.get(kind))


def cluster_options(command: Callable[P, R]) -> Callable[P, R]:
    """Adds `--context` and `--kubeconfig`, passed as keywords of these names."""
    for option in (
        click.option("--context", help="The kubeconfig context to use."),
        click.option("--kubeconfig", help="The kubeconfig file to use."),
    ):
        command = option(command)
    return command


def kubectl(context: str | None, kubeconfig: str | None) -> Kubectl:
    """A Kubectl with the given options."""
    given = {"--context": context, "--kubeconfig": kubeconfig}
    return Kubectl(*(f"{name}={value}" for name, value in given.items() if value))


def _document(text: str) -> Json:
    try:
        found: Json = json.loads(text)
    except ValueError as error:
        raise EngineFailed(f"kubectl answered with something that isn't JSON: {text[:200]}") from error  # fmt: skip
    return found
