"""Converts pickle weights to safetensors without executing them.

torch's `weights_only` unpickler builds only tensors and plain containers; versions before 2.6 allowed code execution
(CVE-2025-32434) and are refused. Each file is converted separately and atomically, so an interrupted conversion
continues with the next file.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelimage import canonical
from modelimage.checkpoint_files import INDEX, index_document, read_header
from modelimage.durable import pending_file, write_file, writing
from modelimage.errors import InvalidCheckpoint, InvalidInput, UnsafePickle
from modelimage.installation import install_command
from modelimage.safetensors import build_header
from modelimage.weight_names import parse_weight_name

if TYPE_CHECKING:
    import torch

OLDEST_TORCH: Final = (2, 6)
_NESTED: Final = ("state_dict", "model_state_dict", "model", "module")
_HUB_NAME = re.compile(r"pytorch_model(.*)\.bin")
_UNREADABLE = (RuntimeError, ValueError, KeyError, EOFError, AttributeError, TypeError, IndexError)


def converted_name(path: str) -> str:
    """`pytorch_model-00001-of-00002.bin` -> `model-00001-of-00002.safetensors`, `x/y.pt` -> `x/y.safetensors`."""
    folder, slash, name = path.rpartition("/")
    match = _HUB_NAME.fullmatch(name)
    stem = f"model{match[1]}" if match else name.rpartition(".")[0]
    return f"{folder}{slash}{stem}.safetensors"


def converted_names(paths: tuple[str, ...]) -> dict[str, str]:
    """The new name of each file. Raises InvalidCheckpoint if two files would get the same name."""
    sources: dict[str, str] = {}
    for path in paths:
        first = sources.setdefault(converted_name(path), path)
        if first != path:
            raise InvalidCheckpoint(
                f"{first} and {path} would both become {converted_name(path)}",
                hint="Leave one out with --exclude.",
            )
    return {path: name for name, path in sources.items()}


def converted_indexes(made: Iterable[str], weights: Iterable[str]) -> dict[str, list[str]]:
    """The indexes to write for converted files, each with its shards: one where a folder has several and no others.

    Shards of one set give the index their name, as in `diffusion_pytorch_model.safetensors.index.json`.
    """
    taken = {path.rpartition("/")[0] for path in weights}
    folders: dict[str, list[str]] = {}
    for name in made:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    found = {}
    for folder, shards in folders.items():
        # One file needs no index, and beside weights of the publisher's own an index would hide those.
        if len(shards) < 2 or folder in taken:
            continue
        bases = {parse_weight_name(shard).base for shard in shards}
        own = f"{next(iter(bases))}.safetensors.index.json" if len(bases) == 1 else INDEX
        found[f"{folder}/{own}" if folder else own] = shards
    return found


def convert(source: Path, target: Path, *, name: str, tied: bool) -> None:
    """Write the tensors of the pickle `source` to the safetensors file `target`.

    `name` is for messages; `tied`: whether the config ties the output layer to the embeddings, in which case a second
    copy is left out. Raises UnsafePickle if the file contains more than tensors, InvalidCheckpoint, NoSpace.
    """
    tensors = _without_tied(_load(source, name), tied=tied)
    # Large elements first keeps every tensor aligned to its element size, although they are stored without gaps.
    ordered = sorted(tensors, key=lambda each: (-tensors[each].element_size(), each))
    layout = {each: (_dtype(tensors[each], name), tuple(tensors[each].shape)) for each in ordered}
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with pending_file(target.parent) as pending:
            # transformers refuses a file whose metadata doesn't name the framework.
            pending.write(build_header(layout, {"format": "pt"}))
            for each in ordered:
                for piece in _pieces(tensors[each]):
                    pending.write(piece)
            pending.publish(target)


def write_index(folder: Path, name: str, shards: list[str]) -> None:
    """Write the index `name` of several converted shards beside them, as in checkpoints on the Hub."""
    document = index_document(
        {shard.rpartition("/")[2]: read_header(folder / shard) for shard in shards}
    )
    with writing(folder / name):
        write_file(folder / name, canonical.to_bytes(document))


def check_torch() -> None:
    """Raise InvalidInput if this torch doesn't load pickles safely; ModuleNotFoundError if there is none."""
    import torch  # noqa: PLC0415 - an optional extra, and two seconds to import

    # Before the file is opened: older versions can execute its code even with `weights_only`.
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise InvalidInput(
            f"torch {torch.__version__} doesn't load pickles safely (CVE-2025-32434)",
            hint=f"Run: {install_command('convert')} --upgrade",
        )


def _load(source: Path, name: str) -> dict[str, torch.Tensor]:
    check_torch()
    try:
        loaded = _torch_load(source)
    # What `weights_only` refuses to build may be an attack: never loaded another way.
    except pickle.UnpicklingError as error:
        raise UnsafePickle(
            f"{name} holds more than tensors, so it can't be converted safely",
            hint="Ask its publisher for safetensors.",
        ) from error
    except _UNREADABLE as error:
        reason = str(error).split("\n", 1)[0][:200]
        raise InvalidCheckpoint(
            f"{name} isn't a readable torch file: {reason}", hint="Download the checkpoint again."
        ) from error
    return _state_dict(loaded, name)


def _torch_load(source: Path) -> Any:
    import torch  # noqa: PLC0415 - as above

    try:
        # Mapped: of a file larger than the memory, each tensor is read when it is written.
        return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    # Files written before torch 1.6 can't be mapped.
    return torch.load(source, map_location="cpu", weights_only=True)


def _state_dict(loaded: Any, name: str) -> dict[str, torch.Tensor]:
    import torch  # noqa: PLC0415 - as above

    # Training frameworks wrap the state dict, sometimes more than once.
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise InvalidCheckpoint(f"{name} holds no tensors by name")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InvalidCheckpoint(
                f"{name} holds {key!r:.80}, which is {type(value).__name__} and not a tensor",
                hint="Leave it out with --exclude if it isn't the model's weights.",
            )
    return dict(loaded)


def _without_tied(tensors: dict[str, torch.Tensor], *, tied: bool) -> dict[str, torch.Tensor]:
    """Remove the output layer if it is the embeddings again, as transformers does when saving.

    Any other tensor that shares memory is written once for each of its names, which is always correct.
    """
    head = tensors.get("lm_head.weight")
    if not tied or head is None:
        return tensors
    # Shared memory shows that it is the same tensor; equal values would not.
    shared = any(
        name != "lm_head.weight"
        and (tensor.data_ptr(), tensor.shape) == (head.data_ptr(), head.shape)
        for name, tensor in tensors.items()
    )
    return {k: v for k, v in tensors.items() if k != "lm_head.weight"} if shared else tensors


def _dtype(tensor: torch.Tensor, name: str) -> str:
    import torch  # noqa: PLC0415 - as above

    names = {
        torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
        torch.int8: "I8", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
        torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    }  # fmt: skip
    if tensor.layout is not torch.strided or tensor.dtype not in names:
        raise InvalidCheckpoint(
            f"{name} holds a tensor that safetensors can't: {tensor.dtype}, {tensor.layout}"
        )
    return names[tensor.dtype]


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield the tensor's bytes in row-major order, at most 64 MiB at a time."""
    import torch  # noqa: PLC0415 - as above

    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), 64 << 20):
        yield flat[start : start + (64 << 20)].numpy().data
