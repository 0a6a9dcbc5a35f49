"""Carries plans out: the one owner of every fetch, warming, eviction and runtime pull that wishes ask for.

One loop: look, plan, act, wait until something changes. It is woken by new wishes, by the end of what it began, and by
the time a plan names; at rest it does nothing but look at long intervals. Store and files are touched in threads.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cache_agent.api.names import node_label
from cache_agent.api.node_cache import NodeCacheStatus, NodeFacts
from cache_agent.errors import Cancelled
from cache_agent.faces.bridge import Bridge, wait_event
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.throttle import Throttle
from cache_agent.fetch.values import PullRequest
from cache_agent.node import Node
from cache_agent.wanted.asking import ask, parse_wanted
from cache_agent.wanted.attempts import Attempts
from cache_agent.wanted.following import follow
from cache_agent.wanted.memory import Memory
from cache_agent.wanted.options import Credentials, KeeperOptions
from cache_agent.wanted.pins import PinBook
from cache_agent.wanted.planner import plan
from cache_agent.wanted.rates import Rates
from cache_agent.wanted.report import Made, View, status
from cache_agent.wanted.runtime import RuntimeImages
from cache_agent.wanted.stock import take_stock
from cache_agent.wanted.values import (
    Action,
    Ask,
    Evict,
    Fetch,
    Pin,
    Plan,
    PullRuntime,
    Release,
    Situation,
    Stock,
    Stop,
    Target,
    Warm,
    Wish,
)
from modelimage.digest import Digest
from modelimage.errors import InUse, NotFound, WeightyardError
from modelimage.reference import ImageReference
from modelimage.repository import ImageReader

# Caps below it would look like a stalled source.
_LEAST_RATE: Final = 1_000_000


@dataclass
class Keeper:
    """Makes a node hold what is wanted. `note` tells of what happened, for the log; `facts` go into the report."""

    node: Node
    bridge: Bridge
    credentials: Credentials
    open_reader: Callable[[ImageReference], ImageReader]
    runtime: RuntimeImages
    note: Callable[..., None]
    facts: NodeFacts = field(default_factory=NodeFacts)
    options: KeeperOptions = field(default_factory=KeeperOptions)
    random: Callable[[], float] = random.random
    # Waits until this node has no such label, bounded; without a cluster there are none.
    label_gone: Callable[[str], Awaitable[None]] | None = None
    changed: Callable[[], None] = lambda: None
    _wishes: tuple[Wish, ...] | None = None
    _problems: tuple[str, ...] = ()
    _trouble: str = ""
    _stock: Stock = field(default_factory=Stock)
    _looked: float | None = None
    _plan: Plan = field(default_factory=lambda: Plan((), {}))
    _pulls: dict[Target, Pull] = field(default_factory=dict)
    _releasing: dict[Digest, asyncio.Task[None]] = field(default_factory=dict)
    _warming: set[Digest] = field(default_factory=set)
    _settling: set[Target] = field(default_factory=set)
    _made: Made = field(default_factory=dict)
    _told: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._wake = asyncio.Event()
        self._clock, self._monotonic = self.node.clock, self.node.engine.monotonic
        self._attempts = Attempts(self._clock, self.random)
        self._memory = Memory(self.node.store, self.node.warmer, self._clock)
        self._cap = Throttle(max(self.options.bandwidth, _LEAST_RATE) if self.options.bandwidth else 0,
                             self._monotonic)  # fmt: skip
        self._rates = Rates(self._monotonic)
        self._pins: PinBook | None = None

    # What others tell

    def want(self, wishes: Sequence[Wish], problems: Sequence[str] = ()) -> None:
        """What is wanted from now on."""
        self._wishes, self._problems = tuple(wishes), tuple(problems)
        self._attempts.keep({wish.target for wish in wishes})
        self.wake()

    def status(self, previous: NodeCacheStatus) -> NodeCacheStatus:
        """The report now; `previous` tells since when conditions hold."""
        return status(self.view(), previous, self._made)

    def trouble(self, message: str) -> None:
        """Why what is wanted can't be followed; empty when it can."""
        if message != self._trouble:
            self._trouble = message
            self.changed()

    def wake(self) -> None:
        """Something changed: plan again."""
        self._wake.set()

    def stale(self) -> None:
        """The store changed by other ways: look at it, and plan again."""
        self._looked = None
        self._wake.set()

    def view(self) -> View:
        """What a report is made from."""
        return View(
            facts=self.facts.model_copy(update={"read_bytes_per_second": self._memory.read_rate}),
            stock=self._stock,
            now=self._clock(),
            synced=self._wishes is not None,
            trouble=self._trouble,
            problems=self._problems,
            wishes=self._wishes or (),
            verdicts=self._plan.verdicts,
            known=self._attempts.known,
            progress={
                target: self._rates.progress(target, pull.snapshot())
                for target, pull in self._pulls.items()
            },
            runtime=self.runtime.known,
            warm=self._memory.warm,
            releasing=frozenset(self._releasing),
        )

    @property
    def busy(self) -> bool:
        """Whether a fetch runs, so that a report changes by itself."""
        return bool(self._pulls)

    # The loop

    async def run(self) -> None:
        """Until cancelled. What it began ends with it."""
        self._pins = await self.bridge.call(
            lambda: PinBook(self.node.store.first.paths.root, self.node.store.first.disk)
        )
        async with asyncio.TaskGroup() as self._group:
            try:
                while True:
                    self._wake.clear()
                    await self._step()
                    await self._wait()
            finally:
                for pull in self._pulls.values():
                    pull.cancel()

    async def _step(self) -> None:
        try:
            await self._look()
        except WeightyardError as error:
            self.note("store not readable", problem=error.message)
            return
        if self._wishes is not None:
            self._plan = plan(self._situation(self._wishes))
            self._tell_news()
            for action in self._plan.actions:
                await self._carry_out(action)
            self._end_needless_releases()
        self.changed()

    async def _wait(self) -> None:
        seconds = self.options.look_seconds
        if self._plan.wake_at is not None:
            seconds = min(seconds, max(0.0, self._plan.wake_at - self._clock()) + 0.01)
        await wait_event(self._wake, seconds)

    async def _look(self) -> None:
        """Look at the store if it may have changed, and find out what new targets mean."""
        now = self._monotonic()
        unknown = [
            wish.target for wish in self._wishes or () if wish.target not in self._attempts.known
        ]
        due = self._looked is None or now - self._looked >= self.options.look_seconds
        if due:
            self._stock = await self.bridge.call(self._take_stock)
            self._looked = now
        if unknown:
            found = await self.bridge.call(lambda: [self._meaning(each) for each in unknown])
            for target, key in zip(unknown, found, strict=True):
                self._attempts.means(target, key)
        if self._wishes is not None:
            self.runtime.keep({wish.runtime_image for wish in self._wishes if wish.runtime_image})

    def _take_stock(self) -> Stock:
        stock = take_stock(self.node.store, self._clock())
        self._memory.look(self._in_memory(stock))
        return stock

    def _in_memory(self, stock: Stock) -> set[Digest]:
        keys = {
            self._attempts.known[wish.target].key
            for wish in self._wishes or ()
            if wish.tier == "memory" and wish.target in self._attempts.known
        }
        return {key for key in keys if key is not None and key in stock.held}

    def _meaning(self, target: Target) -> Digest | None:
        found = self.node.store.resolved(target.image, target.variant)
        return found[0].key if found else None

    def _situation(self, wishes: tuple[Wish, ...]) -> Situation:
        return Situation(
            wishes=wishes,
            now=self._clock(),
            free=self._stock.free,
            memory=self._memory.room() if any(w.tier == "memory" for w in wishes) else 0,
            fetches=self.options.fetches,
            known=self._attempts.known,
            held=self._stock.held,
            runtime=self.runtime.known,
            pinned_for=self._pins.keys if self._pins else frozenset(),
            warm=self._memory.warm,
            cold=self._memory.cold(),
            releasing=frozenset(self._releasing),
            settling=bool(self._settling),
        )

    def _tell_news(self) -> None:
        """Successes and failures, once each, for the log."""
        self._told = {
            name: each for name, each in self._told.items() if name in self._plan.verdicts
        }
        for name, verdict in self._plan.verdicts.items():
            news = (verdict.state, verdict.reason)
            telling = verdict.state in ("Ready", "Failed") or verdict.reason == "NoSpace"
            if telling and self._told.get(name) != news:
                self._told[name] = news
                self.note(
                    f"wanted model {verdict.state.lower()}",
                    name=name, reason=verdict.reason, message=verdict.message,
                    key=str(verdict.key or ""),
                )  # fmt: skip

    # Actions

    async def _carry_out(self, action: Action) -> None:
        match action:
            case Ask(wish):
                self._attempts.asking(wish.target)
                self._group.create_task(self._ask(wish))
            case Fetch(wish):
                self._attempts.running(wish.target)
                self._settling.add(wish.target)
                self._group.create_task(self._fetch(wish))
            case Stop(target):
                pull = self._pulls.get(target)
                if pull is not None:
                    pull.cancel()
            case Pin(key) | Release(key):
                await self._pin(key, pinned=isinstance(action, Pin))
            case Warm(key) if not self._warming:
                self._warming.add(key)
                self._group.create_task(self._warm(key))
            case Evict(key) if key not in self._releasing:
                self._releasing[key] = self._group.create_task(self._evict(key))
            case PullRuntime(image, secret):
                self.runtime.begin(image)
                self._group.create_task(self._pull_runtime(image, secret))

    async def _ask(self, wish: Wish) -> None:
        target = wish.target
        try:
            image = parse_wanted(target.image)
            reader = await self.credentials.reader(image, wish.pull_secret)
            question = partial(
                ask, self.node.store, reader or self.open_reader(image), image, target,
                self.node.machine.platform,
            )  # fmt: skip
            answer = await self.bridge.call(question)
        except WeightyardError as error:
            self._attempts.failed(target, error)
        else:
            self._attempts.answered(target, answer.key, answer.need)
            if answer.need == 0 or answer.key in self._stock.held:
                self._looked = None
        self.wake()

    async def _fetch(self, wish: Wish) -> None:
        target = wish.target
        try:
            image = parse_wanted(target.image)
            request = PullRequest(
                image, target.variant, wish.priority,
                await self.credentials.reader(image, wish.pull_secret), self._caps(wish), evicting=False,
            )  # fmt: skip
            self._pulls[target] = pull = self.node.pull(request)
            await follow(pull, self.bridge, partial(self._settled, target))
            result = pull.result(0)
        except Cancelled:
            self._attempts.stopped(target)
        except WeightyardError as error:
            self._attempts.failed(target, error)
        else:
            if result is not None:
                self._attempts.fetched(target, result.model.key)
        finally:
            self._pulls.pop(target, None)
            self._settling.discard(target)
            self._rates.forget(target)
            self._looked = None
            self.wake()

    def _settled(self, target: Target) -> None:
        self._settling.discard(target)
        self.stale()

    def _caps(self, wish: Wish) -> tuple[Throttle, ...]:
        caps = [self._cap] if self.options.bandwidth else []
        if wish.bandwidth:
            caps.append(Throttle(max(wish.bandwidth, _LEAST_RATE), self._monotonic))
        return tuple(caps)

    async def _pin(self, key: Digest, *, pinned: bool) -> None:
        """The note comes first and goes last, so that no pin is ever taken for one made by hand."""
        pins = self._pins
        if pins is None:
            return

        def carry_out() -> None:
            if pinned:
                pins.add(key)
            with suppress(NotFound):  # removed meanwhile
                self.node.store.pin(key, pinned=pinned)
            if not pinned:
                pins.drop(key)

        await self._changing_store(carry_out)

    async def _warm(self, key: Digest) -> None:
        await self.bridge.call(lambda: self._memory.bring(key))
        self._warming.discard(key)
        self.wake()

    async def _evict(self, key: Digest) -> None:
        self.changed()
        try:
            if self.label_gone is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.options.label_seconds):
                        await self.label_gone(node_label(key))
            await self._changing_store(partial(self._remove, key))
        finally:
            self._releasing.pop(key, None)
            self.wake()

    def _remove(self, key: Digest) -> None:
        """Remove a model; one that somebody has come to use, or that is gone, is left."""
        with suppress(InUse, NotFound):
            pins = self._pins
            mine = pins is not None and key in pins.keys
            freed = self.node.store.remove(key, unpin=mine)
            if pins is not None:
                pins.drop(key)
            self.note("evicted for what is wanted more", key=str(key), freed=freed)

    def _end_needless_releases(self) -> None:
        wanted = {action.key for action in self._plan.actions if isinstance(action, Evict)}
        for key, task in self._releasing.items():
            if key not in wanted:
                task.cancel()

    async def _changing_store(self, change: Callable[[], None]) -> None:
        try:
            await self.bridge.call(change)
        except WeightyardError as error:
            self.note("store not changed", problem=error.message)
        self._looked = None
        self.wake()

    async def _pull_runtime(self, image: str, secret: str | None) -> None:
        await self.runtime.pull(image, secret)
        self.wake()
