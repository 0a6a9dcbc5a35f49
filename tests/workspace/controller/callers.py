"""Who asks the fake API server, and whether they may: its one administrator, and service accounts by their tokens."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.rbac import requested_right
from tests.workspace.controller.statuses import failure

Json = dict[str, Any]
ADMINISTRATOR = "administrator"
# What every authenticated caller may read.
_DISCOVERY = ("/api", "/apis", "/version")


@dataclass
class Callers:
    """Authenticates and authorizes requests. `allows` says what the administrator may do.

    A service account's token is valid while that very account is there, and allows nothing but discovery. `throttled`:
    how many of the next requests of an account, by namespace and name, are too many.
    """

    api: FakeApi
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    allows: Callable[[web.Request], bool] = lambda _: True
    throttled: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _issued: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def refusal(self, request: web.Request) -> web.Response | None:
        """The response to a request that isn't served."""
        user = self._user(request.headers.get("Authorization", ""))
        if user is None:
            return failure(401, "Unauthorized")
        account = tuple(user.split(":")[2:])
        if self.throttled[account] > 0:
            self.throttled[account] -= 1
            # Priority and fairness answers in plain text.
            text = "Too many requests, please try again later."
            return web.Response(status=429, text=text, headers={"Retry-After": "1"})
        if request.path in _DISCOVERY:
            return None
        if user == ADMINISTRATOR and self.allows(request):
            return None
        return failure(403, _forbidden(user, request))

    def issue(self, namespace: str, name: str) -> Json:
        """A new token of a service account, as a TokenRequest that was answered. Raises Missing."""
        account = self.api.get("ServiceAccount", namespace, name)
        token = secrets.token_hex(16)
        self._issued[token] = namespace, name, account["metadata"]["uid"]
        return {
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "status": {"token": token},
        }  # fmt: skip

    def _user(self, authorization: str) -> str | None:
        token = authorization.removeprefix("Bearer ")
        if token == self.token:
            return ADMINISTRATOR
        namespace, name, uid = self._issued.get(token, ("", "", ""))
        account = self.api.objects.get(("ServiceAccount", namespace, name))
        if account is None or account["metadata"]["uid"] != uid:
            return None
        return f"system:serviceaccount:{namespace}:{name}"


def _forbidden(user: str, request: web.Request) -> str:
    watch = request.query.get("watch") == "true"
    verb, group, resource = requested_right(request.method, request.path, watch=watch)
    _, inside, rest = request.path.partition("/namespaces/")
    where = f'in the namespace "{rest.split("/")[0]}"' if inside else "at the cluster scope"
    asked = f'cannot {verb} resource "{resource}" in API group "{group}" {where}'
    return f'{resource} is forbidden: User "{user}" {asked}'
