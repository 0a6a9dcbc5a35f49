"""Memory stays flat however large a tensor is, as the kernel counts it for a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelimage.safetensors import build_header
from quantize.schemes import Format, Scheme
from tests.quantize import checkpoints

CHILD = """
import sys
from pathlib import Path
from quantize.quantizer import QuantizeOptions, quantize_checkpoint
from quantize.schemes import QuantizationEngine, Format, Scheme

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

anonymous = 0
def sample(done, total):
    global anonymous
    anonymous = max(anonymous, status("RssAnon"))

scheme, format_ = Scheme(sys.argv[3]), Format(sys.argv[4])
options = QuantizeOptions(scheme, format=format_, engine=QuantizationEngine.RTN)
quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), options, sample)
print(anonymous // 1000, status("VmHWM") // 1000)
"""
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "scheme", "format_"),
    [
        ("model.layers.0.mlp.down_proj.weight", (24576, 24576), Scheme.INT4, Format.PACK_QUANTIZED),
        ("model.layers.0.mlp.down_proj.weight", (24576, 24576), Scheme.INT8, Format.INT_QUANTIZED),
        ("model.layers.0.mlp.down_proj.weight", (24576, 24576), Scheme.INT4, Format.GPTQ),
        (
            "model.layers.0.mlp.experts.down_proj",
            (16, 8192, 5120),
            Scheme.INT4,
            Format.PACK_QUANTIZED,
        ),
    ],
)
def test_a_tensor_above_a_gigabyte(
    tmp_path: Path, name: str, shape: tuple[int, ...], scheme: Scheme, format_: Format
) -> None:
    source = tmp_path / "src"
    source.mkdir()
    config = dict(checkpoints.llama().config) | {"hidden_size": 5120}
    (source / "config.json").write_text(json.dumps(config))
    header = build_header({name: ("BF16", shape)}, {})
    size = 2
    for length in shape:
        size *= length
    assert size > 1 << 30
    with (source / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)  # a file of holes: zeros that take no disk
    command = [sys.executable, "-c", CHILD, source, tmp_path / "out", scheme.value, format_.value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    anonymous, resident = map(int, done.stdout.split())
    assert anonymous < 300
    assert resident < 600
