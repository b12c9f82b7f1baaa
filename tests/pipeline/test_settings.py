"""`read_parameters` checks the parameters of a notebook, and nothing else in the kernel."""

import pytest

from beit3lib.pipeline.settings import ParameterError, between, choice, optional, read_parameters

CELL = 'run = "demo"  # name of the run\nlr = 1e-4  # learning rate\njobs = 0  # processes\nviews = "all"\nphoto = None'
KINDS = {
    "run": str,
    "lr": float,
    "jobs": between(0, 8),
    "views": choice("all", "main"),
    "photo": optional(str),
}


def kernel(*cells, **values):
    """The variables of a kernel that ran the parameters cell and further cells."""
    return {
        "run": "demo",
        "lr": 1e-4,
        "jobs": 0,
        "views": "all",
        "photo": None,
        "In": ["", CELL, *cells],
        **values,
    }


def test_parameters_keep_their_values():
    assert dict(read_parameters(kernel(), **KINDS)) == {
        "run": "demo",
        "lr": 1e-4,
        "jobs": 0,
        "views": "all",
        "photo": None,
    }


@pytest.mark.parametrize("value, expected", [("1e-4", 1e-4), (1, 1.0), (" 2 ", 2.0)])
def test_a_number_that_yaml_passes_as_text_becomes_a_float(value, expected):
    assert read_parameters(kernel(lr=value), **KINDS).lr == expected


@pytest.mark.parametrize(
    "name, value",
    [
        ("lr", "fast"),
        ("lr", True),
        ("lr", None),
        ("lr", float("nan")),
        ("jobs", -1),
        ("jobs", 9),
        ("jobs", 1.5),
        ("jobs", "3"),
    ]
    + [("jobs", True), ("views", "sideways"), ("views", 1), ("photo", 5), ("run", None)],
)
def test_a_wrong_value_is_named_with_what_was_expected(name, value):
    with pytest.raises(ParameterError, match=rf"^{name}: expected .*, got .* \({type(value).__name__}\)"):
        read_parameters(kernel(**{name: value}), **KINDS)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(ParameterError, match=r"(?s)lr: .*jobs: .*views: "):
        read_parameters(kernel(lr="fast", jobs=-1, views="none"), **KINDS)


def test_a_number_as_the_run_name_suggests_papermills_option_for_text():
    with pytest.raises(ParameterError, match="write `-r run 2026` instead of `-p run 2026`"):
        read_parameters(kernel(run=2026), **KINDS)


@pytest.mark.parametrize(
    "cell", ["# Parameters\nlrr = 1\n", "# Parameters\nlrr = float('inf')\nrun = 'mine'\n"]
)
def test_an_unknown_parameter_from_papermill_is_named_with_the_closest_known_one(cell):
    with pytest.raises(ParameterError, match="lrr: expected a parameter of this notebook.*Did you mean lr?"):
        read_parameters(kernel(cell), **KINDS)


def test_an_unknown_name_in_the_parameters_cell_is_named_with_all_known_ones():
    with pytest.raises(ParameterError, match="other: .*It has run, lr, jobs, views, photo"):
        read_parameters(kernel(f"{CELL}\nother: int | None = None"), **KINDS)


@pytest.mark.parametrize(
    "cell",
    [
        "# Parameters\nPAPERMILL_INPUT_PATH = 'a.ipynb'\nPAPERMILL_OUTPUT_PATH = 'b.ipynb'\n",
        "import sys\n_folders = [1]",
        "%matplotlib inline\nlrr = 1",
        "scratch = 3",
        "for lrr in range(3):\n    pass",
    ],
)
def test_names_of_papermill_and_of_other_cells_are_not_checked(cell):
    assert read_parameters(kernel(cell, startup_variable=3, PAPERMILL_INPUT_PATH="a"), **KINDS).run == "demo"


def test_a_parameters_cell_that_was_not_run_is_an_error():
    with pytest.raises(ParameterError, match="run, lr: expected in the parameters cell"):
        read_parameters({"jobs": 0, "views": "all", "photo": None}, **KINDS)


def test_parameters_are_shown_as_an_escaped_table():
    shown = read_parameters(kernel(run="<b>"), **KINDS)._repr_html_()
    assert "<td>lr</td><td>0.0001</td>" in shown and "&lt;b&gt;" in shown and "<b>" not in shown


@pytest.mark.parametrize(
    "cell, short",
    [
        ("beit3lib.files.read_json('none.json')", True),
        ("beit3lib.files.write_json('a.json', float('nan'))", False),
        ("int('x')", False),
    ],
)
def test_errors_that_the_package_raises_itself_are_one_line_in_a_notebook(
    tmp_path, monkeypatch, capsys, cell, short
):
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.chdir(tmp_path)
    shell = InteractiveShell()
    shell.colors = "nocolor"
    shell.run_cell(
        "import beit3lib.files\nfrom beit3lib.pipeline.settings import shorten_errors\nshorten_errors()"
    )
    result = shell.run_cell(cell)
    shown = capsys.readouterr()
    assert (
        isinstance(result.error_in_exec, (ValueError, OSError))
        and str(result.error_in_exec) in shown.out + shown.err
    )
    assert ("--->" not in shown.out + shown.err) == short
