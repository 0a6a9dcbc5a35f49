"""Who may ask: each fault of a signature is refused, keys rotate, and clocks may differ a little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.peers import request_signatures
from cache_agent.peers.keys import KeyFile
from cache_agent.peers.request_signatures import (
    Key,
    Replayed,
    SignedRequest,
    Stamp,
    Verifier,
    WrongClock,
    parse_keys,
    sign,
)
from modelimage.errors import AccessDenied, InvalidInput

KEY, OTHER = Key(b"k" * 32), Key(b"o" * 32)
REQUEST = SignedRequest("GET", "/v1/files/aa/bb/chunks/3", "bytes=0-99")
STAMP = Stamp("10.0.0.1:7946", "10.0.0.2:7946", 1_800_000_000, "n1")


@dataclass
class Checked:
    """A verifier with a clock of its own."""

    now: float = 1_800_000_000.0
    keys: list[Key] = field(default_factory=lambda: [KEY])
    verifier: Verifier = field(init=False)

    def __post_init__(self) -> None:
        self.verifier = Verifier(lambda: self.keys, {STAMP.receiver}, lambda: self.now, 30.0)


@pytest.fixture
def checked() -> Checked:
    return Checked()


def test_a_signed_request_names_its_sender(checked: Checked) -> None:
    assert checked.verifier.verify(sign(KEY, REQUEST, STAMP), REQUEST) == STAMP.sender


@pytest.mark.parametrize(
    "changed",
    [
        replace(REQUEST, method="HEAD"),
        replace(REQUEST, path="/v1/files/aa/bb/chunks/4"),
        replace(REQUEST, range="bytes=0-100"),
        replace(REQUEST, range=""),
        replace(REQUEST, range="bytes=0-99\udcff"),
    ],
)
def test_forged_signature_of_another_request(checked: Checked, changed: SignedRequest) -> None:
    with pytest.raises(AccessDenied, match="is wrong"):
        checked.verifier.verify(sign(KEY, REQUEST, STAMP), changed)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda header: header.replace("sender=10.0.0.1", "sender=10.0.0.3"),
        lambda header: header.replace("time=1800000000", "time=1800000001"),
        lambda header: header.replace("nonce=n1", "nonce=n2"),
        lambda header: header[:-1] + ("0" if header[-1] != "0" else "1"),
    ],
)
def test_forged_signature_of_another_stamp(checked: Checked, spoil: Callable[[str], str]) -> None:
    with pytest.raises(AccessDenied, match="is wrong"):
        checked.verifier.verify(spoil(sign(KEY, REQUEST, STAMP)), REQUEST)


def test_forged_signature_with_a_key_that_nobody_here_has(checked: Checked) -> None:
    with pytest.raises(AccessDenied, match="is wrong"):
        checked.verifier.verify(sign(OTHER, REQUEST, STAMP), REQUEST)


def test_a_request_for_another_node_is_refused(checked: Checked) -> None:
    elsewhere = replace(STAMP, receiver="10.0.0.9:7946")
    with pytest.raises(AccessDenied, match="another node"):
        checked.verifier.verify(sign(KEY, REQUEST, elsewhere), REQUEST)


def test_replayed_request(checked: Checked) -> None:
    header = sign(KEY, REQUEST, STAMP)
    checked.verifier.verify(header, REQUEST)
    with pytest.raises(Replayed):
        checked.verifier.verify(header, REQUEST)
    checked.now += 29
    with pytest.raises(Replayed):
        checked.verifier.verify(header, REQUEST)
    checked.now += 1000
    with pytest.raises(WrongClock):
        checked.verifier.verify(header, REQUEST)


def test_what_the_clock_refuses_is_forgotten(checked: Checked) -> None:
    for number in range(100):
        checked.now += 1
        stamp = replace(STAMP, time=int(checked.now), nonce=str(number))
        checked.verifier.verify(sign(KEY, REQUEST, stamp), REQUEST)
    assert len(checked.verifier._seen) <= 62


def test_memory_of_nonces_is_bounded(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_signatures, "MAX_NONCES", 10)
    for number in range(50):
        checked.verifier.verify(sign(KEY, REQUEST, replace(STAMP, nonce=str(number))), REQUEST)
    assert len(checked.verifier._seen) == 10


@pytest.mark.parametrize("off", [-31, 31, -10_000, 10_000])
def test_skewed_clock(checked: Checked, off: int) -> None:
    header = sign(KEY, REQUEST, replace(STAMP, time=STAMP.time + off))
    with pytest.raises(WrongClock, match="30 s are allowed"):
        checked.verifier.verify(header, REQUEST)


@given(st.integers(-30, 30))
def test_a_clock_that_is_a_little_off_is_borne(off: int) -> None:
    header = sign(KEY, REQUEST, replace(STAMP, time=STAMP.time + off))
    assert Checked().verifier.verify(header, REQUEST) == STAMP.sender


def test_keys_change_without_a_pause(checked: Checked) -> None:
    """Old key everywhere; then both, the old one first; then both, the new one first; then the new one."""
    steps = [(KEY, [KEY]), (KEY, [KEY, OTHER]), (OTHER, [KEY, OTHER]), (OTHER, [OTHER])]
    for number, (signs, accepted) in enumerate(steps):
        checked.keys = accepted
        header = sign(signs, REQUEST, replace(STAMP, nonce=str(number)))
        assert checked.verifier.verify(header, REQUEST)
    with pytest.raises(AccessDenied):
        checked.verifier.verify(sign(KEY, REQUEST, replace(STAMP, nonce="last")), REQUEST)


@given(st.text(max_size=300))
def test_nonsense_is_refused(header: str) -> None:
    for text in (header, f"{request_signatures.SCHEME} {header}"):
        with pytest.raises(AccessDenied):
            Checked().verifier.verify(text, REQUEST)


def test_parts_of_a_request_cant_be_shifted(checked: Checked) -> None:
    moved = SignedRequest("GET", REQUEST.path + REQUEST.range, "")
    with pytest.raises(AccessDenied):
        checked.verifier.verify(sign(KEY, REQUEST, STAMP), moved)


def test_keys_are_shown_nowhere() -> None:
    assert "kkk" not in repr(KEY) + sign(KEY, REQUEST, STAMP)


@pytest.mark.parametrize("text", ["", "# none\n\n", "short"])
def test_a_key_file_without_a_good_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_keys(text)


def test_a_key_file_is_read_again_and_kept_while_it_is_away(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "keys"
    keys = KeyFile(path, lambda: now[0])
    with pytest.raises(InvalidInput, match="key_file"):
        keys()
    path.write_text("# old\n" + "k" * 32 + "\n")
    now[0] += 10
    assert keys() == (KEY,)
    path.write_text("o" * 32 + "\n" + "k" * 32 + "\n")
    assert keys() == (KEY,)
    now[0] += 10
    assert keys() == (OTHER, KEY)
    path.unlink()
    now[0] += 10
    assert keys() == (OTHER, KEY)
