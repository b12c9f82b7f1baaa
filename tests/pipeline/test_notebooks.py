"""The form that all notebooks share. What they do is tested by executing them (`test_chain.py`)."""

import ast
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ["01_prepare_data", "02_build_index", "03_finetune", "04_inspect_captions", "05_score_and_submit"]


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook):
    return [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]


def test_there_are_five_notebooks():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_without_outputs(name):
    notebook = read(name)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert "papermill" not in notebook.metadata


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_has_title_table_and_links(name):
    first = read(name).cells[0].source
    assert first.startswith(f"# {int(name[:2])} · ")
    assert all(f"**{word}**" in first for word in ("Needs", "Makes", "Hardware", "Time"))
    number = NAMES.index(name)
    neighbors = NAMES[max(number - 1, 0) : number] + NAMES[number + 1 : number + 2]
    assert all(f"({other}.ipynb)" in first for other in neighbors)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_plain_literals_with_help(name):
    cells = tagged(read(name))
    assert len(cells) == 1
    lines = cells[0].source.splitlines()
    assert len(lines) <= 15
    for line, statement in zip(lines, ast.parse(cells[0].source).body, strict=True):
        assert isinstance(statement, (ast.Assign, ast.AnnAssign)), line
        ast.literal_eval(statement.value)
        assert line.count("=") == 1 and "|" not in line and "  # " in line, line


@pytest.mark.parametrize("name", NAMES)
def test_papermill_reads_help_for_every_parameter(name):
    from papermill import inspect_notebook

    found = inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    assert len(found) == len(tagged(read(name))[0].source.splitlines()) and all(p["help"] for p in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_define_nothing(name):
    for cell in code(read(name)):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 20, cell.source
        tree = ast.parse(cell.source)  # fails on magics
        assert not any(isinstance(node, (ast.ClassDef, ast.FunctionDef)) for node in ast.walk(tree)), cell.source


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_is_before_every_cell(name):
    cells = read(name).cells
    for before, cell in zip(cells, cells[1:], strict=False):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown", cell.source


def test_the_cell_that_finds_beit3lib_is_the_same_everywhere():
    finders = {name: [cell.source for cell in code(read(name)) if "sys.path" in cell.source] for name in NAMES}
    assert len({tuple(found) for found in finders.values()}) == 1
    assert all(len(found) == 1 and "BEIT3LIB_KAGGLE_INPUT" in found[0] for found in finders.values())
