"""When to retry an exchange, and how long to wait. The decision is pure; waiting is injected.

A registry's Retry-After is obeyed and applies to its whole host: every thread that uses that host waits, because the
registry's limit counts all of them together.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from modelimage.errors import RateLimited, Unreachable
from modelimage.registry.exchange import Request, Response, Sender, WebOrigin

_SLOW_DOWN = frozenset({429, 503})
# The longest Retry-After that is told, in seconds: nobody waits for even that.
_MOST_RETRY_AFTER = 86_400.0
# Statuses that may pass with time; all others are final answers to the request.
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `attempts` tries, with waits from `base` doubling to `cap` seconds.

    A server that requests more than `longest_wait` seconds isn't tried again. Each try may be silent twice as long as
    the one before, up to `most_patience` times: a server that always needs longer than the first isn't dead.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 20.0
    longest_wait: float = 300.0
    most_patience: float = 8.0

    def patience(self, attempt: int) -> float:
        """How many times longer than usual the `attempt`-th try (from 1) waits for an answer."""
        return min(self.most_patience, 2.0 ** (attempt - 1))

    def delay(self, attempt: int, retry_after: float | None, jitter: float) -> float | None:
        """Seconds to wait after the `attempt`-th failed try (from 1); None to give up.

        `jitter` in [0, 1) spreads the clients of one outage over the upper half of the wait.
        """
        if attempt >= self.attempts or (retry_after or 0) > self.longest_wait:
            return None
        backoff = min(self.cap, self.base * 2.0 ** (attempt - 1)) * (0.5 + jitter / 2)
        return max(backoff, retry_after or 0)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from a Retry-After header in either form (RFC 9110, section 10.2.3); None if absent or malformed.

    At most a day.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # Cut to 9 digits: converting more than a few thousand is refused.
        return min(_MOST_RETRY_AFTER, float(text[:9]))
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    # Dates without a zone are in GMT, as RFC 9110 requires.
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(_MOST_RETRY_AFTER, max(0.0, (when - now).total_seconds()))


class HostPauses:
    """The time until which each host must not be sent requests. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[WebOrigin, float] = {}
        # Uploads and downloads of all repositories share the pauses: one answer of a host stops them all.
        self._lock = threading.Lock()

    def pause(self, origin: WebOrigin, seconds: float) -> None:
        """Pause requests to a host for at least `seconds` from now."""
        with self._lock:
            now = self._clock()
            until = now + seconds
            # Registries redirect to hosts of their choice: those that may be asked again need no entry.
            self._until = {each: end for each, end in self._until.items() if end > now}
            # The later end wins: a short pause must not cut a longer one that another thread was given.
            self._until[origin] = max(until, self._until.get(origin, until))

    def known(self) -> int:
        """How many hosts have an entry."""
        return len(self._until)

    def remaining(self, origin: WebOrigin) -> float:
        """Seconds left to wait; 0 if the host isn't paused."""
        with self._lock:
            return max(0.0, self._until.get(origin, 0.0) - self._clock())


@dataclass(frozen=True, slots=True)
class Environment:
    """Time and randomness, injected."""

    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between tries of an operation of more than one exchange."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    environment: Environment = field(default_factory=Environment)

    def wait(self, attempt: int) -> bool:
        """Wait after the `attempt`-th failed try (from 1). Returns False, without waiting, if no try is left."""
        delay = self.policy.delay(attempt, None, self.environment.jitter())
        if delay is not None:
            self.environment.sleep(delay)
        return delay is not None


class Retrying:
    """A Sender that retries after transient failures."""

    def __init__(
        self,
        inner: Sender,
        pauses: HostPauses,
        policy: RetryPolicy,
        environment: Environment,
    ) -> None:
        self._inner = inner
        self._pauses = pauses
        self._policy = policy
        self._environment = environment

    def send(self, request: Request) -> Response:
        """Send until it succeeds or the policy gives up. Raises the last Unreachable or RateLimited."""
        origin = request.origin
        attempt = 1
        while True:
            # Checked again after each sleep: another thread may have extended the pause meanwhile.
            while (wait := self._pauses.remaining(origin)) > 0:
                if _too_late(request, wait):
                    raise RateLimited(
                        f"{origin} asked for a pause of {wait:.0f} s", retry_after=wait
                    )
                self._environment.sleep(wait)
            try:
                patient = replace(request, patience=self._policy.patience(attempt))
                return self._checked(self._inner.send(patient))
            except Unreachable as error:
                self._wait(error, request, attempt)
            attempt += 1

    def _wait(self, error: Unreachable, request: Request, attempt: int) -> None:
        """Wait before the next try, or raise the error if there is none."""
        limited = isinstance(error, RateLimited)
        requested = error.retry_after if isinstance(error, RateLimited) else None
        delay = self._policy.delay(attempt, requested, self._environment.jitter())
        # Recorded even if this request isn't repeated: other threads must slow down too. `send` waits it out.
        if limited and delay is not None:
            self._pauses.pause(request.origin, delay)
        if delay is None or not request.repeatable or _too_late(request, delay):
            raise error
        if not limited:
            self._environment.sleep(delay)

    def _checked(self, response: Response) -> Response:
        """Return the response, or raise its transient status as an error."""
        if response.status not in _TRANSIENT:
            return response
        requested = parse_retry_after(response.header("Retry-After"), self._environment.now())
        response.discard()
        host = WebOrigin.parse(response.url)
        if response.status in _SLOW_DOWN:
            wait = f" and asks for a pause of {requested:.0f} s" if requested else ""
            raise RateLimited(
                f"{host} limits the request rate ({response.status}){wait}",
                hint="Wait, or lower the number of parallel transfers.",
                retry_after=requested,
                outage=response.status == 503,
            )
        raise Unreachable(f"{host} failed ({response.status})", hint="Try again later.")


def _too_late(request: Request, wait: float) -> bool:
    """Whether the request's time ends before a wait does."""
    return request.end is not None and time.monotonic() + wait >= request.end
