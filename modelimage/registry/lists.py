"""Lists of a repository, page by page: its tags, and the referrers of a manifest (distribution-spec, "Content
Discovery").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urljoin

from modelimage.errors import InvalidImage, InvalidInput, RemoteRefused
from modelimage.referrers import listed_entries
from modelimage.registry import answers
from modelimage.registry.exchange import Request, Response, Sender, WebOrigin

MAX_PAGE_BYTES: Final = 16 << 20
_NEXT: Final = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?')
_MAX_PAGES: Final = 10_000
# Besides 404, the statuses of registries that don't implement the referrers API.
_NO_REFERRERS_API: Final = frozenset({400, 404, 405, 406, 501})


def pages(sender: Sender, origin: WebOrigin, request: Request, what: str) -> Iterator[Response]:
    """The responses of a list, page by page, each to be read before the next (RFC 8288; distribution-spec).

    Raises RemoteRefused for a list without end, or one that leads to another host.
    """
    url, seen = request.url, set[str]()
    while url not in seen and len(seen) < _MAX_PAGES:
        seen.add(url)
        response = sender.send(Request("GET", url, request.headers, scopes=request.scopes))
        link = _NEXT.search(response.header("Link") or "")
        yield response
        if link is None:
            return
        url = _same_origin(origin, url, link[1])
    raise RemoteRefused(f"{origin} returns an endless list of {what}")


def referrer_entries(
    sender: Sender, origin: WebOrigin, request: Request, what: str
) -> Iterator[object] | None:
    """The entries of the referrers API's list, as JSON; None if the registry doesn't have the API.

    Requests the first page now, the next ones when they are reached. Raises the errors of `pages` and of responses.
    """
    responses = pages(sender, origin, request, "referrers")
    first = _first_page(next(responses), what, origin)
    return None if first is None else _entries(first, responses, what, origin)


def _first_page(response: Response, what: str, origin: WebOrigin) -> list[object] | None:
    if response.status in _NO_REFERRERS_API:
        response.discard()
        return None
    # Some registries answer paths that they don't know with a page for people.
    try:
        return _page(response, what, origin)
    except InvalidImage:
        return None


def _entries(
    first: list[object], rest: Iterator[Response], what: str, origin: WebOrigin
) -> Iterator[object]:
    yield from first
    for response in rest:
        yield from _page(response, what, origin)


def _page(response: Response, what: str, origin: WebOrigin) -> list[object]:
    if response.status != 200:
        raise answers.refusal(response, what, origin)
    return listed_entries(response.read(MAX_PAGE_BYTES), what=what)


def _same_origin(origin: WebOrigin, base: str, link: str) -> str:
    try:
        url = urljoin(base, link)
        # A page link must not direct requests to another host.
        if WebOrigin.parse(url) == origin:
            return url
    except (ValueError, InvalidInput) as error:
        raise RemoteRefused(f"{origin} links to {link[:200]!r}") from error
    raise RemoteRefused(f"{origin} links to another host: {link[:200]!r}")
