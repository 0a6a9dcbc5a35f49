"""Damage at rest, to any file or directory of a store that an agent left, and to its ledger."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from cache_agent.store.paths import StorePaths
from tests.faults.campaign import Kind
from tests.faults.orders import Calls, What
from tests.faults.site import Site
from tests.faults.stage import Round

# The ledger is damaged by kinds of its own.
LEDGER = ("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.generation", "ledger.reserve")


def files(site: Site) -> list[Path]:
    """Every file of the store but the ledger's, in order."""
    found = (path for path in site.root.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in found if path.name not in LEDGER)


def directories(site: Site) -> list[Path]:
    """Every directory that isn't empty or that a store always has, but the root."""
    always = set(StorePaths(site.root).directories())
    found = (path for path in site.root.rglob("*") if path.is_dir() and not path.is_symlink())
    return sorted(p for p in found if p in always or any(p.iterdir()))


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    rewritten(path, bytes(data))


def cut(path: Path, rng: random.Random) -> None:
    rewritten(path, path.read_bytes()[: rng.randrange(path.stat().st_size + 1)])


def emptied(path: Path, rng: random.Random) -> None:
    rewritten(path, b"")


def grown(path: Path, rng: random.Random) -> None:
    rewritten(path, path.read_bytes() + rng.randbytes(rng.randrange(1, 5000)))


def zeroed(path: Path, rng: random.Random) -> None:
    rewritten(path, bytes(path.stat().st_size))


def overwritten(path: Path, rng: random.Random) -> None:
    rewritten(path, rng.choice([b"{", b"null", b"[]", b'{"a":1}', b"[" * 5000, rng.randbytes(500)]))


def deleted(path: Path, rng: random.Random) -> None:
    path.unlink()


def to_a_copy(path: Path, rng: random.Random) -> None:
    aside = aside_of(path, rng)
    shutil.copy(path, aside)
    path.unlink()
    path.symlink_to(aside)


def to_nowhere(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["/dev/null", "/does/not/exist", path.name, "/dev/zero"]))


def a_directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    (path / "within").mkdir(parents=True)


def a_pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def a_socket(path: Path, rng: random.Random) -> None:
    path.unlink()
    here = aside_of(path, rng)
    with closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(here))
    here.rename(path)


def another_mode(path: Path, rng: random.Random) -> None:
    path.chmod(rng.choice([0o000, 0o200, 0o600, 0o666, 0o777, 0o4755]))


def another_name(path: Path, rng: random.Random) -> None:
    path.rename(path.with_name(f"{path.name}{rng.choice(['.bak', '~', '.tmp', ' '])}"))


def one_more_name(path: Path, rng: random.Random) -> None:
    """A link that makes what is stored writable by another name."""
    aside = aside_of(path, rng)
    aside.hardlink_to(path)
    aside.chmod(0o666)


def swapped(path: Path, rng: random.Random) -> None:
    others = [each for each in path.parent.iterdir() if each != path and each.is_file()]
    if others:
        other, between = rng.choice(sorted(others)), aside_of(path, rng)
        path.rename(between)
        other.rename(path)
        between.rename(other)


def rewritten(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def aside_of(path: Path, rng: random.Random) -> Path:
    """A new name outside of the store, on the same filesystem."""
    home = next(each for each in path.parents if each.name == "store").parent
    return home / f"a{rng.getrandbits(32):x}"


def removed(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path)


def moved_and_linked(path: Path, rng: random.Random) -> None:
    aside = aside_of(path, rng)
    path.rename(aside)
    path.symlink_to(aside)


def a_file(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"no directory")


def strangers(path: Path, rng: random.Random) -> None:
    """What others leave in a directory, by any name."""
    (path / "lost+found").mkdir(exist_ok=True)
    (path / "ab\ncd\xff").write_bytes(b"x")
    (path / ("n" * 200)).write_bytes(b"x")
    (path / f"{'0' * 64}.json").write_bytes(b"{}")
    (path / ("1" * 64)).write_bytes(b"x")
    (path / f".new-{'2' * 64}").mkdir(exist_ok=True)


FILES: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit flipped": flipped,
    "a file cut off": cut,
    "a file emptied": emptied,
    "a file grown": grown,
    "a file of zeros": zeroed,
    "a file overwritten": overwritten,
    "a file deleted": deleted,
    "a link to a copy": to_a_copy,
    "a link to elsewhere": to_nowhere,
    "a directory for a file": a_directory,
    "a pipe for a file": a_pipe,
    "a socket for a file": a_socket,
    "another mode": another_mode,
    "another name": another_name,
    "one more name": one_more_name,
    "two files swapped": swapped,
}
DIRECTORIES: dict[str, Callable[[Path, random.Random], None]] = {
    "a directory removed": removed,
    "a link for a directory": moved_and_linked,
    "a file for a directory": a_file,
    "strangers in a directory": strangers,
}


