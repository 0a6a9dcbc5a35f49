"""What tenants, registries and Hubs can give an agent to hold: each a row, as much of it at once as they can."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from cache_agent.api.control_client import AgentClient
from cache_agent.api.wire import PullBody, PullDone
from modelimage.errors import WeightyardError
from modelimage.foreign import Limits
from tests.hostile.images import ENTRIES, REGISTRY_ANSWERS, crowded_image
from tests.hostile.servers import MIB, Answer, HostileServer, document, endless, gzip_bomb

AT_ONCE: Final = 16
CONNECTIONS: Final = 1000


@dataclass(frozen=True)
class Attacked:
    """An agent, its servers' addresses, and the hostile server that it was pointed at."""

    control: AgentClient
    servers: Mapping[str, str]
    hostile: HostileServer

    def pulls(self, place: str) -> None:
        """As many pulls at a time of images there, each of a repository of its own; however each ends."""

        def pull(number: int) -> None:
            image = f"{self.hostile.host}/{place}/m{number}:v1"
            with contextlib.suppress(WeightyardError):
                list(self.control.pull(PullBody(image=image)))

        in_parallel(pull)

    def pulls_crowded(self) -> None:
        """One pull, to its end, of an image of many files."""
        *_, last = self.control.pull(PullBody(image=f"{self.hostile.host}/crowded-image/m:v1"))
        assert isinstance(last, PullDone)

    def asks(self, server: str, path: str) -> None:
        """As many requests at a time to one of its servers; `{}` in the path is another number in each."""

        def ask(number: int) -> None:
            client = http.client.HTTPConnection(self.servers[server])
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                contextlib.closing(client),
            ):
                client.request("GET", path.format(number))
                answer = client.getresponse()
                while answer.read(MIB):
                    pass

        in_parallel(ask)


def in_parallel(work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(work, range(AT_ONCE)))


def listing(count: int) -> bytes:
    """A Hub's listing of a repository: files that don't end, as far as one page goes."""
    entries = [
        {"type": "file", "path": f"{n}.bin", "size": 1, "oid": f"{n:040x}"} for n in range(count)
    ]
    return json.dumps(entries).encode()


def idle_connections(attacked: Attacked) -> None:
    """Connections from many addresses that begin a request and never end it."""
    with contextlib.ExitStack() as stack:
        for number in range(CONNECTIONS):
            for server in ("mirror", "hub", "observe"):
                host, _, port = attacked.servers[server].rpartition(":")
                source = (f"127.0.{1 + number % 200}.{1 + number // 200}", 0)
                with contextlib.suppress(OSError):
                    client = stack.enter_context(
                        socket.create_connection((host, int(port)), source_address=source)
                    )
                    client.sendall(b"GET /x HTTP/1.1\r\nX-Long: " + b"x" * 8000)
        attacked.control.models()


def huge_bodies(attacked: Attacked) -> None:
    """Bodies to the control socket that are larger than any of its requests."""

    def send(_: int) -> None:
        with contextlib.suppress(WeightyardError):
            list(attacked.control.pull(PullBody(image="x" * (32 * MIB))))

    in_parallel(send)


@dataclass(frozen=True)
class AgentInput:
    """`answers` of the hostile server, and what is done to the agent. `share`: of the largest input of its kind."""

    act: Callable[[Attacked], None]
    answers: Callable[[], Answer] | None = None
    share: float = 1.0


def _pulled(place: str, answer: Callable[[], Answer]) -> AgentInput:
    return AgentInput(lambda attacked: attacked.pulls(place), answer)


def _hub(path: str, answer: Callable[[], Answer]) -> AgentInput:
    return AgentInput(lambda attacked: attacked.asks("hub", path), answer)


INPUTS: Final[Mapping[str, AgentInput]] = {
    **{name: _pulled(name, answer) for name, answer in REGISTRY_ANSWERS.items()},
    "endless-hub": _hub("/api/models/endless-hub/m{}", lambda: endless),
    "bomb-hub": _hub("/api/models/bomb-hub/m{}", gzip_bomb),
    "huge-tree": _hub("/api/models/huge-tree/m{}/tree/main", lambda: document(listing(80_000))),
    "mirror-endless": AgentInput(
        lambda attacked: attacked.asks(
            "mirror", "/v2/mirror-endless/m{}/manifests/v1?ns=" + attacked.hostile.host
        ),
        lambda: endless,
    ),
    "mirror-huge": AgentInput(
        lambda attacked: attacked.asks(
            "mirror", "/v2/mirror-huge/m{}/manifests/v1?ns=" + attacked.hostile.host
        ),
        REGISTRY_ANSWERS["huge-manifest"],
    ),
    "idle-connections": AgentInput(idle_connections),
    "huge-bodies": AgentInput(huge_bodies),
    "crowded-image": AgentInput(
        Attacked.pulls_crowded, crowded_image, share=ENTRIES / Limits().members
    ),
}
