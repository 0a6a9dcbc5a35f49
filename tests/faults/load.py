"""Load on one agent: clients that pull, lease, pin, release and remove at the same time, each by its own chance."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cache_agent.api.wire import GcBody
from modelimage.errors import WeightyardError
from tests.faults.site import Site

CLIENTS = 3


class Load:
    """`CLIENTS` threads; each has leases of its own and pins only one of the models. Refusals are part of it."""

    def __init__(self, site: Site, *, operations: int = 0) -> None:
        self._site, self._operations = site, operations
        self._over = threading.Event()
        self.errors: list[BaseException] = []
        seeds = [site.rng.random() for _ in range(CLIENTS)]
        self._threads = [
            threading.Thread(target=self._client, args=(n, random.Random(seed)))  # noqa: S311
            for n, seed in enumerate(seeds)
        ]
        self.done = 0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the clients: those with a number of operations end by themselves."""
        if not self._operations:
            self._over.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []

    def _client(self, number: int, rng: random.Random) -> None:
        count = 0
        while not self._over.is_set() and (not self._operations or count < self._operations):
            count += 1
            operation = rng.choice(self._menu(number, rng))
            try:
                operation()
                self.done += 1
            except WeightyardError:
                if self._site.program is None or not self._site.program.is_running():
                    return
            except Exception as error:  # noqa: BLE001 - asserted at the end
                self.errors.append(error)
                return

    def _menu(self, number: int, rng: random.Random) -> list[Callable[[], object]]:
        site, model = self._site, rng.randrange(len(self._site.models))
        lease, client = f"lease-{number}-{rng.randrange(3)}", self._site.client
        image = site.models[model].image
        return [
            *[lambda: site.pull(model)] * 4,
            *[lambda: site.lease(model, lease)] * 2,
            lambda: site.release(lease),
            lambda: site.pin(number, pinned=rng.random() < 0.5),
            lambda: client.remove(image),
            lambda: client.gc(GcBody(need=rng.choice([0, 200_000]))),
            lambda: client.check(repair=True, quick=True),
            client.models,
            client.space,
        ]


@contextmanager
def under_load(site: Site) -> Iterator[Load]:
    """Load while the body runs."""
    with Load(site) as load:
        yield load
