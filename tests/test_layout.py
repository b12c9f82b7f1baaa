"""Imports of the package point down only, and its data and scoring parts load no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "beit3lib"
CORE = "config device tokenizer transforms question dataset model loss decode captioner checkpoint"
# Each may import those before it.
ORDER = f"files data track2 {CORE} run train viz media caption sample pipeline".split()


def modules():
    """{dotted name below beit3lib: path} of every module."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path):
    """Dotted names below beit3lib that a module imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = modules()
    dotted = {name.removeprefix("beit3lib.") for name in names if name.startswith("beit3lib.")}
    found = {name if name in known else name.rpartition(".")[0] for name in dotted}
    return {name for name in found if name}


def test_every_module_belongs_to_a_room_in_the_order():
    assert {name.split(".")[0] for name in modules() if name} == set(ORDER)


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_imports_point_down(name):
    rank = ORDER.index(name.split(".")[0])
    upward = [other for other in imports(modules()[name]) if ORDER.index(other.split(".")[0]) > rank]
    assert not upward, f"{name} imports {upward}, which come after it"


def test_data_and_scores_need_neither_torch_nor_transformers():
    names = [f"beit3lib.{name}" for name in modules() if name.split(".")[0] in ("files", "data", "track2")]
    code = f"import sys, {', '.join(names)}; print({{'torch', 'transformers'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
