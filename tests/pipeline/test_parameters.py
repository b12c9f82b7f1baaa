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
    [("lr", "fast"), ("jobs", -1), ("jobs", True), ("views", "sideways"), ("resume", "perhaps")],
)
def test_a_wrong_value_is_named_with_the_expected_one(name, value):
    with pytest.raises(ParameterError, match=rf"^{name}: expected .*, got {value!r}\."):
        stage(**{"run": "demo", name: value})


@pytest.mark.parametrize(
    "cells, corrected",
    [
        ((CELL, "# Parameters\nlrr = 1\n"), "# Parameters\nlr = 1\n"),
        ((CELL, "# Parameters\nrun = 'mine'\nlrr = float('inf')\n"), "# Parameters\nrun = 'mine'\n"),
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
