"""A table that keeps the entries used last."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from modelimage.recent import Recent

MOST = 3


def test_the_entry_that_was_not_used_for_longest_goes_first() -> None:
    recent = Recent[str, int](2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]
    assert recent.get_or_make("c", lambda: 4) == 3
    assert recent.get_or_make("d", lambda: 4) == 4
    assert sorted(recent.values()) == [3, 4]


@given(st.lists(st.tuples(st.sampled_from(["get", "put", "make", "drop"]), st.integers(0, 6))))
def test_it_is_a_dict_of_the_last_used(steps: list[tuple[str, int]]) -> None:
    recent, model = Recent[int, int](MOST), OrderedDict[int, int]()
    for number, (step, key) in enumerate(steps):
        match step:
            case "get":
                assert recent.get(key) == model.get(key)
            case "put":
                recent.put(key, number)
                model[key] = number
            case "drop":
                recent.drop(key)
                model.pop(key, None)
            case _:
                value = number
                assert recent.get_or_make(key, lambda value=value: value) == model.setdefault(
                    key, number
                )
        if key in model:
            model.move_to_end(key)
        while len(model) > MOST:
            model.popitem(last=False)
        assert len(recent) == len(model)
