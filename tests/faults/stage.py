"""What all rounds share: a real registry behind a faulty proxy, the models in it, and the process that forks."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.cache_agent.images import noise
from tests.cache_agent.servers.published import publish, records_of
from tests.faults.forks import Forks
from tests.faults.site import Model, Site
from tests.servers.faulty_registry import FaultyRegistry
from tests.servers.registry import DockerRegistry

MEMORY = Path("/dev/shm")  # noqa: S108 - a place in memory, where an fsync costs nothing
SHARED = noise(20_000, 1)
SIZES = (300_000, 400_000, 250_000)


@dataclass
class Round:
    """One round: the stage, a fresh site and its own source of chance."""

    stage: Stage
    rng: random.Random
    site: Site
    others: list[Site] = field(default_factory=list)

    @property
    def registry(self) -> FaultyRegistry:
        return self.stage.proxy

    def another(self, **settings: str) -> Site:
        """One more store with an agent of its own."""
        home = self.site.home.with_name(f"{self.site.home.name}-{len(self.others) + 1}")
        made = Site(home, self.stage.forks, self.stage.models, self.rng, settings)
        self.others.append(made)
        return made

    def give_up(self) -> None:
        """Kill what runs, so that whoever waits for it gets an error."""
        for site in (self.site, *self.others):
            if site.program is not None:
                with suppress(ProcessLookupError):
                    os.killpg(site.program.pid, signal.SIGKILL)
        self.stage.proxy.faults = ()


class Stage:
    """The context starts everything and removes it at the end."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            place = MEMORY if os.access(MEMORY, os.W_OK) else None
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="wy-", dir=place))
            self.base = Path(made)
            registry = stack.enter_context(DockerRegistry())
            self.proxy = stack.enter_context(FaultyRegistry(registry.host))
            self.models = [self._publish(registry.host, n) for n in range(len(SIZES))]
            self.forks = stack.enter_context(Forks(self.base))
            self._rounds = 0
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def round(self, rng: random.Random) -> Iterator[Round]:
        """A round on a fresh store; afterwards the registry is well again."""
        self._rounds += 1
        fresh = Round(self, rng, Site(self.base / f"{self._rounds}", self.forks, self.models, rng))
        try:
            yield fresh
        finally:
            self.proxy.faults = ()
            self.proxy.seen.clear()
            for site in (fresh.site, *fresh.others):
                site.close()

    def _publish(self, host: str, number: int) -> Model:
        files = {
            "config.json": b'{"model_type": "llama", "seed": %d}' % number,
            "model.safetensors": noise(SIZES[number], number + 10),
            "sub/tokenizer.json": SHARED,
        }
        record, blobs = records_of(files, source=f"m{number}")
        made = publish(f"{host}/faults/m{number}:v1", [record], blobs, files)
        image = f"{self.proxy.host}/faults/m{number}:v1"
        return Model(image, str(made.record.key), files)
