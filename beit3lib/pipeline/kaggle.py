"""Everything to run the notebooks on Kaggle, staged in folders that Kaggle's own command uploads.

    python -m beit3lib.pipeline.kaggle runs/kaggle --owner you                            with the sample, which needs no upload
    python -m beit3lib.pipeline.kaggle runs/kaggle --owner you --attach wts tokenizer beit3_base_patch16_224

One folder per notebook, with `kernel-metadata.json` and a copy that has its parameters; each notebook is chained to the one
before. One folder to upload as a data set: the package, the manifest, and wheels of what Kaggle's image lacks. What is
attached are data sets of your own, with the names that `data_manifest.yaml` gives them. The commands to type come last.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit3lib.files import atomic_folder, in_one_sentence, write_json
from beit3lib.pipeline.manifest import NAME as MANIFEST_NAME
from beit3lib.pipeline.manifest import Manifest, load_manifest
from beit3lib.pipeline.packages import UNPINNED

PACKAGE_SLUG, PACKAGE_TITLE = "beit3lib-package", "beit3lib package"
PYTHON = "3.12"  # of Kaggle's image
BINARY_WHEELS = ("av", "sentencepiece")  # compiled: fetched for Kaggle's Python
PURE_WHEELS = ("rouge-score", "absl-py", *(f"{name}=={version}" for name, version in UNPINNED.items()))
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64")
TITLES = {
    "01_prepare_data": "Traffic captions 1 prepare data",
    "02_build_index": "Traffic captions 2 build index",
    "03_finetune": "Traffic captions 3 finetune",
    "04_inspect_captions": "Traffic captions 4 inspect captions",
    "05_score_and_submit": "Traffic captions 5 score and submit",
}
ON_GPU = ("03_finetune", "04_inspect_captions")
NEEDS = {
    "01_prepare_data": ("wts", "bdd"),
    "02_build_index": ("tokenizer",),
    "03_finetune": ("beit3_",),
}  # names, or how they begin
PARAMETERS = {"03_finetune": {"num_gpus": 2, "max_minutes": 660.0}}  # of the 12 hours of a session; with real data only
MOST_BYTES = 100e9  # of a data set
TITLE_CHARACTERS = range(5, 51)


class KaggleError(ValueError):
    """What was staged would not be taken; the message lists everything that is wrong."""


def slug(title: str) -> str:
    """The name that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def kernel_metadata(name: str, owner: str, attach: Sequence[str], manifest: Manifest) -> dict[str, Any]:
    """`kernel-metadata.json` of one notebook: chained to the one before it, internet off."""
    names = list(TITLES)
    before = names[: names.index(name)][-1:]
    wanted = [entry for entry in attach if entry.startswith(NEEDS.get(name, ())) and NEEDS.get(name)]
    sources = dict.fromkeys([PACKAGE_SLUG, *(manifest.entries[entry]["kaggle"] for entry in wanted)])
    gpu = name in ON_GPU
    return {
        "id": f"{owner}/{slug(TITLES[name])}",
        "title": TITLES[name],
        "code_file": f"{name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_internet": False,
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}),
        "dataset_sources": [f"{owner}/{source}" for source in sources],
        "kernel_sources": [f"{owner}/{slug(TITLES[other])}" for other in before],
        "model_sources": [],
        "competition_sources": [],
    }


def stage(
    out: str | Path, owner: str, attach: Sequence[str] = (), python: str = PYTHON, notebooks: Path | None = None
) -> list[Path]:
    """Stage everything below `out`; returns the folders, the data set first.

    `attach`: manifest entries that you have uploaded. Wheels that are there already are not fetched again. `KaggleError`
    lists all that Kaggle would refuse, `RuntimeError` a pip that failed.
    """
    out, manifest = Path(out), load_manifest()
    _check_request(owner, attach, manifest)
    wheels = fetch_wheels(out / "wheels", python)
    folders = [_stage_package(out / PACKAGE_SLUG, owner, wheels, manifest)]
    for name in TITLES:
        folder = out / name
        with atomic_folder(folder) as new:
            write_json(new / "kernel-metadata.json", kernel_metadata(name, owner, attach, manifest))
            _prepare_notebook(notebooks or Path(__file__).parents[2] / "notebooks", name, new, bool(attach))
        folders.append(folder)
    problems = check_staged(folders, manifest)
    if problems:
        raise KaggleError("Kaggle would refuse what was staged:\n  " + "\n  ".join(problems))
    return folders


def _check_request(owner: str, attach: Sequence[str], manifest: Manifest) -> None:
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9-]{1,48}", owner):
        raise KaggleError(f"--owner: expected your user name on Kaggle, found {owner!r}; make kaggle KAGGLE_OWNER=name")
    known = [name for name, entry in manifest.entries.items() if "kaggle" in entry]
    unknown = [name for name in attach if name not in known]
    if unknown:
        raise KaggleError(f"--attach: {', '.join(unknown)} not among what {MANIFEST_NAME} has for Kaggle: {', '.join(known)}")


