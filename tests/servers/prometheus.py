"""A real Prometheus of Debian's, which scrapes nothing: queries make their own samples."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.servers.ports import free_port
from tests.servers.process import ContextServer, ServerProcess, child_environment, program


class PrometheusServer(ContextServer):
    """`url` is its address."""

    def _start(self, stack: ExitStack) -> None:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prometheus-")))
        config = home / "prometheus.yaml"
        config.write_text("scrape_configs: []\n")
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        command = [
            program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={home}/data",
            f"--web.listen-address={address}",
        ]  # fmt: skip
        process = ServerProcess(command, log=home / "log", environment=child_environment(home))
        stack.enter_context(process)
        process.wait_for(self._ready, what="readiness")

    def _ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready") as answer:  # noqa: S310 - its own address
                return bool(answer.status == 200)
        except URLError:
            return False
