"""`prepare_host` installs what is missing or too old, and nothing else."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from beit3lib.pipeline import packages

ROOT = Path(__file__).parents[2]
PACKAGE_OF = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}
OTHERS = {"beit3lib", "papermill", "IPython", "pillow_heif"}  # Jupyter installs IPython; HEIC is optional


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Versions of seemingly installed packages beside a requirements.txt, and the pip commands that ran."""
    (tmp_path / "requirements.txt").write_text("# comment\nfirst>=2  # why\nsecond>=1.5\njupyter>=1\n")
    versions = {"first": "2.0.1", "second": "1.5", "torchscale": "0.3.0", "fairscale": "0.4.0"}
    host = SimpleNamespace(folder=tmp_path, versions=versions, commands=[], status=0)

    def run(command, **_):
        host.commands.append([str(part) for part in command[3:]])
        return SimpleNamespace(returncode=host.status)

    def distributions(name):
        return [SimpleNamespace(version=versions[name])] if name in versions else []

    monkeypatch.setattr(packages, "BESIDE", tmp_path)
    monkeypatch.setattr(packages.metadata, "distributions", distributions)
    monkeypatch.setattr(subprocess, "run", run)
    return host


def test_every_imported_package_is_in_requirements_txt():
    names = {Requirement(line).name for line in packages.requirements()}
    imported = set()
    for path in (ROOT / "beit3lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {module.split(".")[0] for module in modules}
    imported -= OTHERS | set(sys.stdlib_module_names)
    assert {PACKAGE_OF.get(name, name.replace("_", "-")) for name in imported} <= names
    assert "tensorboard" in names, "the published command has --log_dir"


@pytest.mark.parametrize("version", [None, "1.4.9"])
def test_only_the_missing_or_old_package_is_installed_with_the_constraints(host, version):
    (host.folder / "requirements.txt").write_text("second>=1.5\nopencv-python-headless>=4.10\n")
    host.versions["opencv-python"] = "4.12.0"  # has the same module
    assert packages.missing_packages() == []
    host.versions.pop("second") if version is None else host.versions.update(second=version)
    (host.folder / "constraints.txt").write_text("second==1.7\n")
    assert packages.install_missing() == ["second>=1.5"]
    constraints = ["--constraint", f"{host.folder}/constraints.txt"]
    assert host.commands == [["install", *constraints, "second>=1.5", "--quiet"]]


def test_packages_are_installed_without_asking_on_kaggle_and_colab_only(host, monkeypatch, tmp_path):
    monkeypatch.setenv("BEIT3LIB_KAGGLE_INPUT", str(tmp_path / "none"))
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    packages.prepare_host()
    del host.versions["second"]
    with pytest.raises(RuntimeError, match=r"expected second>=1.5, found .* or run .*install_missing\(\)"):
        packages.prepare_host()
    assert host.commands == []
    (tmp_path / "none").mkdir()
    packages.prepare_host()
    assert len(host.commands) == 1
    host.status = 1
    with pytest.raises(RuntimeError, match="`.* pip install second>=1.5 --quiet` failed"):
        packages.prepare_host()
