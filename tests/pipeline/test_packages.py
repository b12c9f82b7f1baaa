"""What is installed is what is asked for; the stale pins of torchscale import beside today's packages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from beit3lib.pipeline import packages

ROOT = Path(__file__).parents[2]


def test_requirements_and_imports_name_the_same_packages():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[<>=!\[; ]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    notebooks_only = required - set(packages.IMPORTS.values())
    assert set(packages.IMPORTS.values()) <= required and notebooks_only <= {"jupyter", "jupyterlab", "papermill", "ipykernel"}


def test_torch_has_a_lower_bound_only():
    line = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if re.match(r"torch[>=<]", line))
    assert re.fullmatch(r"torch>=[\d.]+", line)


def test_torchscale_imports_without_its_pins_and_without_a_warning():
    code = "from beit3lib.pipeline.packages import import_torchscale; import_torchscale()"
    done = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "FutureWarning" not in done.stderr, done.stderr


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, beit3lib; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("module", ["wts", "motion_blur", "aspects", "metrics", "submission", "manifest", "gallery", "figures"])
def test_data_and_scores_need_neither_torch_nor_transformers(module):
    code = f"import sys, beit3lib.{module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_nothing_is_missing_here():
    assert packages.missing_packages() == []
    assert packages.install_missing() == []


def test_only_what_is_missing_is_asked_of_pip_and_unpinned_ones_without_their_pins(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(packages, "missing_packages", lambda: ["av", "torchscale==0.3.0"])
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: asked.append(command) or subprocess.CompletedProcess(command, 0, "", "")
    )
    assert packages.install_missing(tmp_path) == ["av", "torchscale==0.3.0"]
    assert "--no-deps" not in asked[0] and "av" in asked[0] and "--no-index" in asked[0] and str(tmp_path) in asked[0]
    assert "--no-deps" in asked[1] and "torchscale==0.3.0" in asked[1]
    assert not any(flag in command for command in asked for flag in ("-U", "--upgrade"))


def test_a_pip_that_fails_is_an_error_with_its_last_lines(monkeypatch):
    monkeypatch.setattr(packages, "missing_packages", lambda: ["av"])
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: failed)
    with pytest.raises(RuntimeError, match="no matching distribution"):
        packages.install_missing()
