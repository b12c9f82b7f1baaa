"""Install the requirements that a host lacks, and change nothing else on it.

    python -m beit3lib.pipeline.packages

requirements.txt gives the lowest versions. torchscale and fairscale come without their dependencies, because
torchscale 0.3.0 pins versions of timm and fairscale that no longer install. Notebooks call `prepare_host`,
which on Kaggle installs from the folder `wheels` beside the package, or from the package index if there is no
such folder. This module imports only the standard library and `packaging`, because every other package may be
missing.
"""

import importlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from beit3lib.pipeline.mounts import kaggle_root

BESIDE = Path(__file__).parents[2]  # with beit3lib, requirements.txt, constraints.txt and, on Kaggle, wheels
WITHOUT_DEPENDENCIES = ("torchscale==0.3.0", "fairscale==0.4.0")
NOT_IN_A_KERNEL = {"jupyter", "papermill"}  # they start notebooks, so a running notebook does not need them
# Any of these packages installs the module cv2.
OPENCV = [f"opencv-{kind}{end}" for kind in ("python", "contrib-python") for end in ("-headless", "")]


def requirements() -> list[str]:
    """Return the requirements of the package, from requirements.txt or else from its metadata."""
    path = BESIDE / "requirements.txt"
    lines = path.read_text().splitlines() if path.is_file() else metadata.requires("beit3lib") or []
    lines = [line.split("#")[0].strip() for line in lines if "extra ==" not in line]
    lines = [line for line in lines if line and Requirement(line).name not in NOT_IN_A_KERNEL]
    return [*lines, *WITHOUT_DEPENDENCIES]


def installed(line: str) -> str | None:
    """Return the installed version of a package, or of another one with the same module, or None."""
    name = Requirement(line).name
    names = OPENCV if name in OPENCV else [name]
    return next((found.version for other in names for found in metadata.distributions(name=other)), None)


def missing_packages() -> list[str]:
    """Return the requirements that no installed version satisfies."""
    missing = []
    for line in requirements():
        version = installed(line)
        if version is None or not Requirement(line).specifier.contains(version, prereleases=True):
            missing.append(line)
    return missing


def install_missing() -> list[str]:
    """Install the requirements that are missing or too old, and return them.

    If there is a folder `wheels`, an old version without a newer wheel is kept, because there may be no
    internet.
    """
    missing, wheels, constraints = missing_packages(), BESIDE / "wheels", BESIDE / "constraints.txt"
    source = ["--constraint", constraints] if constraints.is_file() else []  # tested versions, not the newest
    if wheels.is_dir():
        source = ["--no-index", "--find-links", wheels]
        names = {path.name.split("-")[0].replace("_", "-") for path in wheels.glob("*.whl")}
        for line in [line for line in missing if installed(line) and Requirement(line).name not in names]:
            print(f"kept, although older than tested: {line} (found {installed(line)})")
            missing.remove(line)
    print(f"installing {', '.join(missing) or 'nothing'}", flush=True)
    alone = [line for line in missing if line in WITHOUT_DEPENDENCIES]
    if others := [line for line in missing if line not in alone]:
        run_pip("install", *source, *others)
    if alone:
        run_pip("install", "--no-deps", *source, *alone)
    importlib.invalidate_caches()
    return missing


def run_pip(*arguments: str | Path) -> None:
    """Run pip in this Python. Its errors are on stderr."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet"]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed. Without internet, attach a folder of wheels.")


def prepare_host() -> None:
    """Prepare a notebook's process: install missing requirements on Kaggle and Colab, elsewhere name them."""
    # By default OpenMP's idle threads spin, at the cost of whatever else uses the cores: on two busy cores a
    # training step of a small transformer took 4.1 to 5.3 s, and 0.9 to 1.2 s with PASSIVE. OpenMP reads this
    # when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    missing = missing_packages()
    if missing and (kaggle_root().is_dir() or "COLAB_RELEASE_TAG" in os.environ):
        install_missing()
    elif missing:
        raise RuntimeError(
            f"{sys.executable}: expected {', '.join(missing)}, found older versions or none. Start Jupyter "
            "with the project's .venv, or run in a cell: beit3lib.pipeline.packages.install_missing()"
        )


if __name__ == "__main__":
    try:
        install_missing()
    except RuntimeError as error:
        sys.exit(str(error))
