"""What a file is for, judged by its name, where the image doesn't say. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

from modelimage.record import Role

# The first that matches decides.
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
    """The role of a file; what no rule knows is for people."""
    name = path.rpartition("/")[2].lower()
    for role, patterns in _RULES:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return role
    return Role.DOC
