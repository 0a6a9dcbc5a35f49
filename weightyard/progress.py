"""Progress of a job in three forms: a moving bar, a plain line every few seconds, a JSON event every second.

`Meter` does the arithmetic and takes the time as an argument; the rest writes. No threads are started here, except
rich's refresh of a moving bar.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import IO, Any, Final, Protocol

from builder.reporter import Progress, Silent
from weightyard.text import format_bytes, format_duration, middle_cut

PLAIN_INTERVAL: Final = 5.0  # seconds between plain lines
QUIET_INTERVAL: Final = 20.0  # seconds between plain lines while a stage stays where it is
EVENT_INTERVAL: Final = 1.0  # seconds between JSON events
RATE_WINDOW: Final = 10.0  # seconds over which the shown rate is averaged
# Columns that a moving bar's other parts take: numbers, spinner, spaces; without a total only the time.
_BESIDE_TITLE: Final = 50
_BESIDE_STAGE: Final = 12
_SPEED: Final = 11
_BAR: Final = 10
_WIDE_BAR: Final = 40
_LEAST_TITLE: Final = 12
_LEAST_TEXT: Final = 8
_SHORTEST: Final = (
    0.1  # seconds over which a rate is computed: a shorter time says nothing of a machine
)


class Output(Protocol):
    """The part of a console that progress needs."""

    json: bool
    quiet: bool

    @property
    def err(self) -> IO[str]: ...
    @property
    def moving(self) -> bool: ...
    def event(self, name: str, **fields: Any) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(slots=True)
class Meter:
    """Bytes done, their rate over the last seconds, and the time left. Times in seconds on one clock."""

    total: int | None
    started: float
    done: int = 0
    already: int = 0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def advance(self, count: int, now: float) -> None:
        self.done += count
        self._seen.append((now, count))
        while self._seen and self._seen[0][0] < now - RATE_WINDOW:
            self._seen.popleft()

    def resume(self, count: int) -> None:
        self.done += count
        self.already += count

    def rate(self, now: float) -> float:
        """Bytes a second over the last ten seconds, or since the start; 0 as long as it can't be known."""
        window = min(now - self.started, RATE_WINDOW)
        if window < _SHORTEST:
            return 0.0
        recent = sum(count for at, count in self._seen if at >= now - RATE_WINDOW)
        return recent / window

    def remaining(self, now: float) -> float | None:
        """Seconds left at the current rate; None when unknown."""
        rate = self.rate(now)
        if self.total is None or rate <= 0:
            return None
        return max(0, self.total - self.done) / rate

    def line(self, now: float) -> str:
        """`1.2 GB of 2.0 GB, 60%, 350 MB/s, 2.3 s left`."""
        parts = [format_bytes(self.done)]
        if self.total:
            parts = [
                f"{parts[0]} of {format_bytes(self.total)}",
                f"{100 * self.done // self.total}%",
            ]
        if rate := self.rate(now):
            parts.append(f"{format_bytes(rate)}/s")
        if (left := self.remaining(now)) and self.done < (self.total or 0):
            parts.append(f"{format_duration(left)} left")
        return ", ".join(parts)

    def total_line(self, took: float) -> str:
        """`2.0 GB, 500 MB/s`, with the bytes that already existed, if any; no rate over too short a time."""
        fresh = self.done - self.already
        there = [f"{format_bytes(self.already)} of it there already"] if self.already else []
        rate = [f"{format_bytes(fresh / took)}/s"] if fresh and took >= _SHORTEST else []
        return ", ".join([format_bytes(self.done), *there, *rate])


