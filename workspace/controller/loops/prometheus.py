"""Asks the operator's Prometheus the PromQL queries of rollouts.

Tenants write the queries, the operator alone the address. Nothing but one number comes back.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp

from modelimage.bounds import MALFORMED
from modelimage.errors import InvalidInput, RemoteRefused, Unreachable, WeightyardError, why
from workspace.analysis import Compared, QueryAnswer, Untold
from workspace.controller.loops.server_pages import get_answer
from workspace.rollout_spec import QueryCondition

_SECONDS: Final = 10.0
_MOST_BYTES: Final = 1 << 20  # a vector of many series is an error, not an answer
_AT_ONCE: Final = 16  # of all Workspaces


@dataclass(frozen=True, slots=True)
class PrometheusAddress:
    """Where queries go. `url` may have `{{namespace}}`, for a proxy that keeps tenants apart by it.

    `token_file` has a bearer token, read for each query since it is rotated.
    """

    url: str
    token_file: Path | None = None
    tls: SSLContext | None = None

    @classmethod
    def parse(
        cls, url: str, token_file: Path | None = None, tls: SSLContext | None = None
    ) -> PrometheusAddress:
        """Raises InvalidInput."""
        try:
            parts = urlsplit(url)
            # Messages show the address, and a password in it; a token has a file.
            known = parts.scheme in ("http", "https") and parts.hostname and not parts.username
        except ValueError:
            known = False
        if not known:
            raise InvalidInput(
                f"not a Prometheus' address: {url!r}",
                hint="Write http://HOST:PORT, without a user name.",
            )
        return cls(url, token_file, tls)


class Prometheus:
    """Answers queries. Each has its own time; those of all Workspaces share a number of places."""

    def __init__(self, address: PrometheusAddress, session: aiohttp.ClientSession) -> None:
        self._address = address
        self._session = session
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def answers(
        self, queries: Sequence[QueryCondition], names: Mapping[str, str]
    ) -> list[QueryAnswer]:
        """One answer for each query. `names` are what `{{…}}` stands for."""
        return await asyncio.gather(*(self._answer(each, names) for each in queries))

    async def _answer(self, condition: QueryCondition, names: Mapping[str, str]) -> QueryAnswer:
        try:
            async with self._places:
                data = await self._ask(filled(condition.query, names), names)
            value = one_number(data)
        except WeightyardError as error:
            return Untold(condition.name, error.message)
        least = condition.at_least is not None
        return Compared(condition.name, None, value, condition.bound, least)

    async def _ask(self, query: str, names: Mapping[str, str]) -> bytes:
        headers = {}
        if self._address.token_file is not None:
            try:
                token = (await asyncio.to_thread(self._address.token_file.read_text)).strip()
            except OSError as error:
                raise Unreachable(
                    f"can't be asked: the token can't be read: {why(error)}"
                ) from error
            headers["Authorization"] = f"Bearer {token}"
        status, data = await get_answer(
            self._session, _query_url(self._address.url, query, names), headers=headers,
            most=_MOST_BYTES, seconds=_SECONDS, tls=self._address.tls,
        )  # fmt: skip
        # Prometheus' HTTP API: 400 for a query that it can't parse, 422 for one
        # that it can't execute. Both say why.
        if status in (400, 422):
            raise RemoteRefused(f"isn't a query that Prometheus answers: {_error(data)}")
        if status != 200:
            raise RemoteRefused(f"got the status {status} from Prometheus")
        return data


def filled(text: str, names: Mapping[str, str]) -> str:
    """A text with names in the place of `{{…}}`. They are labels' values, without quotes or escapes."""
    for name, value in names.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def one_number(data: bytes) -> float:
    """The number of an answer of Prometheus' API: a scalar, or a vector's only sample. Raises RemoteRefused."""
    try:
        found = json.loads(data)["data"]
        samples = [found["result"]] if found["resultType"] == "scalar" else [
            each["value"] for each in found["result"]
        ]  # fmt: skip
        # JSON has no NaN and no infinity, so Prometheus writes a sample's value as text, behind its time.
        values = [float(value) for _, value in samples]
    except MALFORMED as error:
        raise RemoteRefused("got an answer from Prometheus that can't be read") from error
    if not values:
        raise RemoteRefused("has no sample")
    if len(values) > 1:
        raise RemoteRefused(f"has {len(values)} samples, not one: aggregate them")
    # 0/0 in PromQL is NaN. No comparison with it holds, so it would count as a broken bound.
    if not math.isfinite(values[0]):
        raise RemoteRefused(f"is {values[0]}")
    return values[0]


def _query_url(url: str, query: str, names: Mapping[str, str]) -> str:
    # Parameters that the operator's address has already, such as a proxy's for the tenant, stay.
    base, _, given = filled(url, names).partition("?")
    more = f"{given}&" if given else ""
    path = base.rstrip("/")
    path = path if path.endswith("/api/v1/query") else f"{path}/api/v1/query"
    # Prometheus gives up at the same time, instead of evaluating for a client that has gone.
    return f"{path}?{more}timeout={_SECONDS:g}s&query={quote(query, safe='')}"


def _error(data: bytes) -> str:
    try:
        found: Any = json.loads(data)["error"]
    except MALFORMED:
        return "it doesn't say why"
    return str(found)[:200]
