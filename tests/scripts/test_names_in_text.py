"""Names of modules in docstrings, comments and pages are those of modules that there are."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_TRACKED = subprocess.run(
    ["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
_FILES = {
    ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__"): ROOT / name
    for name in _TRACKED
    if name.endswith(".py")
}
_PRODUCT = {"modelimage", "quantize", "builder", "cache_agent", "workspace", "weightyard"}
_DOTTED = re.compile(r"`([a-z_]+(?:\.[A-Za-z_]\w*)+)(?:\(\))?`")
# Tags that a model version in MLflow's registry gets.
_TAG = re.compile(r"weightyard\.(image|variants|quality|deployment)\b")
_ROW = re.compile(r"^ {4}([a-z_]+) {2,}\S", re.MULTILINE)


def is_there(name: str) -> bool:
    """Whether a dotted name is a module's, or of something that a module's source names."""
    module = name
    rest: list[str] = []
    while module not in _FILES:
        module, _, last = module.rpartition(".")
        rest.append(last)
        if not module:
            return False
    return set(rest) <= set(re.findall(r"\w+", _FILES[module].read_text()))


@pytest.mark.parametrize("name", ["workspace.fit", "modelimage.errors.WeightyardError"])
def test_names_are_found(name: str) -> None:
    assert is_there(name)
    assert not is_there(f"{name}s")


def test_dotted_names_are_of_modules_that_there_are() -> None:
    wrong = {
        f"{file}: {name}"
        for file in _TRACKED
        for name in _DOTTED.findall((ROOT / file).read_text())
        if name.partition(".")[0] in _PRODUCT
        and not re.search(r"\.(py|json|dev)$", name)
        and not _TAG.match(name)
        if not is_there(name)
    }
    assert not wrong


def test_a_packages_table_lists_its_modules() -> None:
    tables = 0
    for package, file in _FILES.items():
        if file.name != "__init__.py":
            continue
        named = set(_ROW.findall(ast.get_docstring(ast.parse(file.read_text())) or ""))
        modules = {each.rpartition(".")[2] for each in _FILES if each.rpartition(".")[0] == package}
        # A table of something else, such as threads, names no module at all.
        if named & modules:
            tables += 1
            assert named <= modules, package
    assert tables >= 2
