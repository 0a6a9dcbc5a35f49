"""An S3 server (moto) on loopback, in a process of its own."""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.servers.process import ContextServer, ServerProcess, child_environment

_RUNNING = re.compile(r"Running on http://127\.0\.0\.1:(\d+)")


class S3(ContextServer):
    """An empty S3. Buckets are made by the test, with a name of its own."""

    ACCESS_KEY = "test"
    SECRET_KEY = "test"
    REGION = "us-east-1"

    def _start(self, stack: ExitStack) -> None:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-")))
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        environment = child_environment(root, PYTHONUNBUFFERED="1")
        server = stack.enter_context(
            ServerProcess(command, log=root / "log", environment=environment)
        )
        port = server.wait_for(lambda: _RUNNING.search(server.log_text()), what="port")
        self.url = f"http://127.0.0.1:{port[1]}"

    def client_options(self) -> dict[str, str]:
        """What `boto3.client("s3", **options)` needs."""
        return {
            "endpoint_url": self.url,
            "aws_access_key_id": self.ACCESS_KEY,
            "aws_secret_access_key": self.SECRET_KEY,
            "region_name": self.REGION,
        }