def fetch_wheels(folder: Path, python: str = PYTHON) -> list[Path]:
    """Wheels of what Kaggle's image lacks, for its Python; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    tag = "cp" + python.replace(".", "")
    for package in BINARY_WHEELS:
        if not any(tag in path.name for path in folder.glob(f"{package}-*.whl")):
            platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
            _pip("download", "--no-deps", "--only-binary=:all:", "--python-version", python, *platforms, "-d", folder, package)
    for package in PURE_WHEELS:
        stem = package.split("==")[0].replace("-", "_")
        if not any(folder.glob(f"{stem}-*.whl")):
            _pip("wheel", "--no-deps", "-w", folder, package)
    return sorted(folder.glob("*.whl"))


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(f"`{' '.join(command)}` failed; wheels need the internet once:\n{last}")


def _stage_package(folder: Path, owner: str, wheels: Sequence[Path], manifest: Manifest) -> Path:
    package = Path(__file__).parents[1]
    with atomic_folder(folder) as new:
        shutil.copytree(package, new / "beit3lib", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(manifest.path, new / MANIFEST_NAME)
        (new / "wheels").mkdir()
        for wheel in wheels:
            shutil.copyfile(wheel, new / "wheels" / wheel.name)
        meta = {"title": PACKAGE_TITLE, "id": f"{owner}/{PACKAGE_SLUG}", "licenses": [{"name": "other"}]}
        write_json(new / "dataset-metadata.json", meta)
    return folder


def _prepare_notebook(notebooks: Path, name: str, folder: Path, real_data: bool) -> None:
    """A copy with its parameters: Kaggle runs a notebook without, so they must stand in it."""
    from papermill import execute_notebook

    source = notebooks / f"{name}.ipynb"
    parameters = PARAMETERS.get(name, {}) if real_data else {}
    if not parameters:
        shutil.copyfile(source, folder / source.name)
        return
    execute_notebook(str(source), str(folder / source.name), parameters, prepare_only=True, progress_bar=False)


def check_staged(folders: Sequence[Path], manifest: Manifest) -> list[str]:
    """Everything that Kaggle would refuse, or that would not be found there; an empty list is good."""
    kernels = [json.loads((f / "kernel-metadata.json").read_text()) for f in folders if (f / "kernel-metadata.json").is_file()]
    ids = [kernel["id"] for kernel in kernels]
    data = {PACKAGE_SLUG, *(entry["kaggle"] for entry in manifest.entries.values() if "kaggle" in entry)}
    problems = [text for kernel in kernels for text in _check_kernel(kernel, ids, data)]
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            problems.append(f"{folder.name}: {size / 1e9:.1f} GB, Kaggle takes {MOST_BYTES / 1e9:.0f}")
    for folder, kernel in zip([f for f in folders if (f / "kernel-metadata.json").is_file()], kernels, strict=True):
        if not (folder / kernel["code_file"]).is_file():
            problems.append(f"{folder.name}: {kernel['code_file']} is missing")
    return problems


def _check_kernel(kernel: Mapping[str, Any], ids: Sequence[str], data: set[str]) -> list[str]:
    owner, name = kernel["id"].split("/")
    problems = []
    if slug(kernel["title"]) != name:
        problems.append(f"{name}: Kaggle makes {slug(kernel['title'])!r} of the title {kernel['title']!r}")
    if len(kernel["title"]) not in TITLE_CHARACTERS:
        problems.append(f"{name}: a title has 5 to 50 characters, {kernel['title']!r} has {len(kernel['title'])}")
    for source in kernel["dataset_sources"]:
        if source.split("/")[1] not in data:
            problems.append(f"{name}: data set {source} is not in {MANIFEST_NAME}")
    for source in kernel["kernel_sources"]:
        if source not in ids or ids.index(source) >= ids.index(kernel["id"]):
            problems.append(f"{name}: comes after {source}, which is no notebook before it")
    return problems


@in_one_sentence(RuntimeError)
def main(arguments: list[str] | None = None) -> None:
    """`python -m beit3lib.pipeline.kaggle`."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.kaggle", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="runs/kaggle", help="folder to stage in [runs/kaggle]")
    parser.add_argument("--owner", required=True, help="your user name on Kaggle")
    parser.add_argument("--attach", nargs="*", default=[], help="manifest entries you have uploaded: wts tokenizer beit3_…")
    parser.add_argument("--python", default=PYTHON, help=f"Python of Kaggle's image [{PYTHON}]")
    options = parser.parse_args(arguments)
    folders = stage(options.out, options.owner, options.attach, options.python)
    print("staged; upload the package, then push the notebooks one after the other, each when the one before has ended:")
    print(f"  kaggle datasets create -p {folders[0]} --dir-mode zip")
    for folder in folders[1:]:
        print(f"  kaggle kernels push -p {folder}")


if __name__ == "__main__":
    main()
