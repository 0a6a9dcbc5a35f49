"""What the demonstration compares: files copied the plain way against a pull, and the variants of one image.

Both ways read from this machine's disk, so the seconds compare work, not networks. The plain way is what a pod does
whose volume is new: copy every file, check none, and do it again the next time.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from builder.quality_report import published_quality
from modelimage.access import Access, open_reader
from modelimage.cpus import cpu_refusal, local_cpu_flags
from modelimage.errors import NotFound, UnknownVariant
from modelimage.reference import parse_image
from modelimage.resolve import resolve_model
from quantize.calibration import load_evaluation
from weightyard.cli import weightyard
from weightyard.console import Console
from weightyard.demo.chart import FetchBar, VariantBar

VARIANTS: Final = ("bf16", "int8", "int4")
ENGINE: Final = "vllm"
_WORDS: Final = 160  # of the evaluation text: enough for a picture, and seconds instead of minutes
Clock = Callable[[], float]


def copy_plainly(
    source: Path, target: Path, name: str, clock: Clock = time.perf_counter
) -> FetchBar:
    """Copies the checkpoint into a new directory and removes it again."""
    shutil.rmtree(target, ignore_errors=True)
    started = clock()
    shutil.copytree(source, target)
    seconds = clock() - started
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    shutil.rmtree(target)
    return FetchBar(name, size, seconds, 0)


def pull(
    image: str, root: Path, name: str, console: Console, clock: Clock = time.perf_counter
) -> FetchBar:
    """Pulls an image as the command does; what it fetched, and how many digests of files and chunks that checked."""
    started = clock()
    done = _result("pull", image, "--root", str(root), console=console)
    seconds = clock() - started
    fetched = int(done["fetched"])
    return FetchBar(name, fetched, seconds, _digests(Path(done["path"])) if fetched else 0)


def _digests(directory: Path) -> int:
    """The digests in a model's record: one for each file, one for each chunk."""
    files = json.loads((directory / "weightyard.json").read_bytes())["files"]
    return sum(1 + len(file["blake3"]) for file in files)


def _result(*arguments: str, console: Console) -> dict[str, Any]:
    """A command's result as a document; its progress goes where the demonstration's does."""
    out = io.StringIO()
    quiet = Console(out=out, err=console.err)
    quiet.configure(json=True, quiet=True)
    weightyard.main(args=list(arguments), prog_name="weightyard", standalone_mode=False, obj=quiet)
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def measured_variants(image: str) -> list[VariantBar]:
    """The variants of an image that was built here, each with what its build measured. Raises NotFound."""
    reference = parse_image(image)
    reader = open_reader(reference, Access())
    flags, found = local_cpu_flags(), []
    for name in VARIANTS:
        model = resolve_model(reader, image.rpartition(":")[2], name)
        quality = published_quality(reader, model)
        compared = quality.comparison if quality else None
        ratios = (compared.perplexity_ratio, compared.top1_agreement) if compared else None
        refused = cpu_refusal(ENGINE, name, flags)
        found.append(
            VariantBar(
                name,
                model.record.facts.weight_bytes,
                # The others are compared with this one, and it is never compared with itself.
                (1.0, 1.0) if name == VARIANTS[0] else ratios,
                refused or "",
            )
        )
    return found


def is_built(image: str) -> bool:
    """Whether an earlier run left the image with all its variants."""
    try:
        measured_variants(image)
    except (NotFound, UnknownVariant):
        return False
    return True


def evaluation_text(path: Path) -> Path:
    """Writes the beginning of the shipped evaluation text, so that measuring takes seconds."""
    words = " ".join(load_evaluation().samples).split()[:_WORDS]
    path.write_text(" ".join(words) + "\n")
    return path