@dataclass(slots=True)
class StageMeter:
    """The stage that runs: its name, steps and beginning. Times in seconds on one clock."""

    name: str = ""
    done: int = 0
    total: int = 0
    started: float = 0.0

    def update(self, name: str, done: int, total: int, now: float) -> bool:
        """Takes the news; returns whether another stage has begun."""
        begun = name != self.name
        if begun:
            self.name, self.started = name, now
        self.done, self.total = done, total
        return begun

    def remaining(self, now: float) -> float | None:
        """Seconds left, if the steps to come take as long as those before; None before the first one's end."""
        if not 0 < self.done <= self.total:
            return None
        return (now - self.started) / self.done * (self.total - self.done)

    def line(self, now: float) -> str:
        """`comparing predictions, 50%, 12 s left`, without percent where there is nothing to count."""
        parts = [self.name]
        if self.total:
            parts.append(f"{100 * self.done // self.total}%")
        if left := self.remaining(now):
            parts.append(f"{format_duration(left)} left")
        return ", ".join(parts)


def open_progress(
    output: Output, title: str, total: int | None, *, clock: Callable[[], float]
) -> AbstractContextManager[Progress]:
    """The form of progress that suits the console."""
    if output.quiet:
        return nullcontext(Silent())
    if output.moving:
        return _moving(output, title, total)
    return _reported(_Reporter(output, title, total, clock=clock))


class _Reporter:
    """Writes a line or an event per interval, and at the start, at changes of the text and at the end."""

    def __init__(
        self,
        output: Output,
        title: str,
        total: int | None,
        *,
        clock: Callable[[], float],
        blob: str | None = None,
    ) -> None:
        self._output = output
        self._blob = blob
        self._title = title
        self._text = ""
        self._clock = clock
        self._meter = Meter(total, clock())
        self._stage = StageMeter()
        self._interval = EVENT_INTERVAL if output.json else PLAIN_INTERVAL
        self._written = self._meter.started
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        now = self._clock()
        # The lock covers the numbers only: writing happens after it, so a slow terminal blocks no
        # thread of the transfer.
        with self._lock:
            self._meter.advance(count, now)
            due = now - self._written >= self._interval
            if due:
                self._written = now
        if due:
            self._report("progress", now)

    def resume(self, count: int) -> None:
        with self._lock:
            self._meter.resume(count)

    def describe(self, text: str) -> None:
        with self._lock:
            changed, self._text = text != self._text, text
            self._stage = StageMeter()
        if changed:
            self._report("progress", self._clock())

    def stage(self, name: str, done: int, total: int) -> None:
        now = self._clock()
        with self._lock:
            moved = done != self._stage.done
            begun = self._stage.update(name, done, total, now)
            since = now - self._written
            # A stage that stands still says so more rarely to people; programs see
            # by each event that the job lives.
            due = begun or since >= (
                self._interval if moved or self._output.json else QUIET_INTERVAL
            )
            if due:
                self._written = now
        if due:
            self._report("progress", now)

    @contextmanager
    def part(self, name: str, size: int) -> Iterator[Callable[[int], None]]:
        """With --json, events per blob; people get lines of the total only."""
        if not self._output.json:
            yield self.advance
            return
        with _reported(
            _Reporter(self._output, self._title, size, clock=self._clock, blob=name)
        ) as own:

            def advance(count: int) -> None:
                self.advance(count)
                own.advance(count)

            yield advance

    def end(self, state: str) -> None:
        """Reports the end. `state` is `done` or `failed`."""
        self._report(state, self._clock())

    def _report(self, state: str, now: float) -> None:
        meter, took = self._meter, now - self._meter.started
        text = self._stage.line(now) if self._stage.name else self._text
        if self._output.json:
            left = meter.remaining(now)
            self._output.event(
                "progress", job=self._title, blob=self._blob, state=state, text=text or None,
                **self._stage_fields(now),
                done=meter.done, already=meter.already, total=meter.total, seconds=round(took, 3),
                rate=round(meter.rate(now)), left=None if left is None else round(left, 1),
            )  # fmt: skip
            return
        parts = [self._text] if self._text and state == "progress" else []
        if self._stage.name and state == "progress":
            # The bytes of an earlier stage say nothing of this one; the time does.
            self._output.say(f"{self._title}: {text}, {format_duration(took)} so far")
            return
        if state != "progress":
            parts = [f"{state} in {format_duration(took)}"]
        if meter.done:
            parts.append(meter.line(now) if state == "progress" else meter.total_line(took))
        self._output.say(f"{self._title}: {', '.join(parts)}")

    def _stage_fields(self, now: float) -> dict[str, Any]:
        """The stage's own fields of an event; none outside of stages."""
        stage = self._stage
        if not stage.name:
            return {}
        left = stage.remaining(now)
        return {
            "stage": stage.name,
            "steps": stage.done,
            "stepsTotal": stage.total or None,
            "stageLeft": None if left is None else round(left, 1),
        }


