"""The quality document, its gates, the calibration text, and the floors on signal to noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput, NotFound
from quantize.calibration import load_calibration, load_evaluation, parse_samples
from quantize.errors import QualityTooLow
from quantize.quality import Comparison, Gates, Quality
from quantize.sqnr import Energies, SqnrSummary, check_floor, summarize

finite = st.floats(0, 1000).map(lambda value: round(value, 6))
decibels = st.floats(0, 200).map(lambda value: round(value, 2))
comparisons = st.builds(
    Comparison,
    perplexity_ratio=finite, kl_divergence=finite, top1_agreement=finite, source_perplexity=finite,
    tokens=st.integers(1, 1 << 30), text=st.binary(max_size=8).map(Digest.of),
    evaluator=st.text(max_size=9), versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)  # fmt: skip
summaries = st.builds(
    SqnrSummary, mean=decibels, worst=decibels, worst_module=st.text(max_size=9),
    matrices=st.dictionaries(st.text(max_size=5), decibels),
)  # fmt: skip
qualities = st.builds(
    Quality, scheme=st.text(max_size=5), format=st.text(max_size=5), engine=st.text(max_size=5),
    sqnr=summaries, comparison=st.none() | comparisons,
)  # fmt: skip


@given(quality=qualities)
def test_the_document_round_trips(quality: Quality) -> None:
    """Law: `Quality.parse(q.to_bytes()) == q`, to 6 digits."""
    assert Quality.parse(quality.to_bytes()) == quality


@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_other_bytes_are_an_invalid_image(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        Quality.parse(data)


def test_a_document_with_a_part_missing_is_invalid() -> None:
    document = json.loads(_quality(_comparison()).to_bytes())
    for key in list(document["comparison"]):
        spoilt = document | {"comparison": document["comparison"].copy()}
        del spoilt["comparison"][key]
        with pytest.raises(InvalidImage):
            Quality.parse(json.dumps(spoilt).encode())


def _comparison(kl: float = 0.1, ratio: float = 1.2, top1: float = 0.8) -> Comparison:
    return Comparison(ratio, kl, top1, 18.0, 100, Digest.of(b"text"), "transformers on cpu", {})


def _quality(comparison: Comparison | None) -> Quality:
    return Quality("int4", "gptq", "gptq", SqnrSummary(19, 17, "a", {"a": 17}), comparison)


def test_gates_name_every_bound_that_is_missed() -> None:
    made: dict[str, Any] = {"variant": "int4", "calibrated": False}
    Gates(0.1, 1.2, 0.8).check(_comparison(), **made)
    Gates().check(_comparison(kl=float("nan")), **made)
    with pytest.raises(
        QualityTooLow,
        match=r"int4 isn't good enough: KL divergence is 0\.1, not <= 0\.05 \(--max-kl\);"
        r" top-1 agreement is 0\.8, not >= 0\.9 \(--min-top1\)",
    ):
        Gates(max_kl=0.05, min_top1=0.9).check(_comparison(), **made)
    with pytest.raises(QualityTooLow, match="nan"):
        Gates(max_kl=0.05).check(_comparison(kl=float("nan")), **made)


@pytest.mark.parametrize(
    ("variant", "calibrated", "hint"),
    [
        ("int4", False, "--engine gptq"),
        ("int8", False, "--engine llm-compressor"),
        ("int4", True, "int8"),
        ("int8", True, "int8-w8a16"),
        ("int8-w8a16", False, "published"),
    ],
)
def test_a_missed_gate_says_what_loses_less(variant: str, calibrated: bool, hint: str) -> None:
    with pytest.raises(QualityTooLow) as caught:
        Gates(max_kl=0.05).check(_comparison(), variant=variant, calibrated=calibrated)
    assert hint in str(caught.value.hint)
    assert variant in str(caught.value)


def test_predictions_that_are_not_finite_are_never_published() -> None:
    with pytest.raises(QualityTooLow, match="not finite"):
        _quality(_comparison(kl=float("nan"))).to_bytes()


def test_the_summary_weighs_by_energy_and_names_the_worst() -> None:
    found = summarize({"a": Energies(1000, 1), "b": Energies(10, 1), "zero": Energies()})
    assert (found.worst, found.worst_module) == (10, "b")
    assert found.matrices == {"a": 30, "b": 10, "zero": 200}
    assert found.mean == pytest.approx(27.03, abs=0.01)
    check_floor(found, 10)
    with pytest.raises(QualityTooLow, match=r"^b has"):
        check_floor(found, 10.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_energies_that_are_not_finite_pass_no_floor(bad: float) -> None:
    """An engine that wrote a scale of NaN must not look exact."""
    for broken in (Energies(1000, bad), Energies(bad, 1)):
        with pytest.raises(QualityTooLow, match=r"^a has"):
            check_floor(summarize({"a": broken, "b": Energies(10, 1)}), 0)


def test_the_shipped_texts_have_nothing_in_common() -> None:
    """Not a paragraph, and not eight words in a row: else a calibrated variant is measured on what it was made with."""
    calibration, evaluation = load_calibration(), load_evaluation()
    assert len(calibration.samples) > 100
    assert sum(map(len, calibration.samples)) > 100_000
    assert len(evaluation.samples) > 10
    assert not _phrases(calibration.samples) & _phrases(evaluation.samples)


def _phrases(samples: tuple[str, ...], length: int = 8) -> set[tuple[str, ...]]:
    words = " ".join(samples).lower().split()
    return {tuple(words[n : n + length]) for n in range(len(words) - length + 1)}


def test_as_many_samples_as_asked_for() -> None:
    some, all_of_them = load_calibration(samples=3), load_calibration(samples=1000)
    assert some.samples == all_of_them.samples[:3]
    assert some.digest == all_of_them.digest


def test_json_lines_of_text_or_messages(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "one"}\n\n{"messages": [{"role": "user", "content": "two"}]}\n')
    found = load_calibration(path)
    assert found.samples == ("one", "user: two")
    assert found.digest == Digest.of(path.read_bytes())


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b"\n \n", ".txt"),
        (b"\xff\xfe", ".txt"),
        (b"{", ".jsonl"),
        (b"[1]", ".jsonl"),
        (b'{"a": 1}', ".jsonl"),
    ],
)
def test_text_that_cannot_be_used(data: bytes, suffix: str) -> None:
    with pytest.raises(InvalidInput):
        parse_samples(data, suffix)


def test_a_missing_text(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_calibration(tmp_path / "none.txt")
