"""The GGUF file that a Workspace names, of an image that has several quantizations of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.gguf import gguf_choices
from modelimage.record import ModelFacts
from workspace.servable import Servable, ServableFile

# Quantizations that an error lists.
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class OneQuantization:
    """A model with the files of one quantization only. The key is still that of all: nodes hold the whole image."""

    key: Digest
    variant: str
    facts: ModelFacts
    files: Sequence[ServableFile]


def of_file(record: Servable, name: str | None) -> Servable:
    """The model of which the quantization with the file `name` is served; None: as it is. Raises InvalidInput.

    The quantizations of a model differ in their weights' size alone: context and cache are those of its architecture.
    """
    if name is None:
        return record
    sizes = {file.path: file.size for file in record.files}
    choices = gguf_choices(sizes)
    chosen = next((each for each in choices if name in each), None)
    if chosen is None:
        first = ", ".join(each[0] for each in choices[:_SHOWN])
        raise InvalidInput(
            f"spec.model.file is {name}, which is no GGUF file of the image",
            hint=f"It has {first}{' and others' * (len(choices) > _SHOWN)}."
            if choices
            else "Its weights aren't GGUF; remove spec.model.file.",
        )
    # The nodes hold every quantization; memory is needed for the chosen one, in place of the one that the record
    # assumes.
    others = {path for each in choices if each != chosen for path in each}
    usual = sum(sizes[path] for path in choices[0])
    more = sum(sizes[path] for path in chosen) - usual
    facts = replace(
        record.facts,
        weight_bytes=record.facts.weight_bytes + more,
        gpu_memory_bytes=record.facts.gpu_memory_bytes + more,
    )
    kept = [file for file in record.files if file.path not in others]
    return OneQuantization(record.key, record.variant, facts, kept)
