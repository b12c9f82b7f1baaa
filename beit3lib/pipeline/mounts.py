"""Where Kaggle mounts inputs. No other module knows it.

An attached data set or notebook output is read-only at `/kaggle/input/<slug>/` or at
`/kaggle/input/{datasets,notebooks,models}/<owner>/<slug>/`. The environment variable BEIT3LIB_KAGGLE_INPUT names another
root, which the tests use.
"""

import os
from collections.abc import Iterator
from pathlib import Path

KINDS = ("datasets", "notebooks", "models", "competitions")


def kaggle_root() -> Path:
    """The folder that contains all mounts; it exists on Kaggle only."""
    return Path(os.environ.get("BEIT3LIB_KAGGLE_INPUT") or "/kaggle/input")


def kaggle_inputs() -> list[Path]:
    """The top folder of every attached input."""
    root = kaggle_root()
    named = [path for kind in KINDS for path in sorted((root / kind).glob("*/*"))]
    return [path for path in [*sorted(root.glob("*")), *named] if path.is_dir() and path not in [root / k for k in KINDS]]


def folders_in(folder: Path, depth: int) -> Iterator[Path]:
    """`folder` and the folders in it, down to `depth` levels, without looking at single files."""
    for here, names, _ in os.walk(folder):
        yield Path(here)
        level = len(Path(here).relative_to(folder).parts)
        names[:] = sorted(names) if level < depth else []
