"""What each file of a checkpoint is for, judged by its path: packed in a role, left out with a reason, or pickle.

Pure. A model server reads safetensors, configuration, tokenizer and the model's own code; a repository holds much
beside that (other frameworks' weights, training state, pictures) which no node should carry. What is left out is
left out with a reason that `--dry-run` shows, and `--include` overrules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from modelimage.errors import InvalidCheckpoint, InvalidImage
from modelimage.paths import RECORD_NAME, check_model_path
from modelimage.record import Role


@dataclass(frozen=True, slots=True)
class Packed:
    """A file that goes into the image."""

    role: Role


@dataclass(frozen=True, slots=True)
class Ignored:
    """A file that stays out, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Pickle:
    """Weights that run code when they are loaded: converted on request, never packed."""


Verdict = Packed | Ignored | Pickle

_TRAINING: Final = (
    "optimizer*", "scheduler*", "rng_state*", "scaler.pt", "trainer_state.json", "training_args.*",
    "events.out.tfevents*", "all_results.json", "train_results.json", "eval_results.json", "zero_to_fp32.py",
)  # fmt: skip
_OTHER_FRAMEWORKS: Final = (
    "*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel",
    "*.npz", "*.nemo", "*.engine", "*.ckpt.*", "openvino_model.*", "*.mlpackage", "*.llamafile",
)  # fmt: skip
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
_CONSOLIDATED: Final = "consolidated*.safetensors"


def classify(path: str) -> Verdict:
    """The verdict on one path, relative to the checkpoint's root."""
    *folders, name = path.lower().split("/")
    if any(part.startswith(".") for part in (*folders, name)):
        return Ignored("hidden")
    if path == RECORD_NAME:
        return Ignored("the record of the image it was unpacked from")
    for folder in folders:
        if folder in _FOLDERS:
            return Ignored(_FOLDERS[folder])
    return _by_name(name)


def _by_name(name: str) -> Verdict:
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
        (_MEDIA, Ignored("picture, sound or notebook: nothing that a model server reads")),
    )
    for patterns, verdict in rules:
        if _matches(name, patterns):
            return verdict
    return Ignored("not a kind of file that a model server reads; --include packs it")


@dataclass(frozen=True, slots=True)
class Selection:
    """The verdicts on a whole checkpoint: roles by path, reasons by path, pickle weights to convert. All sorted."""

    roles: dict[str, Role]
    ignored: dict[str, str]
    pickles: tuple[str, ...]

    @property
    def weights(self) -> list[str]:
        return [path for path, role in self.roles.items() if role is Role.WEIGHT]

    def without(self, dropped: Iterable[str], reason: str) -> Selection:
        """The same with some files left out for a reason found later."""
        gone = set(dropped)
        roles = {path: role for path, role in self.roles.items() if path not in gone}
        return Selection(roles, self.ignored, self.pickles).also_ignored(
            dict.fromkeys(gone, reason)
        )

    def also_ignored(self, reasons: Mapping[str, str]) -> Selection:
        """The same with what a source left out itself."""
        return Selection(
            self.roles, dict(sorted({**self.ignored, **reasons}.items())), self.pickles
        )


def select(
    paths: Iterable[str], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Selection:
    """Judge all paths of a checkpoint together.

    A path that matches `exclude` stays out; one that matches `include` is packed where its name alone would leave it
    out (but pickle weights never are). Beside safetensors, pickles and a publisher's consolidated copy are duplicates.
    Raises InvalidCheckpoint for a path that an image can't hold.
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
    return _drop_copies(Selection(roles, ignored, tuple(pickles)))


def _choose(path: str, include: Sequence[str], exclude: Sequence[str]) -> Verdict:
    if _glob(path, exclude):
        return Ignored("matches --exclude")
    verdict = classify(path)
    if isinstance(verdict, Ignored) and _glob(path, include) and path != RECORD_NAME:
        forced = _by_name(_name(path).lower())
        # What no rule knows is for the model's own code, which is the same for all variants.
        return Packed(Role.CODE) if isinstance(forced, Ignored) else forced
    return verdict


def _drop_copies(selection: Selection) -> Selection:
    weights = selection.weights
    own = [path for path in weights if not _matches(_name(path).lower(), [_CONSOLIDATED])]
    if own and len(own) < len(weights):
        copies = set(weights) - set(own)
        selection = selection.without(copies, "the publisher's original copy of the same weights")
    if weights and selection.pickles:
        reasons = dict.fromkeys(selection.pickles, "pickle; the safetensors files are packed")
        selection = Selection(selection.roles, selection.ignored, ()).also_ignored(reasons)
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
