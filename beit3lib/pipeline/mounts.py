"""Find the folders in which Kaggle mounts inputs. No other module contains these paths.

An attached data set or notebook output is read-only at `/kaggle/input/<slug>/` or at
`/kaggle/input/{datasets,notebooks,models}/<owner>/<slug>/`. The environment variable BEIT3LIB_KAGGLE_INPUT
names another root, which the tests use.
"""

import os
from collections.abc import Iterator
from pathlib import Path

KINDS = ("datasets", "notebooks", "models", "competitions")


def kaggle_root() -> Path:
    """Return the folder that contains all mounts; it exists on Kaggle only."""
    return Path(os.environ.get("BEIT3LIB_KAGGLE_INPUT") or "/kaggle/input")


def kaggle_inputs() -> list[Path]:
    """Return the top folder of every attached input."""
    inputs = [path for path in sorted(kaggle_root().glob("*")) if path.name not in KINDS]
    inputs += [path for kind in KINDS for path in sorted((kaggle_root() / kind).glob("*/*"))]
    return [path for path in inputs if path.is_dir()]


def folders_in(folder: Path, depth: int) -> Iterator[Path]:
    """Yield `folder` and the folders inside it, down to `depth` levels."""
    for here, names, _ in os.walk(folder):
        yield Path(here)
        level = len(Path(here).relative_to(folder).parts)
        names[:] = sorted(names) if level < depth else []
