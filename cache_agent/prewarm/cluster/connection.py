"""The API server's address and credentials, from a pod's service account or, outside a cluster, a kubeconfig.

The kubelet rotates a service account's token on disk, so it is read again for every request.
"""

from __future__ import annotations

import base64
import binascii
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from modelimage.errors import InvalidInput, NotFound

Json = dict[str, Any]

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach one API server. `tls` None means plain HTTP. `token_file` takes precedence over `token`."""

    server: str
    tls: ssl.SSLContext | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    namespace: str = "default"

    def headers(self) -> dict[str, str]:
        """The Authorization header. Raises NotFound when the token's file can't be read."""
        token = self.token
        if self.token_file is not None:
            token = _read(self.token_file).decode().strip()
        return {"Authorization": f"Bearer {token}"} if token else {}


def in_cluster(environ: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Connection:
    """A connection as the pod's service account. Raises NotFound outside of a pod."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise NotFound(
            "this isn't a pod of a cluster: KUBERNETES_SERVICE_HOST isn't set",
            hint="Give a kubeconfig (prewarm.kubeconfig), or a directory (prewarm.path).",
        )
    shown = f"[{host}]" if ":" in host else host
    return Connection(
        server=f"https://{shown}:{port}",
        tls=_context(_read(account / "ca.crt")),
        token_file=account / "token",
        namespace=_read(account / "namespace").decode().strip(),
    )


def of_kubeconfig(path: Path, context: str | None = None) -> Connection:
    """A connection from a kubeconfig with a token, token file or client certificate. Raises NotFound, InvalidInput."""
    try:
        document = yaml.safe_load(_read(path))
        chosen = context or document["current-context"]
        where = _named(document, "contexts", chosen)["context"]
        cluster = _named(document, "clusters", where["cluster"])["cluster"]
        user = _named(document, "users", where["user"]).get("user") or {} if "user" in where else {}
        server = str(cluster["server"]).rstrip("/")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{path} isn't a usable kubeconfig: {error!r}", hint="See `kubectl config view`."
        ) from error
    if "exec" in user or "auth-provider" in user:
        raise InvalidInput(
            f"{path}: the agent runs no programs to log in",
            hint="Give it a kubeconfig with a service account's token (kubectl create token).",
        )
    return Connection(
        server=server,
        tls=_kubeconfig_tls(path, server, cluster, user),
        token=user.get("token"),
        token_file=path.parent / user["tokenFile"] if "tokenFile" in user else None,
        namespace=where.get("namespace") or "default",
    )


def _kubeconfig_tls(path: Path, server: str, cluster: Json, user: Json) -> ssl.SSLContext | None:
    if not server.startswith("https:"):
        return None
    context = _context(_data(path, cluster, "certificate-authority"))
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = _data(path, user, "client-certificate")
    key = _data(path, user, "client-key")
    if certificate and key:
        # The ssl module reads client certificates only from files.
        with tempfile.NamedTemporaryFile(prefix="weightyard-") as file:
            file.write(certificate + b"\n" + key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


def _context(authorities: bytes | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=authorities.decode() if authorities else None)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidInput(f"the API server's CA isn't a PEM file: {error}") from error


def _data(path: Path, document: Json, name: str) -> bytes | None:
    """The base64 value of `name-data`, or the contents of the file `name`, relative to the kubeconfig."""
    try:
        if f"{name}-data" in document:
            return base64.b64decode(document[f"{name}-data"], validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"{path}: {name}-data isn't base64") from error
    return _read(path.parent / document[name]) if name in document else None


def _named(document: Json, section: str, name: str) -> Json:
    for each in document[section]:
        if each["name"] == name:
            found: Json = each
            return found
    raise KeyError(f"no {name} in {section}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"can't read {path}: {error.strerror}") from error
