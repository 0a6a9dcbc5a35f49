"""Asks the API server who a bearer token belongs to (TokenReview) and what they may do (SubjectAccessReview).

Answers are remembered for a short time by the token's digest; the token itself is never kept, logged or told.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cache_agent.api.kube_objects import GROUP
from modelimage.errors import RateLimited, WeightyardError
from modelimage.recent import Recent

Json = dict[str, Any]

TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
# What a reader of the page has to be allowed to list, in the whole cluster: it shows both.
PAGE_RESOURCES: Final = ("nodecaches", "workspaces")
# Seconds. A token that was revoked, or a right that was given, counts after that time.
_KEPT_SECONDS: Final = 30.0
# While the API server fails, it isn't asked for each caller.
_FAILED_SECONDS: Final = 2.0
# Callers who were admitted are kept apart: those who are refused can't push them out.
_MOST_KEPT: Final = 256
# Anyone who reaches the page may send any number of tokens, and each would be a request to the API server.
_MOST_ASKED: Final = 20
_MOST_ASKED_BY_ONE: Final = 5
_ASKED_SECONDS: Final = 10.0
_MOST_AT_ONCE: Final = 4
_MOST_WAITING: Final = 64
_LONGEST_TOKEN: Final = 8000
# RFC 6750, section 2.1.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)


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


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the API server said of a token, or that it said nothing, until a time."""

    until: float
    verdict: Verdict | None
    failure: WeightyardError | None = None


@dataclass(slots=True)
class _Turn:
    """Callers with the same token, of whom one asks for all."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    callers: int = 0


class CallerReview:
    """Judges bearer tokens by the cluster's API server. `clock` is monotonic, in seconds.

    Its memory and its requests are bounded whatever callers send. Requests for one token at the same time are one.
    """

    def __init__(self, api: Creates, clock: Callable[[], float]) -> None:
        self._api, self._clock = api, clock
        self._admitted = Recent[bytes, _Kept](_MOST_KEPT)
        self._refused = Recent[bytes, _Kept](_MOST_KEPT)
        # When somebody who wasn't admitted before was asked for, and whose address sent the token.
        self._asked: deque[tuple[float, str]] = deque()
        self._asking: dict[bytes, _Turn] = {}
        self._places = asyncio.Semaphore(_MOST_AT_ONCE)

    async def judge(self, token: str, peer: str = "") -> Verdict:
        """Whether the owner of a token may see the page. `peer`: the address that sent it.

        Raises RateLimited, and what the API server refuses us.
        """
        if not token or len(token) > _LONGEST_TOKEN or not _TOKEN.fullmatch(token):
            return Verdict(401, "give a bearer token of the cluster: kubectl create token NAME")
        key = hashlib.sha256(token.encode()).digest()
        known = self._known(key)
        if known is not None:
            return known
        if sum(each.callers for each in self._asking.values()) >= _MOST_WAITING:
            raise RateLimited("too many tokens are being checked", retry_after=_ASKED_SECONDS)
        turn = self._asking.setdefault(key, _Turn())
        turn.callers += 1
        try:
            async with turn.lock:
                # Another may have asked meanwhile, or have gone before the answer.
                return self._known(key) or await self._find_out(key, token, peer)
        finally:
            turn.callers -= 1
            if not turn.callers:
                del self._asking[key]

    def _known(self, key: bytes) -> Verdict | None:
        kept = self._admitted.get(key) or self._refused.get(key)
        if kept is None or self._clock() >= kept.until:
            return None
        if kept.failure is not None:
            raise kept.failure.with_traceback(None)
        return kept.verdict

    async def _find_out(self, key: bytes, token: str, peer: str) -> Verdict:
        was_admitted = self._admitted.get(key) is not None
        if not was_admitted:
            self._count(peer)
        try:
            async with self._places:
                verdict = await self._ask(token)
        except WeightyardError as error:
            failed = _Kept(self._clock() + _FAILED_SECONDS, None, error)
            (self._admitted if was_admitted else self._refused).put(key, failed)
            raise
        self._admitted.drop(key)
        self._refused.drop(key)
        kept = _Kept(self._clock() + _KEPT_SECONDS, verdict)
        (self._admitted if verdict.allowed else self._refused).put(key, kept)
        return verdict

    def _count(self, peer: str) -> None:
        now = self._clock()
        while self._asked and now - self._asked[0][0] > _ASKED_SECONDS:
            self._asked.popleft()
        by_one = sum(each == peer for _, each in self._asked)
        if len(self._asked) >= _MOST_ASKED or by_one >= _MOST_ASKED_BY_ONE:
            raise RateLimited("too many tokens are being checked", retry_after=_ASKED_SECONDS)
        self._asked.append((now, peer))

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
