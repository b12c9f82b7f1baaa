"""Install the requirements that a host lacks, and change nothing else on it.

    python -m beit3lib.pipeline.packages

requirements.txt gives the lowest versions. torchscale and fairscale come without their dependencies, because torchscale
0.3.0 pins versions of timm and fairscale that no longer install. Notebooks call `prepare_host`, which on Kaggle installs
from the folder `wheels` beside the package, or from the package index if there is no such folder. This module imports only
the standard library and `packaging`, because every other package may be missing.
"""

import argparse
import importlib
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from beit3lib.pipeline.mounts import kaggle_root

BESIDE = Path(__file__).parents[
    2
]  # the folder that contains beit3lib, requirements.txt and, on Kaggle, wheels
WITHOUT_DEPENDENCIES = ("torchscale==0.3.0", "fairscale==0.4.0")
NOT_IN_A_KERNEL = {"jupyter", "papermill"}  # they start notebooks, so a running notebook does not need them
SAME_MODULE = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
}


def requirements() -> list[str]:
    """Return the requirements of the package, from requirements.txt or else from the metadata of the installed package."""
    path = BESIDE / "requirements.txt"
    lines = (
        path.read_text(encoding="utf-8").splitlines()
        if path.is_file()
        else metadata.requires("beit3lib") or []
    )
    lines = [line.split("#")[0].strip() for line in lines]
    needed = [
        line
        for line in lines
        if line and "extra ==" not in line and Requirement(line).name not in NOT_IN_A_KERNEL
    ]
    return [*needed, *WITHOUT_DEPENDENCIES]


def installed(line: str) -> str | None:
    """Return the installed version of a required package, or of another package with the same module, or None."""
    package = Requirement(line).name
    for name in (package, *SAME_MODULE.get(package, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def missing_packages() -> list[str]:
    """Return the requirements that no installed version satisfies."""
    versions = {line: installed(line) for line in requirements()}
    return [
        line
        for line, v in versions.items()
        if v is None or not Requirement(line).specifier.contains(v, prereleases=True)
    ]


def install_missing() -> list[str]:
    """Install the requirements that are missing or too old, and return them.

    If there is a folder `wheels`, an old version without a newer wheel is kept and printed. Raises `RuntimeError` with the
    last lines of pip if pip fails.
    """
    missing, wheels, constraints = missing_packages(), BESIDE / "wheels", BESIDE / "constraints.txt"
    source = (
        ["--constraint", str(constraints)] if constraints.is_file() else []
    )  # tested versions, not the newest
    if wheels.is_dir():
        source = ["--no-index", "--find-links", str(wheels)]
        if broken := [path.name for path in sorted(wheels.glob("*.whl")) if not zipfile.is_zipfile(path)]:
            raise RuntimeError(
                f"{wheels}: expected wheels, found empty or cut files: {', '.join(broken)}. Upload them again."
            )
        names = {path.name.split("-")[0].lower().replace("_", "-") for path in wheels.glob("*.whl")}
        kept = [line for line in missing if installed(line) and Requirement(line).name not in names]
        missing = [line for line in missing if line not in kept]
        if kept:
            print(
                "kept, although older than tested: "
                + ", ".join(f"{line} (found {installed(line)})" for line in kept)
            )
    if lines := [line for line in missing if line not in WITHOUT_DEPENDENCIES]:
        run_pip("install", *source, *lines)
    if lines := [line for line in missing if line in WITHOUT_DEPENDENCIES]:
        run_pip("install", "--no-deps", *source, *lines)
    importlib.invalidate_caches()
    return missing


def run_pip(*arguments: str | Path) -> None:
    """Run pip in this Python; raise `RuntimeError` with its last lines if it fails."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise RuntimeError(
            f"`{' '.join(command)}` failed. Without internet, attach a folder of wheels.\n{last}"
        )


def prepare_host() -> None:
    """Install missing requirements on Kaggle and Colab; on other hosts raise `RuntimeError` with the commands to run."""
    missing = missing_packages()
    if not missing:
        return
    if not (kaggle_root().is_dir() or "COLAB_RELEASE_TAG" in os.environ):
        raise RuntimeError(
            f"expected {', '.join(missing)}, found other versions or none. "
            "Run `pip install -r requirements.txt`, then `python -m beit3lib.pipeline.packages`."
        )
    print(
        f"installing {', '.join(missing)} from {BESIDE / 'wheels' if (BESIDE / 'wheels').is_dir() else 'the package index'}"
    )
    install_missing()


def main() -> None:
    """`python -m beit3lib.pipeline.packages`."""
    argparse.ArgumentParser(
        prog="python -m beit3lib.pipeline.packages", description=__doc__.splitlines()[0]
    ).parse_args()
    try:
        missing = install_missing()
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"installed {', '.join(missing)}" if missing else "nothing is missing")


if __name__ == "__main__":
    main()
