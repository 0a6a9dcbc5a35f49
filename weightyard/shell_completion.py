"""Answers a shell's Tab: commands and options from tables, names of models, workspaces, variants and leases from disk.

What can be answered so is, without importing the command, since a Tab must cost little: the table of options is made of
the commands by `scripts/completion_options.py`. The rest is click's. Reads only: it asks no agent and takes no lock,
and a cache that can't be read has no names.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from modelimage.quantization import Variant
from weightyard.options import default_root
from weightyard.topics import TOPICS

Words = Sequence[str]
Source = Callable[[Path], Iterator[tuple[str, str]]]


def _models(root: Path) -> Iterator[tuple[str, str]]:
    """The images of cached models, and the beginnings of their keys, which only one of several names."""
    for path in sorted((root / "images" / "origins").glob("*.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            origin = json.loads(path.read_bytes())
            yield str(origin["image"]), str(origin["variant"])
            yield path.stem[:12], f"{origin['image']} ({origin['variant']})"


def _workspaces(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((root / "up").glob("*/state.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            yield path.parent.name, str(json.loads(path.read_bytes())["image"])


def _leases(root: Path) -> Iterator[tuple[str, str]]:
    # Read only, beside an agent that has the ledger open.
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{root / 'ledger.db'}?mode=ro", uri=True, timeout=0.05)) as ledger,
    ):  # fmt: skip
        yield from ledger.execute("SELECT id, holder FROM leases ORDER BY id")


def _variants(root: Path) -> Iterator[tuple[str, str]]:
    """The variants that can be built, and those of cached models, published ones included."""
    held = {note for _, note in _models(root) if "(" not in note}
    for name in dict.fromkeys((*Variant, *sorted(held))):
        yield name, ""


# What a command's argument names. Others are click's.
ARGUMENTS: Final[Mapping[tuple[str, ...], Source]] = {
    **dict.fromkeys(
        [("ls",), ("rm",), ("pin",), ("warm",), ("mount",), ("hf-view",), ("explain",), ("pull",), ("prewarm",),
         ("status",), ("lease", "take")],
        _models,
    ),
    **dict.fromkeys([("down",), ("logs",)], _workspaces),
    ("lease", "release"): _leases,
}  # fmt: skip
# Commands whose argument is a file of the user's, which the shell completes itself.
FILES: Final = frozenset(
    {("up",), ("render",), ("build",), ("verify",), ("inspect",), ("validate",), ("import",)}
)
OPTIONS: Final[Mapping[tuple[str, str], Source]] = {
    **{(command, "--variant"): _variants for command in ("build", "pull", "explain", "prewarm")},
    ("up", "--name"): _workspaces,
}
# What no shell has a meaning for.
_WORD: Final = re.compile(r"[A-Za-z0-9@%+,./:=_-]+")
_OPTIONS_FILE: Final = Path(__file__).with_name("completion_options.json")


def quick(
    words: Words, incomplete: str, commands: Mapping[str, str], environ: Mapping[str, str]
) -> list[tuple[str, str, str]] | None:
    """Completions as value, kind and note; None where click must be asked. `commands`: names with their summaries."""
    words, head, incomplete = _rejoined(words, incomplete)
    given = [word for word in words if not word.startswith("-")]
    # A value that is written behind its option's `=`, or an option before any command.
    if incomplete.startswith("-") and ("=" in incomplete or not given):
        return None
    if not given:
        return _matching(commands.items(), head, incomplete)
    if given[0] == "help":
        topics = ((name, summary) for name, (summary, _) in TOPICS.items())
        return _matching(itertools.chain(topics, commands.items()), head, incomplete)
    root, last = _root(words, environ), words[-1]
    if incomplete.startswith("-"):
        options = _options(given)
        named = ((name, note) for name, (_, note, *_) in options.items())
        return _matching(named, head, incomplete) if options else None
    if last.startswith("-"):
        kind, _, *choices = _options(given).get(last, ["value", ""])
        if kind != "flag":
            return _value((given[0], last), kind, choices, root, head, incomplete)
    return _argument(given, root, head, incomplete)


def _argument(
    given: Words, root: Path, head: str, incomplete: str
) -> list[tuple[str, str, str]] | None:
    if (given[0],) in FILES:
        return [(incomplete, "file", "")]
    # The second word is a subcommand's, or an argument already.
    source = ARGUMENTS.get(tuple(given[:2])) or ARGUMENTS.get((given[0],))
    return None if source is None else _matching(source(root), head, incomplete)


def _value(
    option: tuple[str, str], kind: str, choices: Words, root: Path, head: str, incomplete: str
) -> list[tuple[str, str, str]] | None:
    """Completions of an option's value."""
    if kind in ("file", "dir"):
        return [(incomplete, kind, "")]
    source = OPTIONS.get(option)
    found = source(root) if source else ((each, "") for each in choices)
    return _matching(found, head, incomplete) if source or choices else None


def _options(given: Words) -> dict[str, list[str]]:
    """The options of the command that words begin with: the kind of the value, a note, and its choices."""
    table: dict[str, dict[str, list[str]]] = json.loads(_OPTIONS_FILE.read_bytes())
    return table.get(" ".join(given[:2])) or table.get(given[0], {})


def _rejoined(words: Words, incomplete: str) -> tuple[Words, str, str]:
    """The words, with what bash has split off the last one at its colons: `registry:5000/a` comes as three words.

    bash replaces what follows the last colon only: completions must begin there, after the returned head.
    """
    rest, head = list(words), ""
    if incomplete == ":" and rest:
        head, incomplete = f"{rest.pop()}:", ""
    while len(rest) > 1 and rest[-1] == ":":
        rest.pop()
        head = f"{rest.pop()}:{head}"
    return rest, head, incomplete


def _matching(
    found: Iterable[tuple[str, str]], head: str, incomplete: str
) -> list[tuple[str, str, str]]:
    return [
        # Fields of an answer are lines: a note that has some would be read as further words.
        (value[len(head) :], "plain", " ".join(note.split()))
        for value, note in dict(found).items()
        # A shell inserts the word as it is, and runs what is in it.
        if value.startswith(head + incomplete) and _WORD.fullmatch(value)
    ]


def _root(words: Words, environ: Mapping[str, str]) -> Path:
    """The cache's directory as the command line so far has it."""
    for option, value in itertools.pairwise(words):
        if option == "--root":
            return Path(value).expanduser()
    return default_root(environ)


def register(commands: Mapping[str, str]) -> None:
    """Makes click's three shells ask `quick` first."""

    def quicker(kind: type[ShellComplete]) -> type[ShellComplete]:
        class Quicker(kind):  # type: ignore[misc, valid-type]  # one of click's three
            def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
                found = quick(args, incomplete, commands, os.environ)
                if found is None:
                    asked: list[CompletionItem] = super().get_completions(args, incomplete)
                    return asked
                return [
                    CompletionItem(value, type=form, help=note or None)
                    for value, form, note in found
                ]

        return Quicker

    for kind in (BashComplete, ZshComplete, FishComplete):
        add_completion_class(quicker(kind), kind.name)
