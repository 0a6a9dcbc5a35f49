"""Agents and commands that are killed: at a call that changes the disk, at any moment under load, again and again."""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial

from modelimage.errors import WeightyardError
from tests.faults.campaign import Kind
from tests.faults.forks import Program
from tests.faults.load import Load, under_load
from tests.faults.orders import Calls, What
from tests.faults.site import TIGHT
from tests.faults.stage import Round
from tests.servers import faulty_registry as registries
from tests.servers.process import wait_until

# More calls than a round makes of each class: then the kill comes by hand.
CALLS = {Calls.WRITE: 80, Calls.SYNC: 60, Calls.NAME: 120, Calls.CHANGE: 200}


def killed_at(on: Calls, fresh: Round) -> None:
    """Under load, just before a call of this class."""
    site = fresh.site
    site.settings.update(TIGHT)
    site.start()
    site.orders.give(What.KILL, on=on, after=fresh.rng.randrange(CALLS[on]))
    with Load(site, operations=30):
        pass
    _dead_and_sound(fresh)


def killed_at_any_moment(fresh: Round) -> None:
    site = fresh.site
    site.settings.update(TIGHT)
    site.start()
    after = fresh.rng.randrange(12)
    with under_load(site) as load:
        wait_until(lambda: load.done >= after, what="operations")
        site.kill()
    site.assert_no_wrong_byte()
    site.prove()


def killed_at_the_start(fresh: Round) -> None:
    """While it brings a store in order that was killed before."""
    site = fresh.site
    site.start()
    site.promise_all()
    site.orders.give(What.KILL, after=fresh.rng.randrange(40))
    with suppress(WeightyardError):
        site.client.remove(site.models[2].image)
        site.pull(2)
    site.kill()
    site.orders.give(What.KILL, after=fresh.rng.randrange(12))
    _wait_for_start(site.launch())
    _dead_and_sound(fresh)


def killed_again_and_again(fresh: Round) -> None:
    """A crash loop: each life does some more of a pull, which ends well in the end."""
    site = fresh.site
    for _ in range(5):
        _wait_for_start(site.launch())
        site.orders.give(What.KILL, after=fresh.rng.randrange(20))
        site.try_pull(fresh.rng.randrange(3))
        site.kill()
        site.assert_no_wrong_byte()
    site.prove()


def killed_in_a_repair(fresh: Round) -> None:
    site = fresh.site
    site.start()
    site.promise_all()
    path = max(site.paths.files.glob("*/*"), key=lambda each: each.stat().st_size)
    data = bytearray(path.read_bytes())
    data[fresh.rng.randrange(len(data))] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    site.orders.give(What.KILL, after=fresh.rng.randrange(25))
    with suppress(WeightyardError):
        site.client.check(repair=True)
    site.kill()
    site.prove()


def killed_under_a_lying_registry(fresh: Round) -> None:
    rng = fresh.rng
    fresh.registry.faults = (
        registries.WrongBytes(times=rng.randrange(4)),
        registries.TruncatedBody(rng.randrange(50_000), times=rng.randrange(4)),
        registries.RateLimitSeconds(0, times=rng.randrange(4)),
    )
    killed_at(Calls.CHANGE, fresh)


def killed_command(fresh: Round) -> None:
    """A command without an agent."""
    site = fresh.site
    site.orders.give(What.KILL, after=fresh.rng.randrange(60))
    pulling = site.run("pull", site.models[0].image)
    assert pulling.wait() in (-signal.SIGKILL, 0), pulling.tail()
    site.assert_no_wrong_byte()
    site.prove()


def _wait_for_start(program: Program) -> None:
    """Until it is ready, or killed on the way."""
    wait_until(lambda: '"ready"' in program.log_text() or not program.is_running(), what="start")


def _dead_and_sound(fresh: Round) -> None:
    site = fresh.site
    site.orders.give(What.NOTHING)
    site.kill()
    site.assert_no_wrong_byte()
    site.prove()


KINDS = (
    Kind("killed at a write", partial(killed_at, Calls.WRITE)),
    Kind("killed at an fsync", partial(killed_at, Calls.SYNC)),
    Kind("killed at a change of names", partial(killed_at, Calls.NAME)),
    Kind("killed at any change", partial(killed_at, Calls.CHANGE)),
    Kind("killed at any moment", killed_at_any_moment),
    Kind("killed at its start", killed_at_the_start),
    Kind("killed again and again", killed_again_and_again),
    Kind("killed in a repair", killed_in_a_repair),
    Kind("killed under a lying registry", killed_under_a_lying_registry),
    Kind("a command killed", killed_command),
)
