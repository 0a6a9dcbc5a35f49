"""The user's arguments win over derived ones, whatever their spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput
from workspace.arguments import count_of, flag_name, merge, number_of, value_of
from workspace.arguments import given as flags_given

flags = st.sampled_from(
    ["--dtype", "--max-model-len", "--enforce-eager", "--port", "--host", "--tensor-parallel-size"]
)
values = st.from_regex(r"[a-z0-9./]{1,8}", fullmatch=True)
derived_lists = st.lists(
    flags.flatmap(lambda flag: st.tuples(st.just(flag), values) | st.tuples(st.just(flag))),
    unique_by=lambda argument: argument[0],
)
spelled = flags.flatmap(
    lambda flag: st.sampled_from(
        [flag, flag.replace("-", "_").replace("__", "--", 1), f"--no-{flag[2:]}"]
    )
)
user_lists = st.lists(st.one_of(spelled.map(lambda f: [f]), st.tuples(spelled, values).map(list),
                                st.tuples(spelled, values).map(lambda p: [f"{p[0]}={p[1]}"]))).map(
    lambda lists: tuple(word for each in lists for word in each)
)  # fmt: skip


@given(derived_lists, user_lists)
def test_user_wins(derived: list[tuple[str, ...]], user: tuple[str, ...]) -> None:
    """The user's words end the line untouched; no flag of theirs is derived too; every other derived one is there."""
    merged = merge(derived, user)
    head = merged[: len(merged) - len(user)]
    assert merged[len(head) :] == user
    taken = flags_given(user)
    expected = [word for argument in derived if argument[0] not in taken for word in argument]
    assert list(head) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("--max-model-len", "--max-model-len"),
        ("--max_model_len=8", "--max-model-len"),
        ("-tp", "--tensor-parallel-size"),
        ("--tp=2", "--tensor-parallel-size"),
        ("--no-enable-prefix-caching", "--enable-prefix-caching"),
    ],
)
def test_flag_names(text: str, name: str) -> None:
    assert flag_name(text) == name


def test_values() -> None:
    user = ["--a", "1", "--b=x=y", "--c", "--d", "-1", "--a", "2"]
    assert value_of(user, "--a") == "2"
    assert value_of(user, "--b") == "x=y"
    assert value_of(user, "--c") is None
    assert value_of(user, "--d") == "-1"
    assert value_of(user, "--e") is None


@pytest.mark.parametrize(
    ("text", "number"), [("8192", 8192), ("8k", 8000), ("8K", 8192), ("0.5", 0.5), ("1M", 1 << 20)]
)
def test_numbers(text: str, number: float) -> None:
    assert number_of(["--n", text], "--n") == number
    assert number_of([f"--n={text}"], "--n") == number


@pytest.mark.parametrize("text", ["many", "0", "-3", "k", "nan", "inf"])
def test_not_a_number(text: str) -> None:
    with pytest.raises(InvalidInput, match="--n needs a number"):
        number_of([f"--n={text}"], "--n")


@pytest.mark.parametrize("text", ["0.5", "1e300", "99999999999", "1.5k1"])
def test_a_flag_that_counts_needs_a_whole_number(text: str) -> None:
    with pytest.raises(InvalidInput, match="needs a"):
        count_of(["--max-num-seqs", text], "--max-num-seqs")


def test_a_count() -> None:
    assert count_of(["--max-model-len", "8k"], "--max-model-len") == 8000
    assert count_of([], "--max-model-len") is None
