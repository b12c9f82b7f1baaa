"""Executed notebooks for docs/."""

import nbformat
import pytest

from benchmarks import pictures


@pytest.fixture
def docs(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "DOCS", tmp_path / "docs")
    return tmp_path / "docs"


def executed_notebook(folder, *texts):
    cell = nbformat.v4.new_code_cell(
        "print(1)  # a cell", metadata={"papermill": {"duration": 1.0}, "tags": ["parameters"]}
    )
    cell.outputs = [
        nbformat.v4.new_output("stream", text=text) for text in texts
    ]  # one for each flush, as papermill saves
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"duration": 2.0}})
    folder.mkdir()
    nbformat.write(notebook, folder / "01_prepare_data.ipynb")


def test_copies_of_notebooks_have_no_progress_bars_paths_or_times(docs, tmp_path):
    executed_notebook(tmp_path / "run", "10%", "\r50%", "\r100%", f"\nsaved to {tmp_path}/runs/demo\n")
    pictures.copy_notebooks(tmp_path / "run")
    copy = nbformat.read(docs / "executed" / "01_prepare_data.ipynb", as_version=4)
    assert "papermill" not in copy.metadata and copy.cells[0].metadata == {"tags": ["parameters"]}
    assert copy.cells[0].source == "print(1)  # a cell"
    assert [output.text for output in copy.cells[0].outputs] == ["100%\nsaved to runs/demo\n"]
