"""The form that all five notebooks share. What they compute is tested by running them in `test_chain.py`."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from conftest import bare_python, clean

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "notebooks"
EXECUTED = PROJECT / "docs" / "executed"
NAMES = ["01_prepare_data", "02_build_index", "03_finetune", "04_inspect_captions", "05_score_and_submit"]
NBSTRIPOUT = (
    "--keep-id",
    "--extra-keys",
    "metadata.papermill metadata.language_info.version cell.metadata.papermill cell.metadata.execution",
    "--drop-tagged-cells",
    "injected-parameters",
)
# Words that earlier versions of this project used in a sense of their own; style.md has the words of the field.
PRIVATE_WORDS = re.compile(
    r"\b(told|said|says|meant|learnt|taught|held-out|pictures?|places?|lies|stands|goes on|begins anew|surest|paler)\b",
    re.I,
)

every_notebook = pytest.mark.parametrize("name", NAMES)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameter_cells(notebook):
    return [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]


def draws_a_figure(source):
    charts = r"\bfigures\.(?!reading_table|repeated_captions)\w+"
    return (
        re.search(charts + r"|\bgallery\.(image_row|caption_cards|storyboard)|\bIFrame\(", source) is not None
    )


def test_the_folder_contains_five_notebooks():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@every_notebook
def test_notebooks_are_committed_without_outputs(name):
    notebook = read(name)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    assert "papermill" not in notebook.metadata


@every_notebook
def test_nbstripout_finds_nothing_to_remove(name, tmp_path):
    copy = tmp_path / "copy.ipynb"
    copy.write_bytes((FOLDER / f"{name}.ipynb").read_bytes())
    subprocess.run([sys.executable, "-m", "nbstripout", *NBSTRIPOUT, str(copy)], check=True)
    assert nbformat.read(copy, as_version=4) == read(name)


def test_ruff_accepts_all_notebooks():
    for command in (("check",), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(FOLDER)], capture_output=True, text=True, cwd=PROJECT
        )
        assert done.returncode == 0, done.stdout + done.stderr


@every_notebook
def test_the_first_cell_has_title_goal_table_and_links(name):
    first = read(name).cells[0].source
    title, goal = first.split("\n\n")[:2]
    assert title.startswith(f"# {int(name[:2])} · ")
    assert len(re.findall(r"[.!?](?=\s|$)", goal)) == 3, goal
    assert all(f"| **{word}** |" in first for word in ("Needs", "Makes", "Hardware", "Time"))
    number = NAMES.index(name)
    neighbors = NAMES[max(number - 1, 0) : number] + NAMES[number + 1 : number + 2]
    assert all(f"({other}.ipynb)" in first for other in neighbors)


@every_notebook
def test_the_last_cells_list_the_files_that_the_notebook_made(name):
    cells = read(name).cells
    assert cells[-1].cell_type == "markdown"
    assert any(cell.source.startswith("## What you have now") for cell in cells[-3:])


@every_notebook
def test_parameters_are_annotated_literals_with_help(name):
    cells = parameter_cells(read(name))
    assert len(cells) == 1
    lines = cells[0].source.splitlines()
    assert len(lines) <= 15
    for line, statement in zip(lines, ast.parse(cells[0].source).body, strict=True):
        assert isinstance(statement, ast.AnnAssign), line
        ast.literal_eval(statement.value)
        # papermill's help skips a line with a second "=" or with "|" in its annotation.
        assert line.count("=") == 1 and "|" not in line and "  # " in line, line


@every_notebook
def test_papermill_shows_type_and_help_of_every_parameter(name):
    parameters = papermill.inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    assert len(parameters) == len(parameter_cells(read(name))[0].source.splitlines())
    assert all(found["help"] for found in parameters.values())
    assert {found["inferred_type_name"] for found in parameters.values()} <= {"str", "int", "float", "bool"}


@every_notebook
def test_cells_are_short_and_define_nothing(name):
    for cell in code_cells(read(name)):
        assert len(cell.source.splitlines()) <= 15, cell.source
        tree = ast.parse(cell.source)  # a cell magic is not Python and fails here
        assert not any(isinstance(node, (ast.ClassDef, ast.FunctionDef)) for node in ast.walk(tree)), (
            cell.source
        )
        assert ".." not in re.sub(r"\.\.\.", "", cell.source), cell.source


@every_notebook
def test_a_sentence_precedes_every_code_cell_and_follows_every_figure(name):
    cells = read(name).cells
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source
        if before.cell_type == "code" and draws_a_figure(before.source):
            assert not cell.source.startswith("#"), f"explain what this figure shows:\n{before.source}"


@every_notebook
def test_notebooks_use_the_words_of_the_field(name):
    for cell in read(name).cells:
        text = cell.source if cell.cell_type == "markdown" else "\n".join(re.findall(r"#.*", cell.source))
        assert not PRIVATE_WORDS.search(text), PRIVATE_WORDS.findall(text) + [cell.source]


@pytest.mark.parametrize(("contains", "lines"), [("sys.path", 8), ("BEIT3LIB_SOURCE", 15)])
def test_the_cells_that_find_and_install_beit3lib_are_the_same_everywhere(contains, lines):
    finders = {
        name: [cell.source for cell in code_cells(read(name)) if contains in cell.source] for name in NAMES
    }
    assert len({tuple(found) for found in finders.values()}) == 1
    assert all(len(found) == 1 and len(found[0].splitlines()) <= lines for found in finders.values())


@pytest.fixture(scope="module")
def lone_python(tmp_path_factory):
    """A Python with all dependencies and without this project."""
    return bare_python(tmp_path_factory.mktemp("lone") / "python", hidden=())


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository with the files of the working tree that git does not ignore, and its revision."""
    folder = tmp_path_factory.mktemp("repository")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("git does not list the files of this project")
    for name in filter(None, tracked.stdout.split("\0")):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--message", "all"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    )
    return folder, revision.stdout.strip()


