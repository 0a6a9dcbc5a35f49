"""Regular expressions from anyone: a subset of Python's that is matched in time proportional to pattern and text.

Thompson's construction: the pattern becomes states that are followed side by side, so nothing is ever tried twice (Russ
Cox, "Regular Expression Matching Can Be Simple And Fast", 2007; RE2 does the same). Hence no back-references and no
look-around. Python's own `re` backtracks: 30 characters of a pattern can hold it for years.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from modelimage.errors import InvalidInput
from workspace.probes.steps import StepBudget

# Characters of a pattern, states that it becomes, and how often a part may be asked to repeat.
LONGEST: Final = 512
_MOST_STATES: Final = 2000
_MOST_REPEATS: Final = 200
_DEEPEST: Final = 40
_SPECIAL: Final = "\\^$.|?*+()[]{}"
_ESCAPED: Final = {"n": "\n", "t": "\t", "r": "\r"}

# A character's test; and a test of a position: (text, index).
_Accepts = Callable[[str], bool]
_Holds = Callable[[str, int], bool]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _at_boundary(text: str, index: int) -> bool:
    before = index > 0 and _is_word(text[index - 1])
    return before != (index < len(text) and _is_word(text[index]))


def _is_in_line(character: str) -> bool:
    return character != "\n"


def _at_start(text: str, index: int) -> bool:
    return index == 0


def _at_end(text: str, index: int) -> bool:
    # As Python's: also before the line feed that ends a text.
    return index == len(text) or (index == len(text) - 1 and text[index] == "\n")


_ANCHORS: Final[dict[str, _Holds]] = {"^": _at_start, "$": _at_end}
# As `re` has them for text: decimal digits of every script, and every white space.
_CLASSES: Final[dict[str, _Accepts]] = {
    "d": str.isdecimal, "w": _is_word, "s": str.isspace,
    "D": lambda each: not each.isdecimal(), "W": lambda each: not _is_word(each), "S": lambda each: not each.isspace(),
}  # fmt: skip
_POSITIONS: Final[dict[str, _Holds]] = {
    "b": _at_boundary,
    "B": lambda text, index: not _at_boundary(text, index),
}


@dataclass(slots=True)
class _State:
    """`accepts` reads a character; without it the state is left at once, if `holds`. `following` are states' numbers.

    `cost` is in steps.
    """

    accepts: _Accepts | None = None
    holds: _Holds | None = None
    cost: int = 1
    following: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of the machine: its first state and the one that it ends in."""

    first: int
    last: int


