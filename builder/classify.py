"""Classifies each file of a checkpoint by its path: packed with a role, left out with a reason, or pickle.

Pure. A model server reads safetensors, configuration, tokenizer and the model's own code; a repository contains much
more (other frameworks' weights, training state, pictures) that nodes should not store. Every file left out has a
reason, shown by `--dry-run` and overruled by `--include`.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from builder.copies import copies
from modelimage.errors import InvalidCheckpoint, InvalidImage
from modelimage.path_rules import RECORD_NAME, check_model_path, parents
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

# Not `scheduler*`: diffusers' scheduler_config.json is configuration.
_TRAINING: Final = (
    "optimizer*.pt", "optimizer*.bin", "optimizer*.pth", "optimizer*.safetensors", "scheduler*.pt", "scheduler*.bin",
    "rng_state*", "random_states*", "scaler.pt", "trainer_state.json", "training_args.*", "*_optim_states.pt",
    "mp_rank_*", "zero_pp_rank_*", "events.out.tfevents*", "all_results.json", "train_results.json",
    "eval_results.json", "zero_to_fp32.py",
)  # fmt: skip
_OTHER_FRAMEWORKS: Final = (
    "*.gguf", "*.ggml", "ggml-*.bin", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data*", "*.onnx.data*",
    "*.tflite", "*.mlmodel", "*.nemo", "*.engine", "*.ckpt.*", "openvino*.bin", "openvino*.xml", "*.llamafile", "*.pb",
)  # fmt: skip
# torch's formats, all of which are pickles.
_PICKLE: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_PICKLE_INDEXES: Final = ("*.bin.index.json", "*.bin.index.*.json")
# SentencePiece's models have any name: spiece.model, spm.model, ice_text.model, source.spm.
_TOKENIZER: Final = (
    "tokenizer*", "*.tokenizer", "vocab.*", "merges*.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "*.spm", "tekken*.json", "*.tiktoken", "*tiktoken*", "chat_template*", "*.jinja", "*.bpe", "*.codes", "*.vocab",
)  # fmt: skip
# After pickles, because these names could be theirs.
_VOCABULARY: Final = ("*vocab*", "dict*.txt", "bpe*")
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
    "metal": "weights of another framework",
    "gguf": "weights of another framework",
    "runs": "training state",
    "__pycache__": "compiled Python",
}
# Folders of programs that name them after a step or a format.
_FOLDER_PATTERNS: Final = {
    **dict.fromkeys(
        (
            "checkpoint[-_]*",
            "ckpt[-_][0-9]*",
            "step[-_][0-9]*",
            "epoch[-_][0-9]*",
            "iter[-_][0-9]*",
        ),
        "a checkpoint of the training run",
    ),
    "global_step[0-9]*": "training state",
    "*.mlpackage": "weights of another framework",
    "*.mlmodelc": "weights of another framework",
}
_WEIGHTS: Final = "*.safetensors"
# CTranslate2 gives its weights the name of a pickle, and writes the vocabularies beside them.
_CTRANSLATE2: Final = "model.bin"
_CTRANSLATE2_VOCABULARIES: Final = tuple(
    f"{kind}vocabulary.{suffix}" for kind in ("", "shared_", "source_", "target_") for suffix in ("json", "txt")
)  # fmt: skip
OTHER_FRAMEWORK: Final = "weights of another framework"
HIDDEN: Final = "hidden"
PICKLE_INDEX: Final = "index of pickle weights"
UNKNOWN: Final = "a file type that no model server reads; --include packs it"


def classify(path: str) -> Verdict:
    """Classify one path, relative to the checkpoint's root."""
    *folders, name = path.lower().split("/")
    # First of all rules: .git and download caches repeat the weights under other names.
    if any(part.startswith(".") for part in (*folders, name)):
        return Ignored(HIDDEN)
    if path == RECORD_NAME:
        return Ignored("the record of the image it was unpacked from")
    for folder in folders:
        if folder in _FOLDERS:
            return Ignored(_FOLDERS[folder])
        for pattern, reason in _FOLDER_PATTERNS.items():
            if fnmatchcase(folder, pattern):
                return Ignored(reason)
    return _by_name(name)