def damaged(
    where: Callable[[Site], list[Path]],
    most: int,
    change: Callable[[Path, random.Random], None],
    fresh: Round,
) -> None:
    """Up to `most` places, in a store at rest or under a running agent, whole or in the middle of a pull."""
    site, rng = fresh.site, fresh.rng
    site.start()
    site.promise_all()
    at_rest = rng.random() < 0.7
    if at_rest and rng.random() < 0.5:
        leave_partials(site)
    elif at_rest:
        site.kill()
    for _ in range(rng.randint(1, most)):
        change(rng.choice(where(site)), rng)
    site.prove()


def leave_partials(site: Site) -> None:
    """End the agent in the middle of a pull."""
    site.client.remove(site.models[2].image)
    site.orders.give(What.KILL, on=Calls.SYNC, after=site.rng.randrange(6))
    site.try_pull(2)
    site.orders.give(What.NOTHING)
    site.kill()


def ledger_flipped(site: Site) -> None:
    flipped(site.paths.ledger, site.rng)


def ledger_overwritten(site: Site) -> None:
    data = bytearray(site.paths.ledger.read_bytes())
    at = site.rng.randrange(0, len(data), 4096)
    data[at : at + 4096] = site.rng.randbytes(4096)
    site.paths.ledger.write_bytes(data)


def ledger_cut(site: Site) -> None:
    cut(site.rng.choice(_ledger_files(site)), site.rng)


def ledger_deleted(site: Site) -> None:
    for path in site.rng.choice([_ledger_files(site), [site.rng.choice(_ledger_files(site))]]):
        path.unlink()


def ledger_emptied(site: Site) -> None:
    emptied(site.rng.choice(_ledger_files(site)), site.rng)


def ledger_replaced(site: Site) -> None:
    change = site.rng.choice([to_nowhere, a_directory, a_pipe, a_socket, another_mode, overwritten])
    change(site.rng.choice(_ledger_files(site)), site.rng)


def ledger_without_a_table(site: Site) -> None:
    with closing(sqlite3.connect(site.paths.ledger)) as ledger:
        rows = ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        ledger.execute(f"DROP TABLE {site.rng.choice(rows)[0]}")
        ledger.commit()


def ledger_of_another_version(site: Site) -> None:
    with closing(sqlite3.connect(site.paths.ledger)) as ledger:
        ledger.execute(f"PRAGMA user_version = {site.rng.choice([0, 1, 99])}")


def log_flipped(site: Site) -> None:
    path = site.paths.ledger.with_name("ledger.db-wal")
    for _ in range(5):
        flipped(path, site.rng)


def _ledger_files(site: Site) -> list[Path]:
    return sorted(path for name in LEDGER if (path := site.root / name).is_file())


LOSSES: dict[str, Callable[[Site], None]] = {
    "flipped": ledger_flipped,
    "a page overwritten": ledger_overwritten,
    "cut off": ledger_cut,
    "deleted": ledger_deleted,
    "emptied": ledger_emptied,
    "replaced": ledger_replaced,
    "without a table": ledger_without_a_table,
    "of another version": ledger_of_another_version,
    "its log flipped": log_flipped,
}


def ledger_lost(change: Callable[[Site], None], fresh: Round) -> None:
    """An agent is killed with what it promised in the log; who uses a model has its lease again."""
    site = fresh.site
    site.start()
    site.promise_all()
    site.hold(0)
    site.kill()
    change(site)
    site.prove(leases=False)


def older_copy(fresh: Round) -> None:
    """The ledger of yesterday, as a restored backup has it: newer models, pins and users are found on the disk."""
    site = fresh.site
    site.start()
    site.pull(0)
    site.kill()
    kept = {path: path.read_bytes() for path in _ledger_files(site)}
    site.start()
    site.promise_all()
    site.hold(0)
    site.kill()
    whole = fresh.rng.random() < 0.5
    for path, data in kept.items():
        if whole or path.name in ("ledger.db", "ledger.db-wal"):
            path.write_bytes(data)
    site.prove(leases=False)


def _kinds() -> Iterator[Kind]:
    for name, change in FILES.items():
        yield Kind(f"at rest: {name}", partial(damaged, files, 3, change))
    for name, change in DIRECTORIES.items():
        # Only one: two hold a model's files, and with both nothing is left to lease.
        yield Kind(f"at rest: {name}", partial(damaged, directories, 1, change))
    for name, lose in LOSSES.items():
        yield Kind(f"ledger: {name}", partial(ledger_lost, lose))
    yield Kind("ledger: an older copy", older_copy)


KINDS = tuple(_kinds())
