"""The form of all five notebooks, and a notebook alone. `test_chain.py` runs one after the other."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from conftest import bare_python, clean

from beit3lib.pipeline import scoring, stages

PROJECT = Path(__file__).parents[2]
FOLDER, EXECUTED = PROJECT / "notebooks", PROJECT / "docs" / "executed"
NAMES = ["01_prepare_data", "02_build_index", "03_finetune", "04_inspect_captions", "05_score_and_submit"]
KEYS = "metadata.papermill metadata.language_info.version cell.metadata.papermill cell.metadata.execution"
NBSTRIPOUT = ["--keep-id", "--extra-keys", KEYS, "--drop-tagged-cells", "injected-parameters"]

every_notebook = pytest.mark.parametrize("name", NAMES)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name, tag=None):
    """The code cells of a notebook, or those with a tag."""
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    return [cell for cell in cells if tag is None or tag in cell.metadata.get("tags", [])]


def assigned(source):
    """Names that a cell assigns."""
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


def test_ruff_and_nbstripout_find_nothing_to_change(tmp_path):
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    for command in (("check",), ("format", "--check")):
        subprocess.run([sys.executable, "-m", "ruff", *command, FOLDER], check=True, cwd=PROJECT)
    for name in NAMES:
        copy = shutil.copy(FOLDER / f"{name}.ipynb", tmp_path)
        subprocess.run([sys.executable, "-m", "nbstripout", *NBSTRIPOUT, copy], check=True)
        assert nbformat.read(copy, as_version=4) == read(name)
        assert read(name).metadata.kernelspec.name == "python3"


@every_notebook
def test_the_first_cell_has_title_goal_and_table_and_the_last_the_files(name):
    cells = read(name).cells
    title, goal = cells[0].source.split("\n\n")[:2]
    assert title.startswith(f"# {int(name[:2])} · ") and len(re.findall(r"[.!?](?=\s|$)", goal)) == 3, goal
    assert all(f"| **{word}** |" in cells[0].source for word in ("Needs", "Makes", "Hardware", "Time"))
    assert cells[-1].source.startswith("## What you have now")


@every_notebook
def test_papermill_shows_a_line_of_help_for_every_parameter(name):
    (cell,) = code(name, "parameters")
    lines = cell.source.splitlines()
    assert len(lines) <= 16 and read(name).cells[2] == cell
    for line, statement in zip(lines, ast.parse(cell.source).body, strict=True):
        ast.literal_eval(statement.value)
        # papermill's help skips a line with a second "=" or with "|" in its annotation.
        assert re.fullmatch(r"\w+: \w+ = [^=|]+  # [^=]+", line) and len(line) <= 110, line
    found = papermill.inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    assert len(found) == len(lines) and all(parameter["help"] for parameter in found.values())


@every_notebook
def test_the_check_of_parameters_knows_exactly_those_of_the_parameters_cell(name):
    """The names are those of the stage's annotated parameters, and of values that only the notebook uses."""
    known, sources = set(), "\n".join(cell.source for cell in code(name))
    (call,) = [
        node
        for node in ast.walk(ast.parse(sources))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("check_parameters")
    ]
    for argument in call.args[1:]:
        if isinstance(argument, ast.Attribute):
            module = scoring if ast.unparse(argument.value) == "scoring" else stages
            known |= set(inspect.signature(getattr(module, argument.attr)).parameters) - {"options"}
        elif isinstance(argument, ast.List):
            known |= set(ast.literal_eval(argument))
        else:
            known |= set(re.findall(r'"(\w+)": \1', sources))  # chosen = {"lr": lr, …}
    assert known == assigned(code(name, "parameters")[0].source)


def test_no_cell_changes_a_parameter_of_any_notebook():
    """Otherwise a cell could not be run twice, nor two notebooks in one kernel."""
    parameters = set().union(*(assigned(code(name, "parameters")[0].source) for name in NAMES))
    for name in NAMES:
        for cell in code(name):
            assert "parameters" in cell.metadata.get("tags", []) or not assigned(cell.source) & parameters, (
                cell.source
            )


