"""The role of a file, determined by its name if the image doesn't state it. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

from modelimage.record import Role

# The first match wins.
_RULES: Final = (
    (Role.WEIGHT, (
        "*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.onnx", "*.onnx_data", "*.ckpt", "*.h5", "*.msgpack",
        "*.dduf", "*.mmproj", "*.npz", "*.pkl", "*.tflite",
    )),
    (Role.TOKENIZER, (
        "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken",
        "chat_template*", "*.jinja",
    )),
    (Role.CODE, ("*.py", "*.sh", "*.ipynb")),
    (Role.CONFIG, ("*.json", "*.yaml", "*.yml", "*.toml")),
)  # fmt: skip


def role_of(path: str) -> Role:
    """The role of a file; files that match no rule are documentation."""
    name = path.rpartition("/")[2].lower()
    for role, patterns in _RULES:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return role
    return Role.DOC
