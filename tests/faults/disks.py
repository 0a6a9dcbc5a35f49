"""Disks that fail and clocks that jump under a running agent, by the preloaded library or the system's own limits."""

from __future__ import annotations

import errno
import resource
from functools import partial
from pathlib import Path

from tests.faults.campaign import Kind
from tests.faults.load import Load, under_load
from tests.faults.orders import FOR_EVER, Calls, What
from tests.faults.site import TIGHT
from tests.faults.stage import Round
from tests.servers.process import wait_until

DAY = 86400.0


def failing(code: int, on: Calls, fresh: Round, *, lasting: bool = False) -> None:
    """Some calls in a row fail, or all from one on, under load; then the disk works again."""
    site, rng = fresh.site, fresh.rng
    site.settings.update(TIGHT)
    site.start()
    times = FOR_EVER if lasting else rng.choice([1, 3, 10])
    site.orders.give(What.FAIL, code, on=on, after=rng.randrange(60), times=times)
    with Load(site, operations=10):
        pass
    site.assert_alive()
    site.assert_no_wrong_byte()
    site.prove()


def failing_at_the_start(fresh: Round) -> None:
    """An agent that can't open its store says so and ends; it isn't killed by a bug."""
    site = fresh.site
    site.start()
    site.promise_all()
    site.kill()
    code = fresh.rng.choice([errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EACCES])
    on = fresh.rng.choice([Calls.CHANGE, Calls.READ, Calls.OPEN])
    site.orders.give(What.FAIL, code, on=on, after=fresh.rng.randrange(30), times=FOR_EVER)
    site.launch()
    runs = site.started()
    site.orders.give(What.NOTHING)
    if runs:
        site.kill()
    site.prove()


def slow(fresh: Round) -> None:
    site = fresh.site
    site.settings.update(TIGHT)
    site.start()
    site.orders.give(What.PAUSE, 3000, after=fresh.rng.randrange(30), times=FOR_EVER)
    with Load(site, operations=8):
        pass
    site.prove()


def short_writes(fresh: Round) -> None:
    site = fresh.site
    site.start()
    site.orders.give(What.SHORTEN, on=Calls.WRITE, times=FOR_EVER)
    site.promise_all()
    site.assert_no_wrong_byte()
    site.prove()


def no_descriptors(fresh: Round) -> None:
    """The process may open no more files for a while; requests that were refused are answered afterwards."""
    site = fresh.site
    site.start()
    pid = site.program.pid if site.program else 0
    most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + fresh.rng.randrange(12), most[1]))
    with Load(site, operations=10):
        pass
    site.assert_alive()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, most)
    site.prove()


def small_files(fresh: Round) -> None:
    """The system's limit of a file's size: writes beyond it fail with EFBIG."""
    site = fresh.site
    site.start()
    pid = site.program.pid if site.program else 0
    most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    size = fresh.rng.randrange(1000, 300_000)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most[1]))
    with Load(site, operations=10):
        pass
    site.assert_alive()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, most)
    site.prove()


def clock_jumps(fresh: Round) -> None:
    """Forward and back by up to years, while the agent works and over a restart."""
    site = fresh.site
    site.settings.update(TIGHT)
    site.start()
    with under_load(site) as load:
        for _ in range(4):
            seen = load.done
            site.orders.give(What.NOTHING, clock=fresh.rng.uniform(-400, 4000) * DAY)
            wait_until(lambda seen=seen: load.done > seen + 2, what="operations")  # type: ignore[misc]
    site.assert_alive()
    site.kill()
    site.orders.give(What.NOTHING, clock=fresh.rng.choice([-60 * 365, 60 * 365]) * DAY)
    site.start()
    site.prove()


KINDS = (
    Kind("EIO at a write", partial(failing, errno.EIO, Calls.WRITE)),
    Kind("EIO at an fsync", partial(failing, errno.EIO, Calls.SYNC)),
    Kind("EIO at a change of names", partial(failing, errno.EIO, Calls.NAME)),
    Kind("EIO at a read", partial(failing, errno.EIO, Calls.READ)),
    Kind("EIO at everything", partial(failing, errno.EIO, Calls.CHANGE, lasting=True)),
    Kind("ENOSPC", partial(failing, errno.ENOSPC, Calls.WRITE)),
    Kind(
        "ENOSPC that stays", partial(failing, errno.ENOSPC, Calls.WRITE | Calls.NAME, lasting=True)
    ),
    Kind("EDQUOT", partial(failing, errno.EDQUOT, Calls.WRITE | Calls.NAME)),
    Kind("EROFS", partial(failing, errno.EROFS, Calls.WRITE | Calls.NAME, lasting=True)),
    Kind("EACCES", partial(failing, errno.EACCES, Calls.OPEN)),
    Kind("EMFILE at an open", partial(failing, errno.EMFILE, Calls.OPEN)),
    Kind("ENOMEM", partial(failing, errno.ENOMEM, Calls.OPEN | Calls.READ)),
    Kind("no descriptors", no_descriptors),
    Kind("files limited in size", small_files),
    Kind("a disk that fails at the start", failing_at_the_start),
    Kind("a slow disk", slow),
    Kind("short writes", short_writes),
    Kind("a clock that jumps", clock_jumps),
)
