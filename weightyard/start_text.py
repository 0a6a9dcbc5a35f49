"""A server's start in words: its stages with their seconds, for `explain`."""

from __future__ import annotations

from weightyard.text import format_bytes, format_duration
from workspace.startup import MEANINGS, Startup


def start_lines(start: Startup, *, is_over: bool = False) -> list[str]:
    """The lines of one start, the first of them about the whole. `is_over`: the server has ended."""
    who = [f"version {start.version}"] if start.version else []
    who += [start.pod] if start.pod else []
    who += [f"on {start.node}"] if start.node else []
    how = "ended before it was healthy" if is_over else "not healthy yet"
    if start.total is not None:
        how = f"healthy after {format_duration(start.total)}"
    lines = [f"start {' '.join([*who, 'at', start.started_at])}: {how}"]
    for each in start.stages:
        # Parts of the volume by tier overlap, so their seconds don't add up to its own.
        if each.tier is not None:
            size = format_bytes(each.bytes or 0)
            lines.append(f"    {each.tier:<9} {format_duration(each.seconds):>11}  {size}")
        else:
            lines.append(f"  {each.name:<11} {format_duration(each.seconds):>11}  {_meaning(each.name)}")  # fmt: skip
    if start.current is not None:
        when = "ended here" if is_over else "now"
        lines.append(f"  {start.current:<11} {when:>11}  {_meaning(start.current)}")
    return lines


def _meaning(name: str) -> str:
    known = {stage.value: text for stage, text in MEANINGS.items()}
    return known.get(name, "")
