"""What hosted registries do differently from docker-registry, each as a fault of the proxy before one.

From their documentation and issue trackers (docs/registries.md), in whatever size a test chooses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.servers.faulty_registry import BufferedUploads, Fault, Seen


class LimitedChunks(Fault):
    """GitHub's: 416 to a chunk above `limit`; a PATCH without Content-Range may have any size."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        ranged = request.method == "PATCH" and "Content-Range" in request.headers
        return (416, {}, b"") if ranged and request.length > self._limit else None


class FirstChunkIsTheLast(Fault):
    """Amazon ECR's: any PATCH is answered with 201, and another one to the same session with 416."""

    def __init__(self) -> None:
        super().__init__()
        self._had: set[str] = set()

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if request.method != "PATCH":
            return None
        session = urlsplit(request.path).path
        with self._lock:
            again = session in self._had
            self._had.add(session)
        return (416, {}, b"") if again else None

    def answer_status(self, request: Seen, status: int) -> int:
        return 201 if request.method == "PATCH" and status == 202 else status


class LeastChunk(Fault):
    """Says OCI-Chunk-Min-Length when an upload is opened, and refuses smaller chunks that aren't the last of `size`."""

    def __init__(self, least: int, size: int) -> None:
        super().__init__()
        self._least, self._size = least, size

    def answer_headers(self, request: Seen) -> dict[str, str]:
        return {"OCI-Chunk-Min-Length": str(self._least)} if request.method == "POST" else {}

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        end = request.headers.get("Content-Range", "").rpartition("-")[2]
        small = request.method == "PATCH" and request.length < self._least
        return (416, {}, b"") if small and end != str(self._size - 1) else None


class LimitedLayers(Fault):
    """413 to a blob, or a part of one, above `limit`."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        return (413, {}, b"") if request.is_upload and request.length > self._limit else None


class KeepsSessions(BufferedUploads):
    """A registry that itself knows how far an upload is, whichever of its Locations a client comes with.

    docker-registry believes the offset signed into the Location only; here the newest one always stands in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._newest: dict[str, str] = {}

    def answered(self, request: Seen, location: str) -> None:
        parts = urlsplit(location)
        if "/blobs/uploads/" in parts.path:
            self._newest[parts.path] = parse_qs(parts.query)["_state"][0]

    def request_path(self, request: Seen) -> str:
        parts = urlsplit(request.path)
        newest = self._newest.get(parts.path)
        if newest is None:
            return request.path
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return f"{parts.path}?{urlencode({**query, '_state': newest})}"


class KnowsReferrers(Fault):
    """The referrers API (distribution-spec, "Listing Referrers"), which docker-registry lacks, over what was pushed."""

    def __init__(self) -> None:
        super().__init__()
        self._listed: dict[str, list[dict[str, Any]]] = {}
        self._subjects: dict[str, str] = {}

    def request_body(self, request: Seen, body: Iterator[bytes]) -> Iterator[bytes]:
        if request.method != "PUT" or "/manifests/" not in request.path:
            return body
        data = b"".join(body)
        document = json.loads(data)
        if "subject" in document:
            subject = document["subject"]["digest"]
            self._subjects[request.path] = subject
            self._listed.setdefault(subject, []).append(_described(data, document))
        return iter([data])

    def answer_headers(self, request: Seen) -> dict[str, str]:
        subject = self._subjects.get(request.path) if request.method == "PUT" else None
        return {"OCI-Subject": subject} if subject else {}

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        url = urlsplit(request.path)
        _, found, subject = url.path.partition("/referrers/")
        if not found:
            return None
        listed, headers = self._listed.get(subject, []), {"Content-Type": INDEX}
        kind = parse_qs(url.query).get("artifactType", [""])[0]
        if kind:
            listed = [each for each in listed if each["artifactType"] == kind]
            headers["OCI-Filters-Applied"] = "artifactType"
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        return 200, headers, json.dumps(index).encode()


class ListsTagsInPages(Fault):
    """Tags in pages (distribution-spec, "Listing Tags"), of which docker-registry 2 gives all at once."""

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        self._tags = sorted(tags)

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        url = urlsplit(request.path)
        if not url.path.endswith("/tags/list"):
            return None
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        rest = [tag for tag in self._tags if tag > query.get("last", "")]
        page = rest[: int(query.get("n", len(rest)))]
        headers = {"Content-Type": "application/json"}
        if page and page != rest:
            following = urlencode({"n": query["n"], "last": page[-1]})
            headers["Link"] = f'<{url.path}?{following}>; rel="next"'
        name = url.path.removeprefix("/v2/").removesuffix("/tags/list")
        return 200, headers, json.dumps({"name": name, "tags": page}).encode()


INDEX = "application/vnd.oci.image.index.v1+json"


def _described(data: bytes, document: dict[str, Any]) -> dict[str, Any]:
    return {
        "mediaType": document.get("mediaType", "application/vnd.oci.image.manifest.v1+json"),
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "size": len(data),
        "artifactType": document.get("artifactType") or document["config"]["mediaType"],
        "annotations": document.get("annotations", {}),
    }