class Pattern:
    """A compiled pattern. Raises InvalidInput for one that isn't of the subset, or is too large."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise InvalidInput(f"a pattern has at most {LONGEST} characters")
        parsed = _Parser(text)
        whole = parsed.whole()
        self._states, self._first, self._last = parsed.states, whole.first, whole.last

    def search(self, text: str, steps: StepBudget) -> bool:
        """Whether the pattern occurs in a text. Raises TooManySteps."""
        current: set[int] = set()
        for index in range(len(text) + 1):
            # An occurrence may begin anywhere.
            reached = self._reach([*current, self._first], text, index, steps)
            if self._last in reached:
                return True
            if index == len(text):
                break
            steps.spend(sum(self._states[number].cost for number in reached))
            current = {
                following
                for number in reached
                if (accepts := self._states[number].accepts) is not None and accepts(text[index])
                for following in self._states[number].following
            }
        return False

    def _reach(self, waiting: list[int], text: str, index: int, steps: StepBudget) -> set[int]:
        """The states that can be entered at a position without reading."""
        reached: set[int] = set()
        while waiting:
            number = waiting.pop()
            if number in reached:
                continue
            steps.spend()
            state = self._states[number]
            if state.holds is not None and not state.holds(text, index):
                continue
            reached.add(number)
            if state.accepts is None:
                waiting.extend(state.following)
        return reached


class _Parser:
    """Reads a pattern from left to right and builds its states."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.states: list[_State] = []

    def whole(self) -> _Part:
        part = self._either(0)
        if self._at < len(self._text):
            raise self._wrong("a `)` without its `(`")
        return part

    def _either(self, depth: int) -> _Part:
        if depth > _DEEPEST:
            raise self._wrong("groups nested too deeply")
        parts = [self._sequence(depth)]
        while self._next_is("|"):
            self._at += 1
            parts.append(self._sequence(depth))
        if len(parts) == 1:
            return parts[0]
        first, last = self._state(), self._state()
        for part in parts:
            self.states[first].following.append(part.first)
            self.states[part.last].following.append(last)
        return _Part(first, last)

    def _sequence(self, depth: int) -> _Part:
        first = last = self._state()
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            part = self._repeated(depth)
            self.states[last].following.append(part.first)
            last = part.last
        return _Part(first, last)

    def _repeated(self, depth: int) -> _Part:
        begin = self._at
        part = self._one(depth)
        least, most = self._count()
        if (least, most) == (1, 1):
            return part
        # Built once for each copy, by reading its text again.
        end, first = self._at, self._state()
        last, copies = first, [part]
        for number in range(max(least, 1 if most is None else most)):
            if number:
                self._at = begin
                copies.append(self._one(depth))
            copy = copies[number]
            self.states[last].following.append(copy.first)
            last = copy.last
        self._at = end
        final = self._state()
        self.states[last].following.append(final)
        if most is None:
            self.states[copies[-1].last].following.append(copies[-1].first)
        # Where the copies beyond the least begin, the rest may be left out.
        for number in range(len(copies)):
            if number >= least:
                before = copies[number - 1].last if number else first
                self.states[before].following.append(final)
        # The part was read for its errors alone: nothing may lead into it.
        if most == 0:
            self.states[first].following = [final]
        return _Part(first, final)

    def _count(self) -> tuple[int, int | None]:
        """How often what precedes may occur; without a sign, once."""
        sign = self._text[self._at : self._at + 1]
        if sign not in ("*", "+", "?", "{") or not sign:
            return 1, 1
        self._at += 1
        found: tuple[int, int | None] = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(
            sign, (0, 0)
        )
        if sign == "{":
            found = self._numbers()
        # Lazy and greedy find the same occurrences.
        if self._next_is("?"):
            self._at += 1
        if self._at < len(self._text) and self._text[self._at] in "*+?{":
            raise self._wrong("two repetitions in a row")
        return found

    def _numbers(self) -> tuple[int, int | None]:
        inner, closed, _ = self._text[self._at :].partition("}")
        low, comma, high = inner.partition(",")
        numbers = [each for each in (low, high) if each]
        if (
            not closed
            or not low
            # Digits of other scripts are decimal too, and `int` would read them.
            or not all(each.isascii() and each.isdecimal() and len(each) <= 3 for each in numbers)
        ):
            raise self._wrong(
                "a `{` that doesn't begin a repetition such as {2} or {2,5}; write \\{"
            )
        least = int(low)
        most = (int(high) if high else None) if comma else least
        if max(least, most or 0) > _MOST_REPEATS or (most is not None and most < least):
            raise self._wrong(f"a repetition that isn't between 0 and {_MOST_REPEATS}")
        self._at += len(inner) + 1
        return least, most

    def _one(self, depth: int) -> _Part:
        character = self._take()
        if character == "(":
            return self._group(depth)
        if character == "\\":
            return self._escape()
        if character == "[":
            begin = self._at
            accepts = self._class()
            # A class tries its items one after the other, so it costs as many steps.
            return self._reading(accepts, cost=self._at - begin)
        if character in "*+?{":
            raise self._wrong("a repetition of nothing")
        holds = _ANCHORS.get(character)
        if holds is not None:
            return self._holding(holds)
        return self._reading(_is_in_line if character == "." else character.__eq__)

    def _group(self, depth: int) -> _Part:
        if self._next_is("?"):
            if self._text[self._at : self._at + 2] != "?:":
                raise self._wrong(
                    "only groups (...) and (?:...) are supported, no look-around or flags"
                )
            self._at += 2
        part = self._either(depth + 1)
        if not self._next_is(")"):
            raise self._wrong("a `(` without its `)`")
        self._at += 1
        return part

    def _escape(self) -> _Part:
        character = self._take()
        if character in _CLASSES:
            return self._reading(_CLASSES[character])
        if character in _POSITIONS:
            return self._holding(_POSITIONS[character])
        return self._reading(self._escaped(character).__eq__)

    def _escaped(self, character: str) -> str:
        # As in Python: what has no meaning yet after a backslash may get one, and must not pass as itself.
        if character.isalnum() and character not in _ESCAPED:
            raise self._wrong(f"\\{character}, which isn't supported")
        return _ESCAPED.get(character, character)

    def _class(self) -> _Accepts:
        negated = self._next_is("^")
        self._at += negated
        tests: list[_Accepts] = []
        begin = self._at
        # As in Python, a `]` that comes first stands for itself.
        while not self._next_is("]") or self._at == begin:
            tests.append(self._class_item())
        self._at += 1
        return lambda each: any(test(each) for test in tests) != negated

    def _class_item(self) -> _Accepts:
        low = self._take()
        if low == "\\":
            low = self._take()
            if low in _CLASSES:
                return _CLASSES[low]
            low = self._escaped(low)
        # As in Python, a `-` before the end of the class stands for itself.
        if self._text[self._at : self._at + 1] != "-" or self._text[
            self._at + 1 : self._at + 2
        ] in ("]", ""):
            return low.__eq__
        self._at += 1
        high = self._take()
        if high == "\\":
            high = self._escaped(self._take())
        if high < low:
            raise self._wrong("a range of characters that ends before it begins")
        return lambda each: low <= each <= high

    def _reading(self, accepts: _Accepts, cost: int = 1) -> _Part:
        first, last = self._state(), self._state()
        self.states[first].accepts, self.states[first].cost = accepts, cost
        self.states[first].following.append(last)
        return _Part(first, last)

    def _holding(self, holds: _Holds) -> _Part:
        first, last = self._state(), self._state()
        self.states[first].holds = holds
        self.states[first].following.append(last)
        return _Part(first, last)

    def _state(self) -> int:
        if len(self.states) >= _MOST_STATES:
            raise self._wrong("repetitions that make it too large")
        self.states.append(_State())
        return len(self.states) - 1

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise self._wrong("an end where more must follow")
        self._at += 1
        return self._text[self._at - 1]

    def _next_is(self, character: str) -> bool:
        return self._text[self._at : self._at + 1] == character

    def _wrong(self, what: str) -> InvalidInput:
        return InvalidInput(f"the pattern has {what}, at character {self._at + 1}")
