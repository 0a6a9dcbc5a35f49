"""Credential sources: docker's config.json with its helpers, Kubernetes pull secrets, explicit credentials.

Formats: docker/cli's config file and the protocol of docker/docker-credential-helpers; kubernetes.io/dockerconfigjson
secrets hold the same document, with keys that may contain a path or `*`. Credentials are looked up only after a
registry has requested them. Secrets never appear in a repr.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Protocol

from modelimage import durable
from modelimage.bounds import MALFORMED
from modelimage.child import run_child
from modelimage.errors import AccessDenied, InvalidInput, NotFound, TimedOut

# Names under which config files have the credentials for Docker Hub.
_DOCKER_HUB_KEYS: Final = ("index.docker.io", "docker.io", "registry-1.docker.io")
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A helper may have to query a keychain or a cloud service.
_HELPER_STALL_SECONDS: Final = 300.0  # some wait for a person to log in
# The user name that a helper returns when the secret is an OAuth2 refresh token.
_REFRESH_USER: Final = "<token>"


@dataclass(frozen=True, slots=True)
class BasicCredential:
    """A user name with a password or personal access token."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class IdentityToken:
    """An OAuth2 refresh token, exchanged for access tokens."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RegistryToken:
    """A bearer token that is sent to the registry unchanged."""

    token: str = field(repr=False)


Credential = BasicCredential | IdentityToken | RegistryToken


class CredentialSource(Protocol):
    """Finds the credential for a repository."""

    def find(self, registry: str, repository: str) -> Credential | None:
        """The credential, or None. `registry` as written in references. Raises AccessDenied when a helper fails."""


@dataclass(frozen=True, slots=True)
class Anonymous:
    """A source without credentials."""

    def find(self, registry: str, repository: str) -> Credential | None:
        return None


@dataclass(frozen=True, slots=True)
class ExplicitCredential:
    """One credential for one registry, as given on the command line."""

    registry: str
    credential: Credential

    def find(self, registry: str, repository: str) -> Credential | None:
        return self.credential if registry == self.registry else None


@dataclass(frozen=True, slots=True)
class FirstOf:
    """Returns the credential of the first source that has one."""

    sources: Sequence[CredentialSource]

    def find(self, registry: str, repository: str) -> Credential | None:
        for source in self.sources:
            if (found := source.find(registry, repository)) is not None:
                return found
        return None


HelperRunner = Callable[[str, str], str]


def run_helper(name: str, server: str) -> str:
    """The output of `docker-credential-<name> get` for a server, '' if it has no credential. Raises AccessDenied."""
    # The name comes from a file and becomes part of a program's name: it must not contain a path.
    if not _HELPER_NAME.fullmatch(name):
        raise AccessDenied(f"not the name of a credential helper: {name[:80]!r}")
    command = [f"docker-credential-{name}", "get"]
    try:
        # The server's name on stdin, the answer on stdout: the helpers' protocol, which keeps secrets out of `ps`.
        done = run_child(command, stdin=server, stall_seconds=_HELPER_STALL_SECONDS)
    except TimedOut as error:
        raise AccessDenied(
            f"the credential helper {command[0]} doesn't answer: {error.message}",
            hint=f"Run `{command[0]} get` by hand to see what it waits for.",
        ) from error
    except OSError as error:
        raise AccessDenied(
            f"the credential helper {command[0]} can't be run: {error}",
            hint="Install it, or remove it from docker's config.json.",
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = (done.stdout + done.stderr).strip()
    # The protocol has no exit code for this: helpers print this text (docker-credential-helpers, credentials/error.go).
    if "credentials not found" in said.lower():
        return ""
    raise AccessDenied(f"the credential helper {command[0]} failed: {said[:200]}")


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """A parsed config.json. A registry's own helper takes precedence over the general store, and that over `auths`."""

    auths: Mapping[str, Credential] = field(default_factory=dict)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    run: HelperRunner = run_helper

    @classmethod
    def parse(cls, data: bytes, *, what: str, run: HelperRunner = run_helper) -> DockerConfig:
        """Parse a config.json. Raises InvalidInput, whose message never quotes a secret."""
        try:
            document = json.loads(data)
            auths = {
                _host_path(key): credential
                for key, value in (document.get("auths") or {}).items()
                if (credential := _entry(value)) is not None
            }
            helpers = {
                _host_path(key): str(name)
                for key, name in (document.get("credHelpers") or {}).items()
            }
            return cls(auths, helpers, str(document.get("credsStore") or ""), run)
        except MALFORMED as error:
            raise InvalidInput(
                f"{what} isn't a docker config file", hint="Write it again with docker login."
            ) from error

    def find(self, registry: str, repository: str) -> Credential | None:
        for host in _names(registry):
            if helper := self.helpers.get(host) or self.store:
                found = _from_helper(self.run(helper, _server(registry)))
                if found is not None:
                    return found
        return _best_match(self.auths, registry, repository)


