"""What GitHub shows of a command beside its log: an annotation for the error, a summary for a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import Terminal
from weightyard.ci_reports import annotation


@pytest.fixture
def job(tmp_path: Path) -> Terminal:
    """A step of a GitHub job."""
    extra = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    return Terminal(tmp_path, extra=extra)


def test_an_error_is_an_annotation_on_one_line(job: Terminal) -> None:
    done = job.run("inspect", "oci:nowhere:v1")
    (shown,) = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert shown.startswith("::error title=weightyard%3A NotFound::")
    assert "nowhere" in shown
    assert done.stderr.startswith("error: ")
    job.extra["GITHUB_ACTIONS"] = "false"
    assert "::error" not in job.run("inspect", "oci:nowhere:v1").stderr


def test_no_text_ends_the_command_or_begins_another() -> None:
    shown = annotation(
        {"GITHUB_ACTIONS": "true"}, "50 %\n::set-output name=x::y\r", title="a: b, c"
    )
    assert shown == "::error title=a%3A b%2C c::50 %25%0A::set-output name=x::y%0D"
    assert annotation({}, "x", title="y") is None


def test_events_for_programs_stay_json(job: Terminal) -> None:
    assert "::error" not in job.run("--json", "inspect", "oci:nowhere:v1").stderr


def test_a_build_is_in_the_summary_of_its_job(job: Terminal, tmp_path: Path) -> None:
    checkpoint = synthetic_checkpoint(tmp_path / "checkpoint", total_bytes=1_000_000)
    build = ("build", str(checkpoint), "--to", "oci:images:v1", "--variant", "int8")
    job.ok(*build)
    job.ok(*build)
    text = (tmp_path / "summary.md").read_text()
    assert text.count("### oci:images:v1") == 2, "each step adds to it"
    assert text.count(", unchanged") == 1
    assert "| int8 | " in text
    assert "signal to noise" in text
    # One that can't be written to is no reason to fail.
    job.extra["GITHUB_STEP_SUMMARY"] = str(tmp_path / "gone" / "summary.md")
    job.ok(*build)


def test_a_build_tells_the_measured_quality_of_its_variants(job: Terminal, tmp_path: Path) -> None:
    checkpoint = synthetic_checkpoint(tmp_path / "checkpoint", total_bytes=1_000_000)
    build = ("build", str(checkpoint), "--to", "oci:images:v1", "--variant", "int8")
    told = job.ok(*build)
    assert "int8: signal to noise" in told