def test_one_folded_cell_finds_or_installs_the_package_in_the_same_way_everywhere():
    cells = [cell for name in NAMES for cell in code(name, "setup")]
    assert len(cells) == 5 and len({(cell.source, str(cell.metadata)) for cell in cells}) == 1
    assert len(cells[0].source.splitlines()) <= 15 and all(
        read(name).cells[4].source == cells[0].source for name in NAMES
    )
    assert cells[0].metadata["jupyter"] == {"source_hidden": True} and cells[0].metadata["_kg_hide-input"]


@every_notebook
def test_cells_are_short_explained_and_define_nothing(name):
    cells = read(name).cells
    for before, cell in zip(cells, cells[1:], strict=False):
        text = cell.source
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and len(text.splitlines()) <= 16, text
            assert max(map(len, text.splitlines())) <= 110, text
            tree = ast.parse(text)  # a cell magic is not Python and fails here
            assert not any(isinstance(node, (ast.ClassDef, ast.FunctionDef)) for node in ast.walk(tree)), text
        shows = r"\bfigures\.(?!reading_table|repeated)|\bgallery\.(image_row|caption_cards|storyboard)"
        shows += r"|\bgallery_frame\("
        if before.cell_type == "code" and re.search(shows, before.source):
            assert not cell.source.startswith("#"), f"explain what this figure shows:\n{before.source}"


@pytest.fixture(scope="module")
def lone_python(tmp_path_factory):
    """A Python with all dependencies and without this project."""
    return bare_python(tmp_path_factory.mktemp("lone") / "python", hidden=())


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository with the files of the working tree that git does not ignore, and its revision."""
    folder = tmp_path_factory.mktemp("repository")

    def git(*arguments, cwd=folder):
        done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True)
        return done.stdout.strip("\0\n")

    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=PROJECT).split("\0"):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    git("init"), git("add", "--all")
    git("-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--message", "all")
    if not (revision := git("rev-parse", "HEAD")):
        pytest.skip("git does not list the files of this project")
    return folder, revision


def run_lone(python, folder, source):
    """Execute notebook 1 alone in an empty folder, with a Python from which the package is removed first."""
    subprocess.run(
        [python, "-m", "pip", "uninstall", "--yes", "--quiet", "beit3lib"], check=True, env=clean()
    )
    folder.mkdir()
    notebook = shutil.copy(FOLDER / "01_prepare_data.ipynb", folder)
    command = [python, *"-m papermill --kernel python3 -p max_scenarios 1".split()]
    command += [notebook, folder / "out.ipynb"]
    environment = clean(BEIT3LIB_SOURCE=source, PIP_NO_BUILD_ISOLATION="0")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


LONG = {"marks": pytest.mark.long}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param("git repository", **LONG), pytest.param("wheel", **LONG), "folder of wheels"]
)
def test_a_lone_notebook_in_an_empty_folder_installs_the_package(kind, lone_python, repository, tmp_path):
    folder, revision = repository
    source = f"git+{folder.as_uri()}@{revision}"
    if kind != "git repository":
        options = "-m pip wheel --no-deps --no-build-isolation --wheel-dir".split()
        subprocess.run([sys.executable, *options, tmp_path, folder], check=True, capture_output=True)
        source = str(next(tmp_path.glob("beit3lib-*.whl")) if kind == "wheel" else tmp_path)
    done = run_lone(lone_python, tmp_path / "empty", source)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "empty" / "runs" / "demo" / "phases.csv").is_file()
    found = subprocess.run(
        [lone_python, "-c", "import beit3lib; print(beit3lib.__path__[0])"], capture_output=True, text=True
    )
    package, installed = PROJECT / "beit3lib", Path(found.stdout.strip())
    files = [path.relative_to(package) for path in package.rglob("*.[!p]*") if path.is_file()]
    assert [name for name in files if not (installed / name).is_file()] == []


@pytest.mark.slow
def test_a_lone_notebook_without_the_package_ends_with_the_reason(lone_python, tmp_path):
    done = run_lone(lone_python, tmp_path / "empty", "")
    assert done.returncode and "set BEIT3LIB_SOURCE as described above" in done.stderr, done.stderr
    assert not (tmp_path / "empty" / "runs").exists()


@every_notebook
def test_executed_copies_have_the_source_of_the_notebooks(name):
    path = EXECUTED / f"{name}.ipynb"
    executed = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.source]
    assert executed == [cell.source for cell in read(name).cells] and path.stat().st_size <= 400_000, (
        "run `make docs`"
    )
