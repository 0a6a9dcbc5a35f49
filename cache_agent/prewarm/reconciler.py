"""The reconcile loop: carries out plans, and owns every fetch, warming, eviction and runtime pull of pre-warming.

Each round takes an inventory, plans, acts, and waits for a change: new desired models, the end of an action, or the
time that the plan names. When idle it only takes an inventory at long intervals. Store and files are used in threads.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from cache_agent.api.node_cache import NodeCacheStatus, NodeFacts
from cache_agent.api.shared_names import node_label
from cache_agent.errors import Cancelled
from cache_agent.fetch.pull import Pull, StartPull
from cache_agent.fetch.values import PullRequest
from cache_agent.node.desired_detail import DesiredDetails, RefusedDocument
from cache_agent.node.threads import BlockingExecutor, wait_event
from cache_agent.prewarm.attempts import Attempts
from cache_agent.prewarm.desired_details import desired_details
from cache_agent.prewarm.fetch_progress import fetch_progress
from cache_agent.prewarm.inventory import take_inventory
from cache_agent.prewarm.managed_pins import ManagedPins
from cache_agent.prewarm.memory_tier import Memory
from cache_agent.prewarm.outcome_log import OutcomeLog
from cache_agent.prewarm.planner import plan
from cache_agent.prewarm.rate_caps import RateCaps
from cache_agent.prewarm.reconciler_options import Credentials, ReconcilerOptions
from cache_agent.prewarm.report import Made, NodeReportInput, status
from cache_agent.prewarm.resolver import parse_wanted, resolve_target
from cache_agent.prewarm.runtime import RuntimeImages
from cache_agent.prewarm.values import (
    Action,
    DesiredModel,
    Evict,
    Fetch,
    FetchTarget,
    Inventory,
    Pin,
    PlannerInput,
    PrewarmPlan,
    PullRuntime,
    ReleasePin,
    Resolve,
    Stop,
    Warm,
)
from cache_agent.prewarm.wait import follow
from cache_agent.residency.warmer import PageCacheWarmer
from cache_agent.store.roots import Roots
from modelimage.descriptor import LINUX_AMD64, Platform
from modelimage.digest import Digest
from modelimage.errors import WeightyardError
from modelimage.reference import ImageReference
from modelimage.repository import ImageReader


@dataclass
class Reconciler:
    """Brings a node to its desired state. `note` writes to the log; `facts` go into the report.

    `clock` is wall time, `monotonic` never goes back, both in seconds. `platform` chooses in a foreign image's index.
    """

    store: Roots
    pull: StartPull
    warmer: PageCacheWarmer
    executor: BlockingExecutor
    credentials: Credentials
    open_reader: Callable[[ImageReference], ImageReader]
    runtime: RuntimeImages
    outcomes: OutcomeLog
    note: Callable[..., None]
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    platform: Platform = LINUX_AMD64
    facts: NodeFacts = field(default_factory=NodeFacts)
    options: ReconcilerOptions = field(default_factory=ReconcilerOptions)
    random: Callable[[], float] = random.random
    # Waits until this node lacks a label. None without a cluster, where there are no labels.
    label_gone: Callable[[str], Awaitable[None]] | None = None
    # Called when the report may have changed.
    changed: Callable[[], None] = lambda: None
    # None until the source has reported: nothing may be evicted or unpinned before.
    _desired_models: tuple[DesiredModel, ...] | None = None
    _refused: tuple[RefusedDocument, ...] = ()
    _trouble: str = ""
    _inventory: Inventory = field(default_factory=Inventory)
    # The monotonic time of the last inventory; None: take one in the next round.
    _looked: float | None = None
    _plan: PrewarmPlan = field(default_factory=lambda: PrewarmPlan((), {}))
    _pulls: dict[FetchTarget, Pull] = field(default_factory=dict)
    # Evictions under way. A later plan that doesn't need one cancels it.
    _releasing: dict[Digest, asyncio.Task[None]] = field(default_factory=dict)
    _warming: set[Digest] = field(default_factory=set)
    # Fetches whose space isn't reserved yet, so that the inventory's free space is too large.
    _settling: set[FetchTarget] = field(default_factory=set)
    # Report entries of the last report, reused while their inputs don't change.
    _made: Made = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._wake = asyncio.Event()
        self._attempts = Attempts(self.clock, self.random)
        self._memory = Memory(self.store, self.warmer, self.clock)
        self._caps = RateCaps(self.options.bandwidth, self.monotonic)

    # Called from outside the loop

    def want(
        self, desired_models: Sequence[DesiredModel], refused: Sequence[RefusedDocument] = ()
    ) -> None:
        """Set the desired models, and the documents that were refused."""
        self._desired_models, self._refused = tuple(desired_models), tuple(refused)
        self._attempts.keep({desired.target for desired in desired_models})
        self.wake()

    def status(self, previous: NodeCacheStatus) -> NodeCacheStatus:
        """The current report. `previous` gives the transition times of unchanged conditions."""
        return status(self.view(), previous, self._made)

    def trouble(self, message: str) -> None:
        """Set why the desired state can't be followed; empty when it can."""
        if message != self._trouble:
            self._trouble = message
            self.changed()

    def wake(self) -> None:
        """Plan again: something changed."""
        self._wake.set()

    def stale(self) -> None:
        """Take a new inventory and plan again: something else changed the store."""
        self._looked = None
        self._wake.set()

    def view(self) -> NodeReportInput:
        """The input of a report."""
        return NodeReportInput(
            facts=self.facts.model_copy(update={"read_bytes_per_second": self._memory.read_rate}),
            inventory=self._inventory,
            now=self.clock(),
            synced=self._desired_models is not None,
            trouble=self._trouble,
            refused=self._refused,
            desired_models=self._desired_models or (),
            outcomes=self._plan.outcomes,
            known=self._attempts.known,
            progress={
                target: fetch_progress(pull.snapshot()) for target, pull in self._pulls.items()
            },
            runtime=self.runtime.known,
            warm=self._memory.warm,
            releasing=frozenset(self._releasing),
        )

    def details(self) -> DesiredDetails:
        """What is told of each desired model."""
        view = self.view()
        desired = status(view, NodeCacheStatus(), self._made).desired
        told = self.outcomes.missing_seconds, self._attempts.last_failure
        return desired_details(view, desired, *told)

    @property
    def busy(self) -> bool:
        """Whether a fetch runs, so that the report changes without an event."""
        return bool(self._pulls)

    # The loop

    async def run(self) -> None:
        """Run until cancelled, and then end all fetches and other tasks."""
        self._pins = await self.executor.call(lambda: ManagedPins(self.store))
        async with asyncio.TaskGroup() as self._group:
            try:
                while True:
                    # Cleared before the inventory, so that a change during the step causes another one.
                    self._wake.clear()
                    await self._step()
                    await self._wait()
            finally:
                for pull in self._pulls.values():
                    pull.cancel()

    async def _step(self) -> None:
        # As it is before the inventory, which may still count as free what is reserved while it is taken.
        settling = bool(self._settling)
        try:
            await self._refresh()
        except WeightyardError as error:
            # No plan on an old inventory, which lacks the leases and pulls since then.
            self.note("store not readable", problem=error.message)
            return
        if self._desired_models is not None:
            self._plan = plan(self._planner_input(self._desired_models, settling))
            self.outcomes.report(self._plan.outcomes)
            for action in self._plan.actions:
                await self._carry_out(action)
            self._end_needless_releases()
        self.changed()

    async def _wait(self) -> None:
        seconds = self.options.look_seconds
        if self._plan.wake_at is not None:
            # Slightly late, so that the time has really come when the next plan is made.
            seconds = min(seconds, max(0.0, self._plan.wake_at - self.clock()) + 0.01)
        await wait_event(self._wake, seconds)

    async def _refresh(self) -> None:
        """Take an inventory if the store may have changed, and resolve new targets from the store."""
        now = self.monotonic()
        targets = [desired.target for desired in self._desired_models or ()]
        unknown = [each for each in targets if each not in self._attempts.known]
        due = self._looked is None or now - self._looked >= self.options.look_seconds
        if due:
            # Before it is taken: what changes the store meanwhile makes this one stale.
            self._looked = now
            try:
                self._inventory = await self.executor.call(self._take_inventory)
            except WeightyardError:
                self._looked = None
                raise
            # A target that can't be resolved by its registry may be in the store by now, by a pod's pull.
            unknown = self._attempts.without_key(targets)
        # Also when no inventory is due: the planner would have a new target fetched although the store holds it.
        if unknown:
            resolved = self.store.models.resolved
            found = await self.executor.call(lambda: [resolved(*each) for each in unknown])
            for target, model in zip(unknown, found, strict=True):
                self._attempts.set_key(target, model[0].key if model else None)
        if due:
            self._attempts.note_held(self._inventory.held)
        if self._desired_models is not None:
            self.runtime.keep(
                {desired.runtime_image for desired in self._desired_models if desired.runtime_image}
            )

    def _take_inventory(self) -> Inventory:
        inventory = take_inventory(self.store, self.clock())
        self._memory.look(self._in_memory(inventory))
        return inventory

    def _in_memory(self, inventory: Inventory) -> set[Digest]:
        keys = {
            self._attempts.known[desired.target].key
            for desired in self._desired_models or ()
            if desired.tier == "memory" and desired.target in self._attempts.known
        }
        return {key for key in keys if key is not None and key in inventory.held}

    def _planner_input(
        self, desired_models: tuple[DesiredModel, ...], settling: bool
    ) -> PlannerInput:
        return PlannerInput(
            desired_models=desired_models,
            now=self.clock(),
            free=self._inventory.free,
            memory=self._memory.room() if any(w.tier == "memory" for w in desired_models) else 0,
            fetches=self.options.fetches,
            known=self._attempts.known,
            held=self._inventory.held,
            runtime=self.runtime.known,
            pinned_for=self._pins.keys,
            warm=self._memory.warm,
            cold=self._memory.cold(),
            releasing=frozenset(self._releasing),
            settling=settling,
        )

    # Actions

    async def _carry_out(self, action: Action) -> None:
        # State is set before the task that it describes starts: the next plan may come first, and must not repeat it.
        match action:
            case Resolve(desired):
                self._attempts.asking(desired.target)
                self._group.create_task(self._resolve(desired))
            case Fetch(desired):
                self._attempts.running(desired.target)
                self._settling.add(desired.target)
                self._group.create_task(self._fetch(desired))
            case Stop(target):
                pull = self._pulls.get(target)
                if pull is not None:
                    pull.cancel()
            case Pin(key):
                await self._changing_store(partial(self._pins.pin, key))
            case ReleasePin(key):
                await self._changing_store(partial(self._pins.unpin, key))
            case Warm(key) if not self._warming:
                self._warming.add(key)
                self._group.create_task(self._warm(key))
            case Evict(key) if key not in self._releasing:
                self._releasing[key] = self._group.create_task(self._evict(key))
            case PullRuntime(image, secret):
                self.runtime.begin(image)
                self._group.create_task(self._pull_runtime(image, secret))

    async def _resolve(self, desired: DesiredModel) -> None:
        target = desired.target
        try:
            image = parse_wanted(target.image)
            reader = await self.credentials.reader(image, desired.pull_secret)
            resolve = partial(
                resolve_target, self.store, reader or self.open_reader(image), image, target,
                self.platform,
            )  # fmt: skip
            found = await self.executor.call(resolve)
        except WeightyardError as error:
            self._attempts.failed(target, error)
        else:
            self._attempts.answered(target, found.key, found.need)
            if found.need == 0 or found.key in self._inventory.held:
                self._looked = None
        self.wake()

    async def _fetch(self, desired: DesiredModel) -> None:
        target = desired.target
        try:
            image = parse_wanted(target.image)
            request = PullRequest(
                image, target.variant, desired.priority,
                # Not evicting: only the planner decides evictions; a pull could remove models of higher priority.
                await self.credentials.reader(image, desired.pull_secret), self._caps.of(desired), evicting=False,
            )  # fmt: skip
            self._pulls[target] = pull = self.pull(request)
            await follow(pull, self.executor, partial(self._settled, target))
            result = pull.result(0)
        # The plan stopped it: that isn't a failure, so it causes no backoff.
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
            self._looked = None
            self.wake()

    def _settled(self, target: FetchTarget) -> None:
        self._settling.discard(target)
        self.stale()

    async def _warm(self, key: Digest) -> None:
        await self.executor.call(lambda: self._memory.bring(key))
        self._warming.discard(key)
        self.wake()

    async def _evict(self, key: Digest) -> None:
        self.changed()
        try:
            # The label goes first, so that no new pod is scheduled here for a model that is about to vanish.
            if self.label_gone is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.options.label_seconds):
                        await self.label_gone(node_label(key))
            await self._changing_store(partial(self._pins.remove, key))
        finally:
            self._releasing.pop(key, None)
            self.wake()

    def _end_needless_releases(self) -> None:
        wanted = {action.key for action in self._plan.actions if isinstance(action, Evict)}
        # An eviction that still waits for its label can be taken back when its space isn't needed any more.
        for key, task in self._releasing.items():
            if key not in wanted:
                task.cancel()

    async def _changing_store(self, change: Callable[[], None]) -> None:
        try:
            await self.executor.call(change)
        except WeightyardError as error:
            self.note("store not changed", problem=error.message)
        # After a failure too: part of the change may have happened.
        self._looked = None
        self.wake()

    async def _pull_runtime(self, image: str, secret: str | None) -> None:
        await self.runtime.pull(image, secret)
        self.wake()
