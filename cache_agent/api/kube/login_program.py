"""Credentials from a program that a kubeconfig names (`exec`), such as a cloud's login helper.

The protocol is client.authentication.k8s.io/v1 (https://kubernetes.io/docs/reference/access-authn-authz/authentication/,
"client-go credential plugins"). The program's answer is cached until it expires or the server refuses it.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cache_agent.api.kube.connection import add_certificate
from modelimage.child import run_child
from modelimage.errors import AccessDenied, InvalidInput

Json = dict[str, Any]

_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
# Seconds without any progress; a login program may wait for a slow identity provider.
_STALL_SECONDS: Final = 60.0
# Renewed this many seconds before it expires, so that a request under way doesn't meet the end.
_EARLY: Final = 10.0


@dataclass(slots=True)
class LoginProgram:
    """Runs the program when there is no valid answer. Thread-safe. `context` makes a context without a certificate."""

    command: tuple[str, ...]
    environ: Mapping[str, str]
    version: str
    context: Callable[[], ssl.SSLContext | None]
    hint: str | None = None
    clock: Callable[[], float] = time.time
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _status: Json = field(default_factory=dict)
    _expires: float = 0.0
    _tls: ssl.SSLContext | None = None

    @classmethod
    def from_kubeconfig(
        cls, section: Json, server: str, cluster: Json, context: Callable[[], ssl.SSLContext | None]
    ) -> LoginProgram:
        """The program of a user's `exec` section. Raises InvalidInput; KeyError or TypeError for a malformed one."""
        version, command = section["apiVersion"], section["command"]
        if version not in _VERSIONS:
            raise InvalidInput(
                f"the login program {command!r} uses {version!r}",
                hint=f"Update it: {_VERSIONS[0]} is supported.",
            )
        # A command with a separator is relative to the kubeconfig, a bare name is looked up in PATH.
        if os.sep in command:
            command = str(Path(section["directory"]) / command)
        environ = {
            **os.environ,
            **{each["name"]: each["value"] for each in section.get("env") or ()},
        }
        info: Json = {
            "kind": "ExecCredential",
            "apiVersion": version,
            "spec": {"interactive": False},
        }
        if section.get("provideClusterInfo"):
            info["spec"]["cluster"] = {"server": server, **_cluster_info(cluster)}
        environ["KUBERNETES_EXEC_INFO"] = json.dumps(info)
        if section.get("interactiveMode") == "Always":
            raise InvalidInput(
                f"the login program {command!r} needs a terminal",
                hint="Log in with kubectl first, or use a service account's token (kubectl create token).",
            )
        arguments = tuple(map(str, section.get("args") or ()))
        return cls((command, *arguments), environ, version, context, section.get("installHint"))

    async def headers(self) -> dict[str, str]:
        """The Authorization header, if the program gave a token. Raises AccessDenied when it can't log in."""
        token = (await asyncio.to_thread(self._current)).get("token")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def tls(self) -> ssl.SSLContext | None:
        """The context with the program's client certificate, if it gave one, as of the last `headers`."""
        return self._tls

    def refused(self) -> None:
        """Runs the program again for the next request."""
        with self._lock:
            self._expires = 0.0

    def _current(self) -> Json:
        with self._lock:
            if self.clock() >= self._expires:
                self._renew()
            return self._status

    def _renew(self) -> None:
        name = self.command[0]
        try:
            done = run_child(self.command, stall_seconds=_STALL_SECONDS, env=self.environ)
        except OSError as error:
            raise AccessDenied(
                f"the login program {name!r} can't be run: {error.strerror}",
                hint=self.hint or "Install it, or correct the kubeconfig.",
            ) from error
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip())[-500:]
            raise AccessDenied(
                f"the login program {name!r} ended with status {done.returncode}: {said}",
                hint="Log in again with the cloud's own tool.",
            )
        status = self._parse(done.stdout)
        context = self.context()
        certificate, key = status.get("clientCertificateData"), status.get("clientKeyData")
        # Into the context that connections are made with: those made from now on present it.
        if context is not None and certificate and key:
            add_certificate(context, certificate.encode(), key.encode())
        expires = status.get("expirationTimestamp")
        self._expires = (
            datetime.fromisoformat(expires).timestamp() - _EARLY if expires else float("inf")
        )
        self._status, self._tls = status, context

    def _parse(self, text: str) -> Json:
        try:
            document = json.loads(text)
            version, status = document["apiVersion"], dict(document["status"])
        except (ValueError, KeyError, TypeError) as error:
            # Its output may hold a secret, so the message doesn't repeat it.
            raise self._malformed(repr(error)) from error
        if version != self.version:
            raise self._malformed(f"its apiVersion is {version!r}")
        if not (status.get("token") or status.get("clientCertificateData")):
            raise self._malformed("it has neither a token nor a certificate")
        return status

    def _malformed(self, why: str) -> AccessDenied:
        return AccessDenied(
            f"the login program {self.command[0]!r} printed no usable ExecCredential of {self.version}: {why}",
            hint="Run it by hand and look at what it prints.",
        )


def _cluster_info(cluster: Json) -> Json:
    names = (
        "tls-server-name",
        "insecure-skip-tls-verify",
        "certificate-authority-data",
        "proxy-url",
    )
    return {name: cluster[name] for name in names if name in cluster}
