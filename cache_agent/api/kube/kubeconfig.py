"""Reads kubeconfigs as kubectl does: several files merged, certificates, tokens, login programs, proxies.

Follows client-go's clientcmd and https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/. Programs that log in
(`exec`) run only where the caller allows it: an agent on a node runs no program that a file names.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from cache_agent.api.kube.connection import (
    Connection,
    Credentials,
    TokenCredentials,
    add_certificate,
    in_cluster,
    make_context,
    read,
    server_proxy,
)
from cache_agent.api.kube.login_program import LoginProgram
from modelimage.errors import InvalidInput, NotFound
from modelimage.yaml_text import parse_yaml

Json = dict[str, Any]

_SECTIONS: Final = ("clusters", "contexts", "users")
# Paths inside a kubeconfig are relative to the file that holds them.
_PATHS: Final = {
    "clusters": ("certificate-authority",),
    "users": ("client-certificate", "client-key", "tokenFile"),
}


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """The named clusters, contexts and users of one or more merged files. `name` is for messages."""

    name: str
    sections: Mapping[str, Mapping[str, Json]]
    current: str

    def entry(self, section: str, name: str) -> Json:
        """A named entry. Raises InvalidInput."""
        try:
            return self.sections[section][name]
        except KeyError as error:
            _unusable(self.name, f"{section} has no entry {name!r}", error)


def default_connection(environ: Mapping[str, str] = os.environ) -> Connection:
    """The connection of a program: KUBECONFIG, else the pod's service account, else ~/.kube/config.

    Raises NotFound when there is none, InvalidInput when it is unusable.
    """
    named = environ.get("KUBECONFIG")
    if named:
        paths = [Path(each) for each in named.split(os.pathsep) if each]
        return from_kubeconfig(paths, programs=True, environ=environ)
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster(environ)
    home = Path(environ.get("HOME", "/")) / ".kube" / "config"
    if not home.exists():
        raise NotFound(
            "this isn't a pod, and there is no kubeconfig",
            hint="Set KUBECONFIG to the path of one, or run `kubectl config view` to see what kubectl uses.",
        )
    return from_kubeconfig([home], programs=True, environ=environ)


def from_kubeconfig(
    paths: Sequence[Path], *, context: str | None = None, programs: bool,
    environ: Mapping[str, str] = os.environ,
) -> Connection:  # fmt: skip
    """The connection of a context, the current one by default. `programs` allows login programs to be run.

    Raises NotFound when no file can be read, InvalidInput when they don't say how to connect.
    """
    config = load(paths)
    try:
        where = config.entry("contexts", context or config.current)
        cluster = config.entry("clusters", where["cluster"])
        user = config.entry("users", where["user"]) if where.get("user") else {}
        server = str(cluster["server"]).rstrip("/")
        credentials = _credentials(config.name, server, cluster, user, programs=programs)
        return Connection(
            server=server,
            credentials=credentials,
            namespace=where.get("namespace") or "default",
            proxy=cluster.get("proxy-url") or server_proxy(server, environ),
            server_name=cluster.get("tls-server-name") or None,
            impersonate=tuple(_impersonation(user)),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        _unusable(config.name, repr(error), error)


def load(paths: Sequence[Path]) -> KubeConfig:
    """Merges files: the first to name an entry or a current context wins. Missing files are skipped, like in kubectl.

    Raises NotFound when none can be read, InvalidInput when one isn't a kubeconfig.
    """
    sections: dict[str, dict[str, Json]] = {section: {} for section in _SECTIONS}
    current, found = "", False
    for path in paths:
        # A file that was named alone must exist; one of a list in KUBECONFIG need not.
        if not path.exists() and len(paths) > 1:
            continue
        found = True
        document = _parse(path)
        current = current or document.get("current-context") or ""
        for section in _SECTIONS:
            for name, entry in _entries(path, document, section):
                sections[section].setdefault(name, entry)
    name = os.pathsep.join(map(str, paths))
    if not found:
        raise NotFound(f"no such kubeconfig: {name}")
    return KubeConfig(name, sections, current)


def _parse(path: Path) -> Json:
    try:
        documents = parse_yaml(read(path), what=str(path))
    except InvalidInput as error:
        _unusable(str(path), error.message, error)
    document = documents[0] if len(documents) == 1 else None
    if not isinstance(document, dict):
        _unusable(str(path), "it is no YAML mapping", None)
    return document


def _entries(path: Path, document: Json, section: str) -> list[tuple[str, Json]]:
    found = []
    try:
        for each in document.get(section) or ():
            entry = dict(each[section.removesuffix("s")] or {})
            # Relative paths start at the file that they are written in, not at the working directory.
            for field in _PATHS.get(section, ()):
                if entry.get(field):
                    entry[field] = str(path.parent / entry[field])
            if "exec" in entry:
                entry["exec"] = {**entry["exec"], "directory": str(path.parent)}
            found.append((each["name"], entry))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        _unusable(str(path), f"{section}: {error!r}", error)
    return found


def _credentials(
    name: str, server: str, cluster: Json, user: Json, *, programs: bool
) -> Credentials:  # fmt: skip
    if "auth-provider" in user:
        _unusable(name, "auth-provider was removed from Kubernetes 1.26", None)
    if "exec" in user:
        if not programs:
            raise InvalidInput(
                f"{name}: the agent runs no programs to log in",
                hint="Give it a kubeconfig with a service account's token (kubectl create token).",
            )
        return LoginProgram.from_kubeconfig(
            user["exec"], server, cluster, lambda: _tls(name, server, cluster, {})
        )
    file = user.get("tokenFile")
    return TokenCredentials(
        _tls(name, server, cluster, user), user.get("token"), Path(file) if file else None
    )


def _tls(name: str, server: str, cluster: Json, user: Json) -> ssl.SSLContext | None:
    if not server.startswith("https:"):
        return None
    context = make_context(
        _data(name, cluster, "certificate-authority"),
        verify=not cluster.get("insecure-skip-tls-verify"),
    )
    certificate, key = _data(name, user, "client-certificate"), _data(name, user, "client-key")
    if certificate and key:
        add_certificate(context, certificate, key)
    return context


def _data(name: str, entry: Json, field: str) -> bytes | None:
    """The base64 value of `field-data`, which takes precedence, or the contents of the file `field`."""
    try:
        if entry.get(f"{field}-data"):
            return base64.b64decode(entry[f"{field}-data"], validate=True)
    except ValueError as error:
        _unusable(name, f"{field}-data isn't base64", error)
    return read(Path(entry[field])) if entry.get(field) else None


def _impersonation(user: Json) -> list[tuple[str, str]]:
    found = [("Impersonate-User", str(user["as"]))] if user.get("as") else []
    if user.get("as-uid"):
        found.append(("Impersonate-Uid", str(user["as-uid"])))
    found += [("Impersonate-Group", str(each)) for each in user.get("as-groups") or ()]
    for key, values in (user.get("as-user-extra") or {}).items():
        found += [(f"Impersonate-Extra-{key}", str(each)) for each in values]
    return found


def _unusable(name: str, why: str, error: Exception | None) -> NoReturn:
    raise InvalidInput(
        f"{name} isn't a usable kubeconfig: {why}", hint="See `kubectl config view`."
    ) from error
