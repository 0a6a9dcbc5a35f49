"""The paths allowed in a model image. Pure string checks.

An image is unpacked on other people's nodes, so a path that leaves its directory, or that two systems would interpret
differently, is refused both when the image is built and when it is read.
"""

from __future__ import annotations

from modelimage.errors import InvalidImage

RECORD_NAME = "weightyard.json"
# The path where KServe's modelcars expect the model: a link to the root of the image.
MODELS_LINK = "models"
_MAX_PATH = 1024
# NAME_MAX of all common Linux filesystems.
_MAX_NAME = 255


def check_path(path: str) -> str:
    """Return a relative, normalized POSIX path unchanged. Raises InvalidImage for any other."""
    parts = path.split("/")
    # Empty parts, "." and ".." give one path several spellings; backslashes and control characters have other
    # meanings on other systems; lone surrogates can't be written as UTF-8.
    if (
        not path
        or _too_long(path, _MAX_PATH)
        or any(part in ("", ".", "..") or _too_long(part, _MAX_NAME) for part in parts)
        or any(
            ord(letter) < 32 or letter in "\\\x7f" or "\ud800" <= letter <= "\udfff"
            for letter in path
        )
    ):
        raise InvalidImage(
            f"unsafe path in a model image: {path[:200]!r}",
            hint="Paths are relative, have no '..', no backslash and no control characters.",
        )
    return path


def check_model_path(path: str) -> str:
    """Like `check_path`, but also refuses the names reserved by the image format."""
    check_path(path)
    if path.split("/", 1)[0] in (RECORD_NAME, MODELS_LINK):
        raise InvalidImage(
            f"the path {path!r} is reserved in a model image",
            hint=f"Rename it: {RECORD_NAME} and {MODELS_LINK}/ belong to the image format.",
        )
    return path


def parents(path: str) -> list[str]:
    """The parent directories of a path, outermost first: a/b/c -> [a, a/b]."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _too_long(text: str, limit: int) -> bool:
    return len(text.encode("utf-8", "surrogatepass")) > limit
