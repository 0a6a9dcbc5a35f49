"""A server that answers with what takes memory: endless bodies, bombs, documents as large as their readers allow."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from modelimage import mediatypes
from modelimage.digest import Digest
from tests.servers.faulty_registry import PIECE
from tests.servers.httpserver import Handler, LoopbackServer
from tests.servers.lying_registry import bomb

Answer = Callable[[Handler], None]
MIB: Final = 1 << 20


def endless(handler: Handler) -> None:
    """A body without a length that never ends."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"%x\r\n" % PIECE + b" " * PIECE + b"\r\n")


def gzip_bomb() -> Answer:
    """A megabyte that says it is gzip and becomes a gigabyte."""
    # Not in the answer: a server's threads would each make one, and take the cores from those who are measured.
    data = bomb()

    def answer(handler: Handler) -> None:
        with contextlib.suppress(OSError):
            handler.answer(200, data, {"Content-Encoding": "gzip", "Content-Type": "text/plain"})

    return answer


def document(data: bytes, media_type: str = "application/json") -> Answer:
    """One document, whatever is asked for."""

    def answer(handler: Handler) -> None:
        with contextlib.suppress(OSError):
            handler.answer(200, data, {"Content-Type": media_type})

    return answer


def values(size: int) -> str:
    """JSON of about `size` bytes with as many values as parsers here take."""
    filler = size - 3_000_000
    return ",".join(["[[]]"] * 330_000) + ',"' + "x" * max(0, filler) + '"'


def chunked_text(size: int) -> str:
    """JSON of about `size` bytes: digests of chunks, as a record has them."""
    return ",".join(f'"{number:064x}"' for number in range(size // 67))


def manifest_with(body: str) -> bytes:
    """A manifest with an annotation's worth of anything."""
    config = json.dumps(described(b"{}", mediatypes.OCI_CONFIG))
    head = (
        f'"schemaVersion":2,"mediaType":"{mediatypes.OCI_MANIFEST}","config":{config},"layers":[]'
    )
    return f'{{{head},"x":[{body}]}}'.encode()


def index_of(manifests: list[dict[str, Any]]) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": manifests}
    ).encode()


def described(data: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
    """A descriptor of these bytes."""
    made = {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}
    return {**made, "annotations": annotations} if annotations else made


class Repository:
    """Blobs and manifests by digest; every tag leads to the last manifest. Answers like a registry, ranges included."""

    def __init__(self) -> None:
        self._documents: dict[str, tuple[str, bytes]] = {}
        self._tagged = ""

    def put(self, data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
        made = described(data, media_type)
        self._documents[made["digest"]] = (media_type, data)
        self._tagged = made["digest"]
        return made

    def __call__(self, handler: Handler) -> None:
        name = handler.path.partition("?")[0].rpartition("/")[2]
        found = self._documents.get(name if name.startswith("sha256:") else self._tagged)
        with contextlib.suppress(OSError):
            if found is None:
                handler.answer(404)
                return
            self._send(handler, *found)

    @staticmethod
    def _send(handler: Handler, media_type: str, data: bytes) -> None:
        headers = {"Content-Type": media_type, "Docker-Content-Digest": str(Digest.of(data))}
        wanted = handler.headers.get("Range")
        if wanted is None:
            handler.answer(200, data, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        piece = data[int(first) : int(last or len(data)) + 1]
        end = int(first) + len(piece) - 1
        handler.answer(206, piece, {**headers, "Content-Range": f"bytes {first}-{end}/{len(data)}"})


class _HostileHandler(Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = cast("HostileServer", cast("Any", self.server).owner)
        server.counted(self.path)
        for place, answer in server.answers.items():
            if f"/{place}/" in self.path or self.path.endswith(f"/{place}"):
                answer(self)
                return
        self.answer(200, b"{}")


class HostileServer(LoopbackServer):
    """Answers by the first of `answers` whose name is a part of the path; `requests` are the paths asked for."""

    HANDLER = _HostileHandler

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.requests: list[str] = []
        self._lock = threading.Lock()

    def counted(self, path: str) -> None:
        with self._lock:
            self.requests.append(path)
