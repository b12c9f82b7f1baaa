"""Wrong values and names of parameters are named; everything else in the kernel is left alone."""

from typing import Literal

import pytest
from IPython.core.interactiveshell import InteractiveShell

from beit3lib.pipeline.parameters import ParameterError, Whole, checked

CELL = 'run: str = "demo"  # name of the run\nlr: float = 1e-4  # learning rate\njobs: int = 0  # processes'
OTHER = 'run: str = "demo"  # name of the run\nphoto: str = ""  # path'
CHECK = "check_parameters(globals(), stage)"


@checked
def stage(
    run: str,
    lr: float = 1e-4,
    jobs: Whole = 0,
    views: Literal["all", "main"] = "all",
    resume: bool | None = None,
):
    return run, lr, jobs, views, resume


@pytest.fixture
def execute():
    """A function that executes cells as a kernel does and returns the error of the last one."""
    shell = InteractiveShell.instance(colors="nocolor")
    shell.user_ns["stage"] = stage
    shell.run_cell("from beit3lib.pipeline.parameters import check_parameters", store_history=True)
    yield lambda *cells: [shell.run_cell(cell, store_history=True).error_in_exec for cell in cells][-1]
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("lr, expected", [("1e-4", 1e-4), (1, 1.0), (" 2 ", 2.0)])
def test_text_of_a_number_becomes_a_float(lr, expected):
    assert stage("demo", lr) == ("demo", expected, 0, "all", None)


@pytest.mark.parametrize(
    "name, value",
    [("lr", "fast"), ("lr", None), ("jobs", -1), ("jobs", 1.5), ("jobs", "3"), ("jobs", True)]
    + [("views", "sideways"), ("views", 1), ("run", None), ("resume", "perhaps")],
)
def test_a_wrong_value_is_named_with_the_expected_one(name, value):
    with pytest.raises(ParameterError, match=rf"^{name}: expected .*, got {value!r}\."):
        stage(**{"run": "demo", name: value})


def test_all_wrong_arguments_are_named_at_once():
    message = r"(?s)^lr: .*\njobs: .*\nviews: expected 'all' or 'main'.*\nviewz: .* Did you mean views\?"
    with pytest.raises(ParameterError, match=message):
        stage("demo", "fast", -1, views="none", viewz="all")
    with pytest.raises(ParameterError, match="write `-r run 2026` instead of `-p run 2026`"):
        stage(2026)


@pytest.mark.parametrize(
    "cells, corrected",
    [
        ((CELL, "# Parameters\nlrr = 1\n"), "# Parameters\nlr = 1\n"),
        ((CELL, "# Parameters\nrun = 'mine'\nlrr = float('inf')\n"), "# Parameters\nrun = 'mine'\n"),
        ((CELL.replace("lr:", "lrr:"),), CELL),
        ((f"{CELL}\nlrr = 3",), CELL),
    ],
)
def test_a_misspelled_name_is_an_error_until_it_is_corrected(execute, cells, corrected):
    for error in (execute(*cells, CHECK), execute(CHECK)):
        assert isinstance(error, ParameterError)
        assert str(error).startswith("lrr: ") and "Did you mean lr?" in str(error)
    assert execute(corrected, CHECK) is None


def test_notebooks_in_one_kernel_do_not_refuse_the_parameters_of_each_other(execute):
    error = execute(CELL, "# Parameters\nphoto = ''\n", CHECK)
    assert "It has run, lr, jobs, views, resume." in str(error)
    assert execute(OTHER, "# Parameters\nphoto = 'a.jpg'\n", CELL, CHECK) is None
    assert execute(OTHER, "check_parameters(globals(), ['run', 'photo'])") is None


@pytest.mark.parametrize(
    "cell", ["# Parameters\nPAPERMILL_INPUT_PATH = 'a.ipynb'\n", "import sys\nlrr = 1", "for lrr in []: pass"]
)
def test_names_of_papermill_and_of_other_cells_are_not_checked(execute, cell):
    assert execute(CELL, cell, CHECK) is None


@pytest.mark.parametrize(
    "cell, short",
    [
        ("files.read_json('none.json')", True),
        ("files.write_json('a', float('nan'))", False),
        ("int('x')", False),
    ],
)
def test_errors_that_the_package_raises_itself_are_one_line(
    execute, tmp_path, monkeypatch, capsys, cell, short
):
    monkeypatch.chdir(tmp_path)
    error = execute(CELL, CHECK, "from beit3lib import files", cell)
    shown = "".join(capsys.readouterr())
    assert str(error) in shown and ("--->" not in shown) == short
