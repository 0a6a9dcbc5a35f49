"""Lists page by page: all pages show one moment, until the server has forgotten it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Key = list[str]


class TooOld(Exception):
    """A page's moment is forgotten. `token` goes on at the same place, as things are now."""

    def __init__(self, token: str) -> None:
        super().__init__(
            "The provided continue parameter is too old to display a consistent list result."
        )
        self.token = token


class BadToken(Exception):
    """A continue parameter that isn't the server's."""

    def __init__(self) -> None:
        super().__init__("invalid continue token: continue key is not valid")


class Pages:
    """Keeps the moments of lists that were begun."""

    def __init__(self) -> None:
        self._moments: dict[tuple[int, str], list[Json]] = {}

    def forget(self) -> None:
        """As etcd after a compaction."""
        self._moments.clear()

    def page(
        self, query: str, token: str, limit: int, *, version: int, current: Callable[[], list[Json]]
    ) -> tuple[list[Json], Json]:
        """The next items of a list, and its metadata. `query` tells lists apart. Raises TooOld, BadToken."""
        start, items = [""], None
        if token:
            asked, start = _parse(token)
            if asked >= 0:
                version, items = asked, self._moments.get((asked, query))
                if items is None:
                    raise TooOld(_token(-1, start))
        left = [each for each in (current() if items is None else items) if _key(each) > start]
        page, more = left[:limit], left[limit:]
        metadata = {"resourceVersion": str(version)}
        if more:
            self._moments[version, query] = left
            metadata["continue"] = _token(version, _key(page[-1]))
        return page, metadata


def _key(document: Json) -> Key:
    return [document["metadata"].get("namespace", ""), document["metadata"]["name"]]


def _token(version: int, start: Key) -> str:
    whole = {"v": "meta.k8s.io/v1", "rv": version, "start": start}
    return base64.urlsafe_b64encode(json.dumps(whole).encode()).decode()


def _parse(token: str) -> tuple[int, Key]:
    try:
        whole = json.loads(base64.urlsafe_b64decode(token))
        return int(whole["rv"]), list(whole["start"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise BadToken from None
