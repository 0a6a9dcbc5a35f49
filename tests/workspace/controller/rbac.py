"""RBAC as an API server evaluates it: a request's verb and resource, and whether rules grant them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

Json = dict[str, Any]
Right = tuple[str, str, str]  # verb, group, resource with its subresource
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def requested_right(method: str, path: str, *, watch: bool = False) -> Right:
    """What a request takes. Without a resource, as for discovery, the group is `nonresource`, the resource the path."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:2]), parts[3:])
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    if parts[0] not in ("api", "apis") or not rest:
        return "get", "nonresource", path
    resource = "/".join([rest[0], *rest[2:3]])
    if method == "GET":
        return ("get" if len(rest) > 1 else "watch" if watch else "list"), group, resource
    return _VERBS[method], group, resource


def rights_of(rules: list[Json]) -> set[Right]:
    """Every right that rules grant."""
    return {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


class Rights:
    """Answers `HttpApi.allows`, and keeps what was used and what was refused."""

    def __init__(self, granted: set[Right]) -> None:
        self.granted = granted
        self.used: set[Right] = set()
        self.refused: set[Right] = set()

    def __call__(self, request: web.Request) -> bool:
        watch = request.query.get("watch") == "true"
        right = requested_right(request.method, request.path, watch=watch)
        (self.used if right in self.granted else self.refused).add(right)
        return right in self.granted
