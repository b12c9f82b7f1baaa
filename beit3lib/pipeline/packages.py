"""What the host lacks, installed without touching what it has.

    python -m beit3lib.pipeline.packages        torchscale and fairscale, and on Kaggle what its image lacks

torchscale 0.3.0 pins timm 0.6.13, and fairscale 0.4.0 comes as it was then; both import beside today's timm and torch, so
they are installed without what they ask for. This is the only place that does it: README, Makefile and notebooks call it.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

UNPINNED = {"torchscale": "0.3.0", "fairscale": "0.4.0"}
IMPORTS = {  # import name -> what pip calls it; requirements.txt is held to these names
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "transformers",
    "sentencepiece": "sentencepiece",
    "google.protobuf": "protobuf",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "pandas": "pandas",
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "av": "av",
    "joblib": "joblib",
    "nltk": "nltk",
    "rouge_score": "rouge-score",
    "yaml": "pyyaml",
}
KAGGLE = Path("/kaggle/input")


def missing_packages() -> list[str]:
    """What pip must bring: names of packages that cannot be imported, torchscale and fairscale with their versions."""
    plain = [package for module, package in IMPORTS.items() if not _importable(module)]
    return plain + [f"{name}=={version}" for name, version in UNPINNED.items() if _version(name) != version]


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_missing(wheels: Path | None = None) -> list[str]:
    """Install what is missing, never upgrading; from a folder of `wheels` where there is no internet.

    Returns what was installed. A failing pip is a RuntimeError with its last lines.
    """
    missing = missing_packages()
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    plain = [name for name in missing if "==" not in name]
    for names, extra in ((plain, []), ([name for name in missing if "==" in name], ["--no-deps"])):
        if names:
            _pip([*names, *extra, *source])
    importlib.invalidate_caches()
    return missing


def _pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(f"`{' '.join(command)}` failed; without internet, attach a folder of wheels:\n{last}")


def prepare_host() -> None:
    """For notebooks: on Kaggle bring what its image lacks from attached wheels; elsewhere say what to run.

    Nothing that the host has is changed.
    """
    missing = missing_packages()
    if not missing:
        return
    if not KAGGLE.is_dir():
        raise RuntimeError(
            f"missing: {', '.join(missing)}; run `pip install -r requirements.txt`, then `python -m beit3lib.pipeline.packages`"
        )
    folder = next(_wheel_folders(), None)
    print(f"installing {', '.join(missing)} from {folder or 'the internet'}")
    install_missing(folder)


def _wheel_folders() -> Iterator[Path]:
    """Folders of wheels on Kaggle's mounts, at both depths at which it mounts a data set."""
    for depth in ("*", "*/*", "*/*/*", "*/*/*/*"):
        yield from (path.parent for path in KAGGLE.glob(f"{depth}/torchscale-*.whl"))


def import_torchscale():
    """torchscale's (BEiT3, EncoderConfig), without the one warning that timm gives about where it imports from."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Importing from timm.models.layers", category=FutureWarning)
        try:
            from torchscale.architecture.config import EncoderConfig
            from torchscale.model.BEiT3 import BEiT3
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}; run `python -m beit3lib.pipeline.packages`") from error
    return BEiT3, EncoderConfig


def main() -> None:
    """`python -m beit3lib.pipeline.packages`."""
    if sys.argv[1:]:
        sys.exit(f"{__doc__.strip()}\n\nIt takes no options.")
    installed = install_missing(next(_wheel_folders(), None))
    print(f"installed {', '.join(installed)}" if installed else "nothing is missing")


if __name__ == "__main__":
    main()
