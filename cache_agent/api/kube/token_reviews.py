"""Asks the API server who a bearer token belongs to (TokenReview) and what they may do (SubjectAccessReview).

Answers are remembered for a short time by the token's digest; the token itself is never kept, logged or told.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cache_agent.api.kube_objects import GROUP
from modelimage.errors import RateLimited

Json = dict[str, Any]

TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
# What a reader of the page has to be allowed to list, in the whole cluster: it shows both.
PAGE_RESOURCES: Final = ("nodecaches", "workspaces")
# Seconds. A token that was revoked, or a right that was given, counts after that time.
_KEPT_SECONDS: Final = 30.0
_MOST_KEPT: Final = 256
# Anyone who reaches the page may send any number of tokens, and each would be a request to the API server.
_MOST_ASKED: Final = 20
_ASKED_SECONDS: Final = 10.0
_LONGEST_TOKEN: Final = 8000


class Creates(Protocol):
    """Creates objects; see `KubeClient.create`."""

    async def create(self, path: str, document: Json) -> Json:
        """Create an object and return the server's answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a token's owner may read. If not, `status` is an HTTP status and `reason` says what is missing."""

    status: int = 200
    reason: str = ""

    @property
    def allowed(self) -> bool:
        return self.status == 200


class CallerReview:
    """Judges bearer tokens by the cluster's API server. `clock` is monotonic, in seconds."""

    def __init__(self, api: Creates, clock: Callable[[], float]) -> None:
        self._api, self._clock = api, clock
        self._kept: OrderedDict[bytes, tuple[float, Verdict]] = OrderedDict()
        self._asked: deque[float] = deque()

    async def judge(self, token: str) -> Verdict:
        """Whether the owner of a token may see the page. Raises RateLimited, and what the API server refuses us."""
        if not token or len(token) > _LONGEST_TOKEN:
            return Verdict(401, "give a bearer token of the cluster: kubectl create token NAME")
        now, key = self._clock(), hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._kept.get(key)
        if known is not None and now - known[0] < _KEPT_SECONDS:
            return known[1]
        self._count(now)
        verdict = await self._ask(token)
        self._kept[key] = now, verdict
        self._kept.move_to_end(key)
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return verdict

    def _count(self, now: float) -> None:
        while self._asked and now - self._asked[0] > _ASKED_SECONDS:
            self._asked.popleft()
        if len(self._asked) >= _MOST_ASKED:
            raise RateLimited("too many tokens are being checked", retry_after=_ASKED_SECONDS)
        self._asked.append(now)

    async def _ask(self, token: str) -> Verdict:
        review = await self._api.create(
            TOKEN_REVIEWS,
            {
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "spec": {"token": token},
            },
        )  # fmt: skip
        status = review.get("status") or {}
        user = status.get("user") or {}
        # An answer with an error may say `authenticated` as well; only one without is a proof.
        if (
            status.get("authenticated") is not True
            or status.get("error")
            or not user.get("username")
        ):
            return Verdict(401, "the cluster doesn't know this token, or it has expired")
        for resource in PAGE_RESOURCES:
            if not await self._may_list(user, resource):
                return Verdict(
                    403, f"this token's owner may not list {resource}.{GROUP} in the whole cluster"
                )
        return Verdict()

    async def _may_list(self, user: Json, resource: str) -> bool:
        review = await self._api.create(
            ACCESS_REVIEWS,
            {
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {
                    "user": user["username"], "uid": user.get("uid", ""),
                    "groups": user.get("groups") or [], "extra": user.get("extra") or {},
                    "resourceAttributes": {"group": GROUP, "resource": resource, "verb": "list"},
                },
            },
        )  # fmt: skip
        status = review.get("status") or {}
        return status.get("allowed") is True and not status.get("denied")


def bearer_token(authorization: str) -> str:
    """The token of an Authorization header; empty if it has none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