def _by_name(name: str) -> Verdict:
    # The first match wins, so narrow patterns come first: tokenizer files and training state are also *.json or *.pt.
    rules: tuple[tuple[Sequence[str], Verdict], ...] = (
        (_TRAINING, Ignored("training state")),
        (("*.py",), Packed(Role.CODE)),
        ((_WEIGHTS,), Packed(Role.WEIGHT)),
        (_PICKLE_INDEXES, Ignored(PICKLE_INDEX)),
        (_OTHER_FRAMEWORKS, Ignored(OTHER_FRAMEWORK)),
        (_TOKENIZER, Packed(Role.TOKENIZER)),
        (_PICKLE, Pickle()),
        (_VOCABULARY, Packed(Role.TOKENIZER)),
        (_DOCS, Packed(Role.DOC)),
        (_CONFIG, Packed(Role.CONFIG)),
        (_MEDIA, Ignored("picture, sound or notebook, which no model server reads")),
    )
    for patterns, verdict in rules:
        if _matches(name, patterns):
            return verdict
    return Ignored(UNKNOWN)


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
        return self.also_ignored(dict.fromkeys(dropped, reason))

    def also_ignored(self, reasons: Mapping[str, str]) -> Classification:
        """A copy with more files left out, each with its reason."""
        return Classification(
            {path: role for path, role in self.roles.items() if path not in reasons},
            dict(sorted({**self.ignored, **reasons}.items())),
            tuple(path for path in self.pickles if path not in reasons),
        )

    def also_packed(self, roles: Mapping[str, Role]) -> Classification:
        """A copy with files packed that their names alone left out."""
        return Classification(
            dict(sorted({**self.roles, **roles}.items())),
            {path: reason for path, reason in self.ignored.items() if path not in roles},
            self.pickles,
        )


def select(
    paths: Iterable[str], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Classification:
    """Classify all paths of a checkpoint together.

    A path that matches `exclude` is left out; one that matches `include` is packed even if its name alone would leave
    it out; a pickle only if `include` has its exact path or name. Copies of safetensors in the same folder are left
    out.
    Raises InvalidCheckpoint for a path that an image can't contain.
    """
    roles: dict[str, Role] = {}
    ignored: dict[str, str] = {}
    pickles: list[str] = []
    known = frozenset(paths)
    for path in sorted(known):
        verdict = _choose(path, include, exclude)
        if isinstance(verdict, Pickle) and _is_ctranslate2(path, known):
            verdict = Ignored(OTHER_FRAMEWORK)
        match verdict:
            case Packed(role):
                roles[path] = role
            case Ignored(reason):
                ignored[path] = reason
            case Pickle():
                pickles.append(path)
    selection = Classification(roles, ignored, tuple(pickles))
    # Once all are known: whether a file is a copy depends on what else is in its folder.
    others = [path for path, role in roles.items() if role is not Role.WEIGHT]
    selection = selection.also_ignored(copies(selection.weights, selection.pickles, others))
    check_paths((*selection.roles, *selection.pickles))
    return selection


def _is_ctranslate2(path: str, paths: Collection[str]) -> bool:
    folder, slash, name = path.rpartition("/")
    beside = (f"{folder}{slash}{each}" for each in _CTRANSLATE2_VOCABULARIES)
    return name == _CTRANSLATE2 and any(each in paths for each in beside)


def _choose(path: str, include: Sequence[str], exclude: Sequence[str]) -> Verdict:
    if _glob(path, exclude):
        return Ignored("matches --exclude")
    verdict = classify(path)
    # A pickle runs code in a program that loads it carelessly, so no pattern packs one.
    if isinstance(verdict, Pickle) and not {path, _name(path)}.isdisjoint(include):
        return Packed(Role.CODE)
    if isinstance(verdict, Ignored) and _glob(path, include) and path != RECORD_NAME:
        forced = _by_name(_name(path).lower())
        # Files that match no rule get the role of the model's own code, which is the same for all variants.
        return Packed(Role.CODE) if isinstance(forced, Ignored) else forced
    return verdict


def check_paths(paths: Sequence[str]) -> None:
    """Raise InvalidCheckpoint for a path that an image can't contain, with the option that leaves it out."""
    folders = {parent: path for path in paths for parent in parents(path)}
    for path in paths:
        try:
            check_model_path(path)
        except InvalidImage as error:
            raise InvalidCheckpoint(error.message, hint=_way_out(path)) from error
        # Object stores have no folders, so there a key may be both.
        if path in folders:
            raise InvalidCheckpoint(
                f"{path!r} is a file and also the folder of {folders[path]!r}", hint=_way_out(path)
            )


def _way_out(path: str) -> str:
    """The options that leave out one path. Control characters, which can't be typed, match a `?`."""
    pattern = "".join(
        f"[{letter}]" if letter in "*?[" else letter if letter.isprintable() else "?"
        for letter in path
    )
    return f"Rename it at the source, or leave it out: --exclude {shlex.quote(pattern)}"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _glob(path: str, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(path, pattern) or fnmatchcase(_name(path), pattern) for pattern in patterns
    )
