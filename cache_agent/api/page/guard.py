"""Who may read the page's events where a cluster's API server judges bearer tokens."""

from __future__ import annotations

import logging
from typing import Final

from aiohttp import web

from cache_agent.api.kube.token_reviews import CallerReview, bearer_token
from modelimage.errors import RateLimited, WeightyardError

logger = logging.getLogger(__name__)


# What the page sends its token in. The API server's proxy takes `Authorization` for itself and passes on the others.
TOKEN_HEADER: Final = "Weightyard-Token"  # noqa: S105 - a name


def token_of(request: web.Request) -> str:
    """The token that a reader of the page gives; empty without one."""
    own = request.headers.get(TOKEN_HEADER, "").strip()
    return own or bearer_token(request.headers.get("Authorization", ""))


async def refusal_of_review(review: CallerReview, request: web.Request) -> tuple[int, str] | None:
    """The status and the reason for a caller who may not read the page; None for one who may."""
    try:
        verdict = await review.judge(token_of(request), request.remote or "")
    except RateLimited as error:
        return 429, error.message
    except WeightyardError as error:
        # The reason may name what only operators should know.
        logger.warning("a reader of the page can't be checked: %s", error.message)
        return 502, "the API server can't check this token now; see this program's log"
    return None if verdict.allowed else (verdict.status, verdict.reason)
