"""Measures how the product's code reads to a newcomer: repeated names, comments, sizes. Prints one line for each.

python scripts/measure_house.py
"""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("modelimage", "quantize", "builder", "cache_agent", "workspace", "weightyard")


def modules() -> list[Path]:
    """Every module of the product, `__init__` included."""
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def class_names(paths: list[Path]) -> Counter[str]:
    """How often each class name is defined."""
    trees = (ast.parse(path.read_text()) for path in paths)
    return Counter(n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef))


def file_names(paths: list[Path]) -> Counter[str]:
    """How often each file name is used, those that Python itself gives a meaning left out."""
    return Counter(path.name for path in paths if not path.name.startswith("__"))


def comment_lines(path: Path) -> tuple[int, int, int]:
    """Lines that hold a comment and nothing else, lines that hold code, and lines of docstrings, which are neither."""
    comments, code = 0, set[int]()
    text = path.read_text()
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments += token.line.lstrip().startswith("#")
        elif token.type not in skipped:
            code.update(range(token.start[0], token.end[0] + 1))
    docstrings = docstring_lines(ast.parse(text))
    return comments, len(code - docstrings), len(docstrings)


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines of a module's docstrings: strings that stand alone as a statement."""
    alone = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    strings = (
        each for each in alone if isinstance(each, ast.Constant) and isinstance(each.value, str)
    )
    return {
        line
        for each in strings
        for line in range(each.lineno, (each.end_lineno or each.lineno) + 1)
    }


def function_lengths(paths: list[Path]) -> Iterator[int]:
    """Lines of each function."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.end_lineno or node.lineno) - node.lineno + 1


def main() -> None:
    """Print the measurements."""
    paths = modules()
    classes, files = class_names(paths), file_names(paths)
    counted = [comment_lines(path) for path in paths]
    comments, code, docstrings = (sum(column) for column in zip(*counted, strict=True))
    lengths = sorted(function_lengths(paths))
    sizes = sorted(len(path.read_text().splitlines()) for path in paths)
    loose = [path for path in (ROOT / "cache_agent").glob("*.py") if path.name != "__init__.py"]
    rows = {
        "modules; lines": f"{len(paths)}; {sum(sizes)}",
        "module lines, median and longest": f"{statistics.median(sizes):g}; {sizes[-1]}",
        "function lines, median and longest": f"{statistics.median(lengths):g}; {lengths[-1]}",
        "class names defined more than once": sum(count > 1 for count in classes.values()),
        "file names used more than once": sum(count > 1 for count in files.values()),
        "modules that end in -ing": sum(path.stem.endswith("ing") for path in paths),
        "comment lines per code line": f"{comments / code:.1%}",
        "docstring lines per code line": f"{docstrings / code:.1%}",
        "loose modules in cache_agent": len(loose),
    }
    for name, value in rows.items():
        print(f"{name:38} {value}")


if __name__ == "__main__":
    main()
