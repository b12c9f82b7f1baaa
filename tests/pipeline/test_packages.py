"""`prepare_host` installs what is missing or too old, and nothing else."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from beit3lib.pipeline import packages

ROOT = Path(__file__).parents[2]
STANDARD = set(sys.stdlib_module_names) | {"beit3lib"}
MODULES = {  # import names that are not the name of their package
    **{"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "sklearn": "scikit-learn"},
    **{"rouge_score": "rouge-score"},
}
OPTIONAL = {"papermill", "IPython", "ipywidgets"}  # only where notebooks run


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder with a requirements.txt of its own, and the pip commands that were run."""
    (tmp_path / "requirements.txt").write_text("# comment\nfirst>=2  # why\nsecond>=1.5\njupyter>=1\n")
    commands, versions = [], {"first": "2.0.1", "second": "1.5", "torchscale": "0.3.0", "fairscale": "0.4.0"}
    monkeypatch.setattr(packages, "BESIDE", tmp_path)
    monkeypatch.setattr(
        packages.metadata, "version", lambda name: versions[name] if name in versions else missing(name)
    )
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command[3:]) or done)
    return tmp_path, versions, commands


def missing(name):
    raise metadata.PackageNotFoundError(name)


def wheel(folder, name="second-2-py3-none-any.whl"):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as file:
        file.writestr("second.py", "")
    return folder


def test_every_imported_package_is_in_requirements_txt():
    names = {Requirement(line).name for line in packages.requirements()}
    imported = set()
    for path in (ROOT / "beit3lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {module.split(".")[0] for module in modules}
    assert {MODULES.get(name, name) for name in imported - STANDARD} - OPTIONAL <= names


def test_requirements_are_lower_bounds():
    bounded = [
        Requirement(line) for line in packages.requirements() if line not in packages.WITHOUT_DEPENDENCIES
    ]
    assert len(bounded) > 15 and all(re.fullmatch(r">=[\d.]+", str(each.specifier)) for each in bounded)


def test_constraints_satisfy_the_requirements():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if found := re.match(r"([\w.-]+)==([\w.+]+)", line):
            pins.setdefault(found[1].lower(), []).append(found[2])
    for line in packages.requirements():
        each = Requirement(line)
        if line not in packages.WITHOUT_DEPENDENCIES:
            assert pins[each.name] and all(each.specifier.contains(version) for version in pins[each.name]), (
                line
            )


def test_nothing_is_missing_here():
    assert packages.missing_packages() == [] and packages.install_missing() == []


def test_satisfied_requirements_install_nothing(beside):
    assert packages.missing_packages() == []
    packages.prepare_host()
    assert beside[2] == []


@pytest.mark.parametrize("version", [None, "1.4.9"])
def test_only_the_missing_or_old_package_is_installed(beside, version):
    folder, versions, commands = beside
    versions.pop("second") if version is None else versions.update(second=version)
    assert packages.install_missing() == ["second>=1.5"]
    assert commands == [["install", "second>=1.5", "--quiet"]]


def test_a_package_that_provides_the_same_module_is_enough(beside):
    folder, versions, commands = beside
    (folder / "requirements.txt").write_text("opencv-python-headless>=4.10\n")
    versions["opencv-python"] = "4.12.0"
    assert packages.missing_packages() == []


def test_torchscale_and_fairscale_are_installed_without_their_dependencies(beside):
    folder, versions, commands = beside
    versions.pop("fairscale"), versions.pop("second"), wheel(folder / "wheels")
    assert packages.install_missing() == ["second>=1.5", "fairscale==0.4.0"]
    source = ["--no-index", "--find-links", str(folder / "wheels")]
    assert commands[0] == ["install", *source, "second>=1.5", "--quiet"]
    assert commands[1] == ["install", "--no-deps", *source, "fairscale==0.4.0", "--quiet"]


def test_constraints_apply_to_packages_from_the_index(beside):
    folder, versions, commands = beside
    (folder / "constraints.txt").write_text("second==1.7\n")
    versions.pop("second")
    packages.install_missing()
    assert commands == [
        ["install", "--constraint", str(folder / "constraints.txt"), "second>=1.5", "--quiet"]
    ]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut"])
def test_an_empty_or_cut_wheel_is_refused_by_name(beside, content):
    folder, versions, commands = beside
    wheel(folder / "wheels")
    (folder / "wheels" / "av-1-py3-none-any.whl").write_bytes(content)
    versions.pop("second")
    with pytest.raises(RuntimeError, match="empty or cut files: av-1-py3-none-any.whl"):
        packages.install_missing()
    assert commands == []


def test_a_version_that_is_too_old_is_kept_if_there_is_no_wheel_of_it(beside, capsys):
    folder, versions, commands = beside
    wheel(folder / "wheels")
    versions["first"] = "1.0"
    assert packages.install_missing() == [] and commands == []
    assert "kept, although older than tested: first>=2 (found 1.0)" in capsys.readouterr().out


def test_packages_are_installed_automatically_on_kaggle_and_colab_only(beside, monkeypatch, tmp_path):
    folder, versions, commands = beside
    versions.pop("second")
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path / "none"))
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    with pytest.raises(RuntimeError, match="expected second>=1.5.*Run `pip install -r requirements.txt`"):
        packages.prepare_host()
    (tmp_path / "none").mkdir()
    packages.prepare_host()
    assert len(commands) == 1


def test_a_failing_pip_is_an_error_with_its_last_lines(beside, monkeypatch):
    folder, versions, _ = beside
    versions.pop("second")
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: failed)
    with pytest.raises(RuntimeError, match="no matching distribution"):
        packages.install_missing()


@pytest.mark.slow
def test_a_built_wheel_contains_everything_that_a_lone_notebook_needs(tmp_path):
    for name in (
        "beit3lib",
        "pyproject.toml",
        "requirements.txt",
        "README.md",
        "LICENSE",
        "data_manifest.yaml",
    ):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copyfile(
            source, tmp_path / name
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        tmp_path,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = tmp_path.glob("beit3lib-*.whl")
    names = zipfile.ZipFile(built).namelist()
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "beit3lib").rglob("*") if path.is_file()]
    assert {name for name in files if "__pycache__" not in name} <= set(names)
    assert any(name.endswith("share/beit3lib/data_manifest.yaml") for name in names)
