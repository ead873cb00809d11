"""Data flows one way: each module imports only from those above it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mergekern"
ABOVE_TO_BELOW = """
errors version sizes lazily dtypes ambient collector huge arrays _C _cuda cdtypes kernels
elementary function fused angles geometry spec methods recipe packed
checkpoint report columns plan naming tied tokenizer layers options roles outputs informed fitting
planner remembered lock card bar progress done
pieces tiles backends systems solutions
keys counting doubts sampling walking speculation trimming variance survey
statistics pools onepass spill arena machine crew scratch budget table units extents cargo stream
coverage sources shared unifying
journal blockfile output destination findings settling trialpass batches member run
engine small into inmemory folders staging jobs flags terminal container many dropin api
collect evaluate suite lab manual cli
"""
ORDER = ABOVE_TO_BELOW.split()
FILES = sorted(ROOT.rglob("*.py"))
LONGEST = 300


def module_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> set[str]:
    """The parts of mergekern that a file imports when it runs."""
    typing_only = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    ]
    skipped = {id(n) for block in typing_only for n in ast.walk(block)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        package, *rest = node.module.split(".")
        if package == "mergekern":
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        return
    above = ORDER[: ORDER.index(module) + 1]
    wrong = {name for name in imports(ast.parse(path.read_text())) if name not in above}
    assert not wrong, f"{module} imports from below: {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_kernels_know_no_framework() -> None:
    for path in (ROOT.parent / "csrc").rglob("*"):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh") and "bindings" not in path.name:
            text = path.read_text()
            assert "torch/" not in text and "pybind11" not in text and "Python.h" not in text
