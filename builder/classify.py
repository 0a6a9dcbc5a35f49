"""Classifies each file of a checkpoint by its path: packed with a role, left out with a reason, or pickle.

Pure. A model server reads safetensors, configuration, tokenizer and the model's own code; a repository contains much
more (other frameworks' weights, training state, pictures) that nodes should not store. Every file left out has a
reason, shown by `--dry-run` and overruled by `--include`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from modelimage.errors import InvalidCheckpoint, InvalidImage
from modelimage.path_rules import RECORD_NAME, check_model_path
from modelimage.record import Role


@dataclass(frozen=True, slots=True)
class Packed:
    """A file to include in the image."""

    role: Role


@dataclass(frozen=True, slots=True)
class Ignored:
    """A file to leave out, and the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Pickle:
    """Weights that execute code when loaded: converted on request, never packed."""


Verdict = Packed | Ignored | Pickle

_TRAINING: Final = (
    "optimizer*", "scheduler*", "rng_state*", "scaler.pt", "trainer_state.json", "training_args.*",
    "events.out.tfevents*", "all_results.json", "train_results.json", "eval_results.json", "zero_to_fp32.py",
)  # fmt: skip
_OTHER_FRAMEWORKS: Final = (
    "*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel",
    "*.npz", "*.nemo", "*.engine", "*.ckpt.*", "openvino_model.*", "*.mlpackage", "*.llamafile",
)  # fmt: skip
# torch's formats, all of which are pickles.
_PICKLE: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_PICKLE_INDEX: Final = ("*.bin.index.json", "*.bin.index.*.json")
_TOKENIZER: Final = (
    "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "sentencepiece*.model", "*.bpe.model", "tekken.json", "*.tiktoken", "chat_template*", "*.jinja", "bpe.codes",
)  # fmt: skip
_DOCS: Final = (
    "*.md", "*.txt", "*.rst", "*.pdf", "license*", "licence*", "notice*", "copying*", "use_policy*",
)  # fmt: skip
_CONFIG: Final = ("*.json", "*.yaml", "*.yml", "*.toml", "*.cfg", "*.ini")
_MEDIA: Final = (
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.mp4", "*.mov", "*.wav", "*.mp3", "*.ipynb",
)  # fmt: skip
_FOLDERS: Final = {
    "original": "the publisher's original copy of the same weights",
    "onnx": "weights of another framework",
    "openvino": "weights of another framework",
    "coreml": "weights of another framework",
    "gguf": "weights of another framework",
    "runs": "training state",
    "__pycache__": "compiled Python",
}
_WEIGHTS: Final = "*.safetensors"
# Mistral and Meta publish weights in their own format under this name, beside the same weights for transformers.
_CONSOLIDATED: Final = "consolidated*.safetensors"


def classify(path: str) -> Verdict:
    """Classify one path, relative to the checkpoint's root."""
    *folders, name = path.lower().split("/")
    # First of all rules: .git and download caches repeat the weights under other names.
    if any(part.startswith(".") for part in (*folders, name)):
        return Ignored("hidden")
    if path == RECORD_NAME:
        return Ignored("the record of the image it was unpacked from")
    for folder in folders:
        if folder in _FOLDERS:
            return Ignored(_FOLDERS[folder])
    return _by_name(name)


def _by_name(name: str) -> Verdict:
    # The first match wins, so narrow patterns come first: tokenizer files and training state are also *.json or *.pt.
    rules: tuple[tuple[Sequence[str], Verdict], ...] = (
        ((_WEIGHTS,), Packed(Role.WEIGHT)),
        (_TRAINING, Ignored("training state")),
        (_PICKLE_INDEX, Ignored("index of pickle weights")),
        (_OTHER_FRAMEWORKS, Ignored("weights of another framework")),
        (_TOKENIZER, Packed(Role.TOKENIZER)),
        (_PICKLE, Pickle()),
        (_DOCS, Packed(Role.DOC)),
        (("*.py",), Packed(Role.CODE)),
        (_CONFIG, Packed(Role.CONFIG)),
        (_MEDIA, Ignored("picture, sound or notebook, which no model server reads")),
    )
    for patterns, verdict in rules:
        if _matches(name, patterns):
            return verdict
    return Ignored("a file type that no model server reads; --include packs it")


@dataclass(frozen=True, slots=True)
class Classification:
    """The classification of a whole checkpoint: roles by path, reasons by path, pickles to convert. All sorted."""

    roles: dict[str, Role]
    ignored: dict[str, str]
    pickles: tuple[str, ...]

    @property
    def weights(self) -> list[str]:
        return [path for path, role in self.roles.items() if role is Role.WEIGHT]

    def without(self, dropped: Iterable[str], reason: str) -> Classification:
        """A copy with more files left out, for a reason found later."""
        gone = set(dropped)
        roles = {path: role for path, role in self.roles.items() if path not in gone}
        return Classification(roles, self.ignored, self.pickles).also_ignored(
            dict.fromkeys(gone, reason)
        )

    def also_ignored(self, reasons: Mapping[str, str]) -> Classification:
        """A copy with the files that the source itself left out."""
        return Classification(
            self.roles, dict(sorted({**self.ignored, **reasons}.items())), self.pickles
        )


def select(
    paths: Iterable[str], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Classification:
    """Classify all paths of a checkpoint together.

    A path that matches `exclude` is left out; one that matches `include` is packed even if its name alone would leave
    it out (except pickle weights). If there are safetensors, pickles and the publisher's consolidated copy are
    duplicates.
    Raises InvalidCheckpoint for a path that an image can't contain.
    """
    roles: dict[str, Role] = {}
    ignored: dict[str, str] = {}
    pickles: list[str] = []
    for path in sorted(paths):
        verdict = _choose(path, include, exclude)
        match verdict:
            case Packed(role):
                roles[_checked(path)] = role
            case Ignored(reason):
                ignored[path] = reason
            case Pickle():
                pickles.append(path)
    return _drop_copies(Classification(roles, ignored, tuple(pickles)))


def _choose(path: str, include: Sequence[str], exclude: Sequence[str]) -> Verdict:
    if _glob(path, exclude):
        return Ignored("matches --exclude")
    verdict = classify(path)
    if isinstance(verdict, Ignored) and _glob(path, include) and path != RECORD_NAME:
        forced = _by_name(_name(path).lower())
        # Files that match no rule get the role of the model's own code, which is the same for all variants.
        return Packed(Role.CODE) if isinstance(forced, Ignored) else forced
    return verdict


def _drop_copies(selection: Classification) -> Classification:
    weights = selection.weights
    # Consolidated files are copies only beside others; alone they are the weights.
    own = [path for path in weights if not _matches(_name(path).lower(), [_CONSOLIDATED])]
    if own and len(own) < len(weights):
        copies = set(weights) - set(own)
        selection = selection.without(copies, "the publisher's original copy of the same weights")
    # Pickles beside safetensors are the same weights again.
    if weights and selection.pickles:
        reasons = dict.fromkeys(selection.pickles, "pickle; the safetensors files are packed")
        selection = Classification(selection.roles, selection.ignored, ()).also_ignored(reasons)
    return selection


def _checked(path: str) -> str:
    try:
        return check_model_path(path)
    except InvalidImage as error:
        raise InvalidCheckpoint(error.message, hint=error.hint) from error


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _glob(path: str, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(path, pattern) or fnmatchcase(_name(path), pattern) for pattern in patterns
    )
