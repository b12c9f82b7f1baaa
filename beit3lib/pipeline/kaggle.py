"""Stage the notebooks, the package and wheels in folders that Kaggle's own command uploads.

    python -m beit3lib.pipeline.kaggle runs/kaggle --owner you
    python -m beit3lib.pipeline.kaggle runs/kaggle --owner you --attach wts tokenizer beit3_base_patch16_224

The first command stages notebooks for the sample, which needs no upload. `--attach` names inputs that you have uploaded to
Kaggle as your own data sets, under the names in `data_manifest.yaml`. Each notebook becomes a folder with
`kernel-metadata.json` and a copy that contains its parameters; its input is the output of the notebook before it. The
package, its manifest and wheels of the packages that Kaggle's image lacks become one data set. The command prints how to
upload everything.
"""

import argparse
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beit3lib.files import atomic_folder, exit_on_error, write_json
from beit3lib.pipeline.manifest import NAME as MANIFEST_NAME
from beit3lib.pipeline.manifest import Manifest, load_manifest
from beit3lib.pipeline.packages import BESIDE, WITHOUT_DEPENDENCIES, run_pip

PACKAGE_SLUG = "beit3lib-package"
PYTHON = "3.12"  # the version in Kaggle's image in 2026
BINARY_WHEELS = ("av", "sentencepiece")  # compiled, so they are fetched for Kaggle's Python
PURE_WHEELS = ("rouge-score", "absl-py", *WITHOUT_DEPENDENCIES)
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64")
NOTEBOOKS = ("01_prepare_data", "02_build_index", "03_finetune", "04_inspect_captions", "05_score_and_submit")
ON_GPU = ("03_finetune", "04_inspect_captions")
INPUTS = {
    "01_prepare_data": ("wts", "bdd", "prepared"),
    "02_build_index": ("tokenizer",),
    "03_finetune": ("beit3_",),
}
PARAMETERS = {
    "03_finetune": {"num_gpus": 2, "max_minutes": 660.0}
}  # real data only; a session lasts 12 hours


class KaggleError(ValueError):
    """A request that cannot be staged; the message names the option."""


def title_of(name: str) -> str:
    """Return the title of a notebook on Kaggle, for example "Traffic captions 3 finetune". Kaggle allows 5 to 50 characters."""
    return f"Traffic captions {int(name[:2])} {name[3:].replace('_', ' ')}"


def slug(title: str) -> str:
    """Return the identifier that Kaggle derives from a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def kernel_metadata(name: str, owner: str, attach: Sequence[str], manifest: Manifest) -> dict[str, Any]:
    """Return `kernel-metadata.json` of a notebook: private, without internet, with the notebook before it as an input."""
    before = NOTEBOOKS[: NOTEBOOKS.index(name)][-1:]
    inputs = [
        manifest.entries[entry].kaggle
        for entry in attach
        if name in INPUTS and entry.startswith(INPUTS[name])
    ]
    gpu = name in ON_GPU
    return {
        "id": f"{owner}/{slug(title_of(name))}",
        "title": title_of(name),
        "code_file": f"{name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_internet": False,
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}),
        "dataset_sources": [f"{owner}/{source}" for source in dict.fromkeys([PACKAGE_SLUG, *inputs])],
        "kernel_sources": [f"{owner}/{slug(title_of(other))}" for other in before],
        "model_sources": [],
        "competition_sources": [],
    }


def stage(out: str | Path, owner: str, attach: Sequence[str] = (), python: str = PYTHON) -> list[Path]:
    """Stage everything in folders inside `out`, and return the folder of the data set, then one folder per notebook.

    Raises `KaggleError` if the owner or an attached input is unknown, and `RuntimeError` if pip cannot fetch the wheels.
    """
    from papermill import execute_notebook

    out, manifest = Path(out), load_manifest()
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9-]{1,48}", owner):
        raise KaggleError(
            f"--owner: expected your user name on Kaggle, got {owner!r}. Use make kaggle KAGGLE_OWNER=name."
        )
    known = [name for name, entry in manifest.entries.items() if entry.kaggle]
    if unknown := [name for name in attach if name not in known]:
        raise KaggleError(
            f"--attach: expected some of {', '.join(known)} ({MANIFEST_NAME}), got {', '.join(unknown)}."
        )
    wheels = fetch_wheels(out / f"wheels-{python}", python)
    folders = [out / PACKAGE_SLUG, *(out / name for name in NOTEBOOKS)]
    with atomic_folder(folders[0]) as new:
        shutil.copytree(BESIDE / "beit3lib", new / "beit3lib", ignore=shutil.ignore_patterns("__pycache__"))
        for name in (MANIFEST_NAME, "requirements.txt", "constraints.txt"):
            shutil.copyfile(BESIDE / name, new / name)
        (new / "wheels").mkdir()
        for wheel in wheels:
            shutil.copyfile(wheel, new / "wheels" / wheel.name)
        meta = {"title": "beit3lib package", "id": f"{owner}/{PACKAGE_SLUG}", "licenses": [{"name": "other"}]}
        write_json(new / "dataset-metadata.json", meta)
    for folder in folders[1:]:
        with atomic_folder(folder) as new:
            write_json(new / "kernel-metadata.json", kernel_metadata(folder.name, owner, attach, manifest))
            notebook = f"{folder.name}.ipynb"
            if (
                attach and folder.name in PARAMETERS
            ):  # Kaggle runs a notebook without parameters, so the copy contains them
                paths = str(BESIDE / "notebooks" / notebook), str(new / notebook)
                execute_notebook(*paths, PARAMETERS[folder.name], prepare_only=True, progress_bar=False)
            else:
                shutil.copyfile(BESIDE / "notebooks" / notebook, new / notebook)
    return folders


def fetch_wheels(folder: Path, python: str = PYTHON) -> list[Path]:
    """Return wheels of the packages that Kaggle's image lacks, for its Python. Complete wheels in `folder` are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.whl"):
        if not zipfile.is_zipfile(path):  # an empty or cut download
            path.unlink()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    for package in (*BINARY_WHEELS, *PURE_WHEELS):
        if any(folder.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl")):
            continue
        options = ["--no-deps", "--constraint", BESIDE / "constraints.txt"]
        if package in BINARY_WHEELS:
            options += ["--only-binary=:all:", "--python-version", python, *platforms, "--dest", folder]
            run_pip("download", *options, package)
        else:
            run_pip("wheel", *options, "--wheel-dir", folder, package)
    return sorted(folder.glob("*.whl"))


@exit_on_error(RuntimeError)
def main(arguments: list[str] | None = None) -> None:
    """`python -m beit3lib.pipeline.kaggle`."""
    parser = argparse.ArgumentParser(
        prog="python -m beit3lib.pipeline.kaggle", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", nargs="?", default="runs/kaggle", help="folder to stage in [runs/kaggle]")
    parser.add_argument("--owner", required=True, help="your user name on Kaggle")
    parser.add_argument(
        "--attach", nargs="*", default=[], help="inputs you have uploaded, such as wts tokenizer"
    )
    parser.add_argument("--python", default=PYTHON, help=f"Python of Kaggle's image [{PYTHON}]")
    options = parser.parse_args(arguments)
    package, *notebooks = stage(options.out, options.owner, options.attach, options.python)
    print("Staged. Upload the package, then push each notebook when the one before has finished:")
    print(f"  kaggle datasets create -p {package} --dir-mode zip")
    for folder in notebooks:
        print(f"  kaggle kernels push -p {folder}")


if __name__ == "__main__":
    main()
