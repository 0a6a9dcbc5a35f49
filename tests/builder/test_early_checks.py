"""What can't work fails before a weight is fetched: first what can't be made at all, then what is missing here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from builder.build import BuildOptions, BuildTools, build
from builder.destination import open_destination
from builder.digest_cache import DigestCache
from builder.sources.interface import Advance, SourceFile
from builder.sources.local import LocalSource
from builder.variants import EvaluationChoices, QuantizeChoices
from modelimage.access import Access
from modelimage.errors import InvalidInput, WeightyardError
from modelimage.reference import LayoutReference
from quantize.errors import (
    AlreadyQuantized,
    EngineMissing,
    IncompatibleOptions,
    UnsupportedArchitecture,
)
from tests.builder.checkpoints import CONFIG, single, write
from tests.builder.reports import Remembering


class FarSource(LocalSource):
    """A source whose weights must not be fetched."""

    @property
    def is_local(self) -> bool:
        return False

    def fetch(self, file: SourceFile, advance: Advance) -> Path:
        assert not file.path.endswith((".safetensors", ".bin")), f"{file.path} was fetched"
        return super().fetch(file, advance)


def attempt(directory: Path, options: BuildOptions, config: Mapping[str, object] = CONFIG) -> None:
    source = write(single(directory / "m"), {"config.json": json.dumps(config).encode()})
    tools = BuildTools(DigestCache(directory / "digests"), directory / "work", Remembering())
    target = LayoutReference(directory / "out", "v1")
    build(FarSource(source), open_destination(target, Access()), options, tools)


GPT2 = {**CONFIG, "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
AWQ = {**CONFIG, "quantization_config": {"quant_method": "awq", "bits": 4}}
MISSING = QuantizeChoices(engine="llm-compressor")


@pytest.mark.parametrize(
    ("variants", "choices", "config", "expected"),
    [
        (("int4", "int8"), QuantizeChoices(engine="gptq"), CONFIG, IncompatibleOptions),
        (("int8",), MISSING, GPT2, UnsupportedArchitecture),
        (("int8",), MISSING, AWQ, AlreadyQuantized),
        (("int8",), MISSING, CONFIG, EngineMissing),
    ],
    ids=["engine of another scheme", "architecture", "already quantized", "engine missing"],
)
def test_a_variant_that_fails_fails_before_a_fetch(
    tmp_path: Path,
    variants: tuple[str, ...],
    choices: QuantizeChoices,
    config: Mapping[str, object],
    expected: type[WeightyardError],
) -> None:
    with pytest.raises(expected):
        attempt(tmp_path, BuildOptions(("bf16", *variants), quantize=choices), config)


def test_a_missing_evaluator_is_missed_before_a_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    choices = QuantizeChoices(engine="rtn", evaluation=EvaluationChoices())
    with pytest.raises(EngineMissing):
        attempt(tmp_path, BuildOptions(("bf16", "int8"), quantize=choices))


def test_a_missing_torch_is_missed_before_a_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    write(tmp_path / "m", {"2_Dense/pytorch_model.bin": b"x"})
    with pytest.raises(ModuleNotFoundError):
        attempt(tmp_path, BuildOptions(convert_pickle=True))


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("--engine", QuantizeChoices(engine="rtn")),
        ("--calibration", QuantizeChoices(calibration=Path("text.txt"))),
        ("--calibration-samples", QuantizeChoices(calibration_samples=3)),
        ("--evaluate", QuantizeChoices(evaluation=EvaluationChoices())),
        ("--group-size", QuantizeChoices(group_size=64)),
    ],
)
def test_an_option_that_changes_nothing_is_refused(
    tmp_path: Path, option: str, choices: QuantizeChoices
) -> None:
    variants = ("bf16", "int8") if option == "--group-size" else ("bf16",)
    with pytest.raises(InvalidInput, match=f"{option} has no effect") as caught:
        attempt(tmp_path, BuildOptions(variants=variants, quantize=choices))
    assert option in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["ghcr.io/team/m", "localhost:5000/m", "10.0.0.1:443/team/m"])
def test_a_directory_named_like_a_repository_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = single(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    tools = BuildTools(DigestCache(tmp_path / "digests"), tmp_path / "work", Remembering())
    target = open_destination(LayoutReference(Path(name), "v1"), Access())
    with pytest.raises(InvalidInput) as caught:
        build(LocalSource(source), target, BuildOptions(), tools)
    assert f"oci://{name}" in (caught.value.hint or "")
    assert not Path(name).exists()
    Path(name).mkdir(parents=True)
    build(LocalSource(source), target, BuildOptions(), tools)
    assert Path(name, "index.json").is_file()
