"""HAProxy as a Gateway's proxy: one frontend whose servers and weights change at run time, and cut nothing."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.servers.ports import free_port
from tests.servers.process import ContextServer, ServerProcess, child_environment, program

SLOTS: Final = 60
_HEAVIEST: Final = 256
# Without retries: a server that doesn't answer is a failed request.
_CONFIG = """
global
    stats socket {socket} level admin
    nbthread 1
defaults
    mode http
    retries 0
    timeout connect 5s
    timeout client 120s
    timeout server 120s
frontend clients
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    balance roundrobin
    server-template s 1-{slots} 127.0.0.1:1 disabled
"""


class HaProxy(ContextServer):
    """`url` is where it takes requests. Each address keeps its slot: streams go on where they are."""

    def _start(self, stack: ExitStack) -> None:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="haproxy-")))
        self._socket, port = home / "admin", free_port()
        config = home / "haproxy.cfg"
        config.write_text(_CONFIG.format(socket=self._socket, port=port, slots=SLOTS))
        command = [program("haproxy"), "-db", "-f", str(config)]
        process = ServerProcess(command, log=home / "log", environment=child_environment(home))
        stack.enter_context(process)
        process.wait_for(self._socket.exists, what="socket")
        self.url = f"http://127.0.0.1:{port}"
        self._slots: dict[tuple[str, int], str] = {}
        self._weights: dict[tuple[str, int], int] = {}

    async def share(self, shares: Mapping[tuple[str, int], float]) -> None:
        """Give each address and port its share of new requests; shares are relative, 0 means no request."""
        most = max(shares.values(), default=0) or 1
        weights = dict.fromkeys(self._slots, 0)
        weights |= {
            each: -(-int(_HEAVIEST * share * 1000 / most) // 1000) for each, share in shares.items()
        }
        commands = []
        for each, weight in weights.items():
            if each not in self._slots:
                slot = self._slots[each] = f"servers/s{len(self._slots) + 1}"
                commands.append(f"set server {slot} addr {each[0]} port {each[1]}")
                commands.append(f"set server {slot} weight {weight}")
                commands.append(f"set server {slot} state ready")
            elif weight != self._weights[each]:
                commands.append(f"set server {self._slots[each]} weight {weight}")
        self._weights = weights
        if commands:
            await self._tell(commands)

    async def _tell(self, commands: list[str]) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        writer.write(("; ".join(commands) + "\n").encode())
        answer = (await reader.read()).decode()
        writer.close()
        # A changed address is told; anything else would be an error.
        told = [line for line in answer.splitlines() if line and "changed from" not in line]
        assert not told, answer