@contextmanager
def _reported(reporter: _Reporter) -> Iterator[Progress]:
    try:
        yield reporter
    # After Ctrl-C too: each job that has begun has an end among the events.
    except BaseException:
        reporter.end("failed")
        raise
    reporter.end("done")


@contextmanager
def _moving(output: Output, title: str, total: int | None) -> Iterator[Progress]:
    from rich.console import Console as RichConsole  # noqa: PLC0415 - its import takes 0.1 s, saved in pipes
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress  # noqa: PLC0415

    console = RichConsole(file=output.err)
    room = console.width - (_BESIDE_STAGE if total is None else _BESIDE_TITLE)
    narrow = room < _LEAST_TITLE + _LEAST_TEXT
    room += _SPEED if narrow else 0
    # A wide bar only beside a whole title.
    wide = room - len(title) - _WIDE_BAR > 0
    columns: list[ProgressColumn] = [
        SpinnerColumn(finished_text="[green]✓[/green]"),
        TextColumn("{task.description}", style="bold", markup=False),
    ]
    if total is not None:
        columns += [
            BarColumn(_WIDE_BAR if wide else _BAR), DownloadColumn(), *([] if narrow else [TransferSpeedColumn()]),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        ]  # fmt: skip
    columns.append(TextColumn("{task.fields[text]}", markup=False))
    if total is None:
        columns.append(TimeElapsedColumn())
    bar = RichProgress(*columns, console=console)
    with bar:
        shown_title = middle_cut(title, max(_LEAST_TITLE, room - _LEAST_TEXT))
        task = bar.add_task(shown_title, total=total, text="")
        yield _Bar(bar, task, room)
        # Shown as complete at the end, also when the total was unknown or wasn't reached.
        shown = bar.tasks[0]
        bar.update(task, total=shown.total or 1, completed=shown.total or 1, text="")


class _Bar:
    """Adapts rich's bar to Progress. Rich does its own locking. `room`: columns for title and text, so none wraps."""

    def __init__(self, bar: Any, task: Any, room: int) -> None:
        self._bar = bar
        self._task = task
        self._room = room
        self._stage = StageMeter()

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def resume(self, count: int) -> None:
        # `reset` adds no sample to the speed, unlike `advance`.
        shown = self._bar.tasks[0]
        self._bar.reset(self._task, completed=shown.completed + count, total=shown.total)

    def describe(self, text: str) -> None:
        left = self._room - max(_LEAST_TITLE, len(self._bar.tasks[0].description))
        self._bar.update(self._task, text=middle_cut(text, max(_LEAST_TEXT, left)))

    def stage(self, name: str, done: int, total: int) -> None:
        now = self._bar.get_time()
        self._stage.update(name, done, total, now)
        self.describe(self._stage.line(now))

    @contextmanager
    def part(self, name: str, size: int) -> Iterator[Callable[[int], None]]:
        """Shows a bar below the total's, removed at the end."""
        title = self._bar.tasks[0].description
        shown = middle_cut(f"  {name}", max(_LEAST_TITLE, len(title)))
        own = self._bar.add_task(shown, total=size, text="")

        def advance(count: int) -> None:
            self._bar.advance(self._task, count)
            self._bar.advance(own, count)

        try:
            yield advance
        finally:
            self._bar.remove_task(own)