def load_docker_config(path: Path) -> DockerConfig:
    """Load a config.json or the `.dockerconfigjson` of a mounted pull secret. Raises NotFound, InvalidInput."""
    with durable.reading(path):
        data = path.read_bytes()
    return DockerConfig.parse(data, what=str(path))


def from_environment(environment: Mapping[str, str], home: Path) -> CredentialSource:
    """The files that docker and podman would use: $DOCKER_CONFIG or ~/.docker, then podman's auth.json."""
    # docker's file first: it is what `docker login`, which our hints recommend, writes.
    candidates = [Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"]
    if explicit := environment.get("REGISTRY_AUTH_FILE"):
        candidates.insert(0, Path(explicit))
    elif runtime := environment.get("XDG_RUNTIME_DIR"):
        candidates.append(Path(runtime) / "containers" / "auth.json")
    return FirstOf([config for path in candidates if (config := _load_if_there(path))])


def _load_if_there(path: Path) -> DockerConfig | None:
    try:
        return load_docker_config(path)
    except NotFound:
        return None


def _entry(value: Mapping[str, Any]) -> Credential | None:
    # First, because with an identity token `auth` has no password.
    if token := value.get("identitytoken"):
        return IdentityToken(str(token))
    if token := value.get("registrytoken"):
        return RegistryToken(str(token))
    if auth := value.get("auth"):
        try:
            username, _, password = (
                base64.b64decode("".join(auth.split()), validate=True).decode().partition(":")
            )
        except binascii.Error as error:
            raise ValueError("auth is not base64") from error
        # Trimmed as docker/cli does: the value may be padded with zero bytes.
        return BasicCredential(username, password.strip("\0"))
    if value.get("username"):
        return BasicCredential(str(value["username"]), str(value.get("password", "")))
    return None


def _from_helper(output: str) -> Credential | None:
    if not output.strip():
        return None
    try:
        document = json.loads(output)
        username, secret = str(document["Username"]), str(document["Secret"])
    except MALFORMED as error:
        raise AccessDenied("a credential helper returned an unexpected answer") from error
    if not secret:
        return None
    return IdentityToken(secret) if username == _REFRESH_USER else BasicCredential(username, secret)


def _host_path(key: str) -> str:
    """A key of `auths` without scheme, API version and trailing slash."""
    text = re.sub(r"^https?://", "", key).rstrip("/")
    return re.sub(r"/v[12]$", "", text)


def _names(registry: str) -> Sequence[str]:
    return _DOCKER_HUB_KEYS if registry == "docker.io" else (registry,)


def _server(registry: str) -> str:
    # The key under which docker stores Docker Hub's credentials.
    return "https://index.docker.io/v1/" if registry == "docker.io" else registry


def _best_match(
    auths: Mapping[str, Credential], registry: str, repository: str
) -> Credential | None:
    """The credential whose key matches the longest path; among equals, a key without `*` wins."""
    found: list[tuple[int, bool, Credential]] = []
    for key, credential in auths.items():
        host, _, path = key.partition("/")
        # Both end with "/": the key team/model must not match the repository team/model2.
        if _host_matches(host, registry) and (repository + "/").startswith(
            path + "/" if path else ""
        ):
            found.append((len(path), "*" not in host, credential))
    return max(found, key=lambda match: match[:2])[2] if found else None


def _host_matches(pattern: str, registry: str) -> bool:
    """Kubernetes' rule: `*` matches within one label of the host name, never across a dot."""
    for name in _names(registry):
        labels, wanted = name.split("."), pattern.split(".")
        if len(labels) == len(wanted) and all(map(fnmatchcase, labels, wanted)):
            return True
    return False
