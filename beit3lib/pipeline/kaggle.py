"""Stage the notebooks, the package and wheels in folders that Kaggle's own command uploads.

    python -m beit3lib.pipeline.kaggle runs/kaggle --owner you
    python -m beit3lib.pipeline.kaggle runs/kaggle --owner you --attach wts tokenizer weights

The first command stages notebooks for the sample, which needs no upload. `--attach` names inputs that you
have uploaded to Kaggle as your own data sets, under the names in `data_manifest.yaml`. Each notebook becomes
a folder with `kernel-metadata.json` and a copy that contains its parameters; its input is the output of the
notebook before it. The package, its manifest and wheels of the packages that Kaggle's image lacks become one
data set. The command prints how to upload everything.
"""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beit3lib.files import atomic_folder, exit_on_error, write_json
from beit3lib.pipeline.manifest import NAME as MANIFEST_NAME
from beit3lib.pipeline.manifest import load_manifest
from beit3lib.pipeline.packages import BESIDE, WITHOUT_DEPENDENCIES, run_pip

PACKAGE_SLUG = "beit3lib-package"
PYTHON = "3.12"  # the version in Kaggle's image in 2026
BINARY_WHEELS = ("av", "sentencepiece")  # compiled, so they are fetched for Kaggle's Python
PURE_WHEELS = ("rouge-score", "absl-py", *WITHOUT_DEPENDENCIES)
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64")
NOTEBOOKS = ("01_prepare_data", "02_build_index", "03_finetune", "04_inspect_captions", "05_score_and_submit")
INPUTS = {  # inputs that a notebook reads itself
    "01_prepare_data": ("wts", "bdd", "prepared"),
    "02_build_index": ("tokenizer",),
    "03_finetune": ("weights",),
}
# Of notebooks that use GPUs, for real data: all GPUs, and less than the 12 hours of a session.
PARAMETERS = dict.fromkeys(("03_finetune", "04_inspect_captions"), {"num_gpus": 0, "max_minutes": 660.0})


def title_of(name: str) -> str:
    """Return the title of a notebook on Kaggle, of 5 to 50 characters: "Traffic captions 3 finetune"."""
    return f"Traffic captions {int(name[:2])} {name[3:].replace('_', ' ')}"


def kernel_metadata(name: str, owner: str, attach: Sequence[str]) -> dict[str, Any]:
    """Return `kernel-metadata.json` of a notebook, whose input is the output of the notebook before it."""
    entries = load_manifest().entries
    inputs = [entries[entry].kaggle for entry in INPUTS.get(name, ()) if entry in attach]
    # Kaggle derives a notebook's id from its title.
    ids = {other: f"{owner}/{title_of(other).lower().replace(' ', '-')}" for other in NOTEBOOKS}
    before = NOTEBOOKS[: NOTEBOOKS.index(name)][-1:]
    return {
        "id": ids[name],
        "title": title_of(name),
        "code_file": f"{name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": name in PARAMETERS,
        "enable_internet": False,
        **({"machine_shape": "NvidiaTeslaT4"} if name in PARAMETERS else {}),
        "dataset_sources": [f"{owner}/{source}" for source in (PACKAGE_SLUG, *inputs)],
        "kernel_sources": [ids[other] for other in before],
    }


def stage(out: str | Path, owner: str, attach: Sequence[str] = (), python: str = PYTHON) -> list[Path]:
    """Stage everything inside `out`; return the folder of the data set, then one folder per notebook."""
    from papermill import execute_notebook

    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9-]{1,48}", owner):
        todo = "Use make kaggle KAGGLE_OWNER=name."
        raise ValueError(f"--owner: expected your user name on Kaggle, got {owner!r}. {todo}")
    package, *folders = [Path(out, name) for name in (PACKAGE_SLUG, *NOTEBOOKS)]
    with atomic_folder(package) as new:
        shutil.copytree(BESIDE / "beit3lib", new / "beit3lib", ignore=shutil.ignore_patterns("__pycache__"))
        fetch_wheels(new / "wheels", python)
        for name in (MANIFEST_NAME, "requirements.txt", "constraints.txt"):
            shutil.copyfile(BESIDE / name, new / name)
        meta = {"title": "beit3lib package", "id": f"{owner}/{PACKAGE_SLUG}", "licenses": [{"name": "other"}]}
        write_json(new / "dataset-metadata.json", meta)
    for folder in folders:
        with atomic_folder(folder) as new:
            write_json(new / "kernel-metadata.json", kernel_metadata(folder.name, owner, attach))
            copy = shutil.copy(BESIDE / "notebooks" / f"{folder.name}.ipynb", new)
            if attach and folder.name in PARAMETERS:  # Kaggle passes no parameters, so the copy contains them
                execute_notebook(copy, copy, PARAMETERS[folder.name], prepare_only=True, progress_bar=False)
    return [package, *folders]


def fetch_wheels(folder: Path, python: str = PYTHON) -> None:
    """Fetch the wheels that Kaggle's image lacks, for its Python."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    options = ["--no-deps", "--constraint", BESIDE / "constraints.txt"]
    compiled = ["--only-binary=:all:", "--python-version", python, *platforms, "--dest", folder]
    run_pip("download", *compiled, *options, *BINARY_WHEELS)
    run_pip("wheel", "--wheel-dir", folder, *options, *PURE_WHEELS)


@exit_on_error(RuntimeError)
def main() -> None:
    """Stage notebooks, package and wheels for Kaggle."""
    known = [name for name, entry in load_manifest().entries.items() if entry.kaggle]
    parser = argparse.ArgumentParser(prog="python -m beit3lib.pipeline.kaggle", description=main.__doc__)
    parser.add_argument("out", nargs="?", default="runs/kaggle", help="folder to stage in [runs/kaggle]")
    parser.add_argument("--owner", required=True, help="your user name on Kaggle")
    parser.add_argument("--attach", nargs="*", default=[], choices=known, help="inputs you have uploaded")
    parser.add_argument("--python", default=PYTHON, help=f"Python of Kaggle's image [{PYTHON}]")
    package, *notebooks = stage(**vars(parser.parse_args()))
    print("Staged. Upload the package, then push each notebook when the one before has finished:")
    print(f"  kaggle datasets create -p {package} --dir-mode zip")
    for folder in notebooks:
        print(f"  kaggle kernels push -p {folder}")


if __name__ == "__main__":
    main()
