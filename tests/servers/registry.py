"""Debian's docker-registry (CNCF distribution 2.8), plain or with basic or token authorization.

It binds port 0 itself and says in its log which port it got, so two of them never race for one. It keeps no cache of
blob descriptors, so a test that changes its files is seen at once.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt

from tests.servers.process import ContextServer, ServerProcess, child_environment, program
from tests.servers.tokens import TokenServer

BCRYPT_ROUNDS = 4  # the least there is: these passwords protect nothing
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
_ACCESS = re.compile(
    r'^\S+ - \S+ \[[^]]*] "(?P<method>[A-Z]+) (?P<path>\S+) [^"]*" (?P<status>\d{3}) (?P<sent>\d+)'
)


@dataclass(frozen=True)
class Access:
    """One line of the registry's access log; `sent` is bytes of the answer's body."""

    method: str
    path: str
    status: int
    sent: int


class DockerRegistry(ContextServer):
    """A registry with a storage directory of its own. `host` is what goes into references: 127.0.0.1:PORT.

    `users` (name -> password) turns basic authorization on. `storage` keeps an existing directory in use.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        storage: Path | None = None,
        delete: bool = True,
        read_only: bool = False,
    ) -> None:
        self._users = users
        self._delete = delete
        self._read_only = read_only
        self._given_storage = storage

    def _start(self, stack: ExitStack) -> None:
        self._root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registry-")))
        self.storage = self._given_storage or self._root / "storage"
        self.storage.mkdir(exist_ok=True)
        config = self._root / "config.yml"
        config.write_text(json.dumps(self._config(stack)))  # JSON is YAML
        self._process = stack.enter_context(
            ServerProcess(
                [program("docker-registry"), "serve", str(config)],
                log=self._root / "log",
                environment=child_environment(self._root, OTEL_TRACES_EXPORTER="none"),
            )
        )
        port = self._process.wait_for(
            lambda: _LISTENING.search(self._process.log_text()), what="port"
        )
        self.port = int(port[1])

    @property
    def host(self) -> str:
        """The registry's name in a reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The registry's base URL, without a slash at the end."""
        return f"http://{self.host}"

    def log_text(self) -> str:
        """The registry's whole log."""
        return self._process.log_text()

    def accesses(self, prefix: str = "/v2/") -> list[Access]:
        """The requests it has finished, whose path begins with `prefix`, in order."""
        lines = map(_ACCESS.match, self.log_text().splitlines())
        every = [
            Access(m["method"], m["path"], int(m["status"]), int(m["sent"])) for m in lines if m
        ]
        return [access for access in every if access.path.startswith(prefix)]

    def blob_path(self, digest: str) -> Path:
        """Where the registry keeps a blob, for tests that damage it."""
        algorithm, value = digest.split(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / value[:2] / value / "data"

    def forget_blob(self, digest: str) -> None:
        """Remove a blob behind the registry's back."""
        shutil.rmtree(self.blob_path(digest).parent)

    def _config(self, stack: ExitStack) -> dict[str, Any]:
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info", "formatter": "text", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "delete": {"enabled": self._delete},
                "maintenance": {
                    "uploadpurging": {"enabled": False},
                    "readonly": {"enabled": self._read_only},
                },
            },
            "http": {"addr": "127.0.0.1:0", "secret": "a secret for tests"},
        }
        auth = self._auth(stack)
        return {**config, "auth": auth} if auth else config

    def _auth(self, stack: ExitStack) -> dict[str, Any]:
        if self._users is None:
            return {}
        lines = [f"{name}:{_bcrypt(password)}\n" for name, password in self._users.items()]
        path = self._root / "htpasswd"
        path.write_text("".join(lines))
        return {"htpasswd": {"realm": "tests", "path": str(path)}}


class TokenAuthRegistry(DockerRegistry):
    """A registry that sends clients to a token server of its own, `tokens`, and checks the tokens it issues.

    `users` as above; anonymous clients may pull from repositories under `public/` only. `lifetime` is how many seconds
    a token lives, and may be changed on `tokens` while the registry runs.
    """

    SERVICE = "tests"

    def __init__(
        self, *, users: Mapping[str, str], lifetime: float = 3600.0, storage: Path | None = None
    ) -> None:
        super().__init__(storage=storage)
        self.tokens = TokenServer(service=self.SERVICE, users=users, lifetime=lifetime)

    def _auth(self, stack: ExitStack) -> dict[str, Any]:
        stack.enter_context(self.tokens)
        certificate = self._root / "certificate.pem"
        certificate.write_bytes(self.tokens.certificate_pem)
        return {
            "token": {
                "realm": self.tokens.realm,
                "service": self.SERVICE,
                "issuer": self.tokens.ISSUER,
                "rootcertbundle": str(certificate),
            }
        }


def _bcrypt(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(BCRYPT_ROUNDS)).decode()