def run_lone(python, folder, source):
    """Execute notebook 1 alone in an empty folder."""
    folder.mkdir()
    notebook = shutil.copy(FOLDER / "01_prepare_data.ipynb", folder)
    command = [
        python,
        "-m",
        "papermill",
        "--no-progress-bar",
        "--kernel",
        "python3",
        notebook,
        folder / "out.ipynb",
    ]
    environment = clean(BEIT3LIB_SOURCE=source, PIP_NO_BUILD_ISOLATION="0")
    return subprocess.run(
        [*command, "-p", "max_scenarios", "1"], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["git repository", "wheel", "folder of wheels"])
def test_a_lone_notebook_in_an_empty_folder_installs_the_package(kind, lone_python, repository, tmp_path):
    folder, revision = repository
    source = f"git+{folder.as_uri()}@{revision}"
    if kind != "git repository":
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            tmp_path,
            folder,
        ]
        subprocess.run(command, check=True, capture_output=True)
        (wheel,) = tmp_path.glob("beit3lib-*.whl")
        source = str(wheel if kind == "wheel" else tmp_path)
    subprocess.run(
        [lone_python, "-m", "pip", "uninstall", "--yes", "--quiet", "beit3lib"], check=True, env=clean()
    )
    done = run_lone(lone_python, tmp_path / "empty", source)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "empty" / "runs" / "demo" / "phases.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", ["", "git+https://127.0.0.1:9/nobody/nothing@main"], ids=["no source", "no internet"]
)
def test_a_lone_notebook_without_the_package_ends_with_one_sentence(source, lone_python, tmp_path):
    subprocess.run(
        [lone_python, "-m", "pip", "uninstall", "--yes", "--quiet", "beit3lib"], check=True, env=clean()
    )
    done = run_lone(lone_python, tmp_path / "empty", source)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("SystemExit: ")]
    assert (
        done.returncode
        and f"expected to install beit3lib from {source!r}" in line
        and "`make kaggle`" in line
    )
    assert len(line) < 400


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("01_prepare_data", {"vews": "all"}, ("vews", "views")),
        ("02_build_index", {"tokeniser": "auto"}, ("tokeniser", "tokenizer")),
        ("03_finetune", {"epochs": "many"}, ("epochs",)),
        ("04_inspect_captions", {"num_beams": 0}, ("num_beams",)),
        ("05_score_and_submit", {"split": "valid"}, ("split", "val")),
    ],
)
@pytest.mark.slow
def test_an_unknown_or_invalid_parameter_ends_the_run(name, parameters, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    output = tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as failure:
        papermill.execute_notebook(
            FOLDER / f"{name}.ipynb",
            output,
            parameters,
            kernel_name="python3",
            cwd=tmp_path,
            progress_bar=False,
        )
    assert all(word in failure.value.evalue for word in expected)
    assert list(tmp_path.iterdir()) == [output]


def test_make_badges_writes_address_and_links_once(repository):
    folder, revision = repository
    for name in ("old", "name"):
        command = [sys.executable, folder / ".ci" / "badges.py", f"https://github.com/you/{name}"]
        subprocess.run(command, check=True)
    for name in NAMES:
        cells = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4).cells
        assert sum(f'"git+https://github.com/you/name@{revision}"' in cell.source for cell in cells) == 1
        assert (
            cells[0].source.split("\n")[0].count(f"/notebooks/{name}.ipynb)") == 2
            and "/old/" not in cells[0].source
        )
        assert [cell.id for cell in cells] == [cell.id for cell in read(name).cells]
    text = (folder / "README.md").read_text()
    assert text.count("[![Open in ") == 10 and len(text.splitlines()) == len(
        (PROJECT / "README.md").read_text().splitlines()
    )
    wrong = subprocess.run([*command[:2], "gitlab"], capture_output=True, text=True)
    assert (
        wrong.returncode == 1
        and "REPOSITORY: expected https://github.com/you/name, got 'gitlab'" in wrong.stderr
    )


@every_notebook
def test_executed_copies_have_the_source_of_the_notebooks(name):
    path = EXECUTED / f"{name}.ipynb"
    if not path.is_file():
        pytest.skip(f"{path} does not exist; `make docs` writes it")
    executed = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.source]
    assert executed == [cell.source for cell in read(name).cells]
    assert path.stat().st_size <= 400_000
