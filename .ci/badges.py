"""Write the address of the repository into the notebooks, and links that open them in Colab and Kaggle.

    make badges REPOSITORY=https://github.com/you/name

A notebook that is opened alone then installs the package from the current revision of that repository. Run
this on the branch that users see, after its last change to the package, and commit the result. README.md gets
the same links.
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
BADGES = re.compile(r"( \[!\[Open in \w+\]\([^)]*\)\]\([^)]*\))+")
SOURCE = re.compile(r'(os\.environ\.get\("BEIT3LIB_SOURCE", )"[^"]*"\)')


def git(*arguments: str) -> str:
    """Return the output of a git command."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def badges(repository: str, branch: str, name: str) -> str:
    """Return the links of a notebook, each with a space before it."""
    path = f"{repository.removeprefix('https://github.com/')}/blob/{branch}/notebooks/{name}.ipynb"
    colab, kaggle = "https://colab.research.google.com", "https://kaggle.com"
    return (
        f" [![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{path})"
        f" [![Open in Kaggle]({kaggle}/static/images/open-in-kaggle.svg)]"
        f"({kaggle}/kernels/welcome?src=https://github.com/{path})"
    )


def main() -> None:
    """Change notebooks, executed copies and README."""
    repository = sys.argv[1].removesuffix("/").removesuffix(".git") if len(sys.argv) == 2 else ""
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", repository):
        sys.exit(f"REPOSITORY: expected https://github.com/you/name, got {repository!r}.")
    branch, source = git("branch", "--show-current"), f"git+{repository}@{git('rev-parse', 'HEAD')}"
    for path in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/executed/*.ipynb")]:
        notebook = nbformat.read(path, as_version=4)
        title, rest = notebook.cells[0].source.split("\n", 1)
        notebook.cells[0].source = BADGES.sub("", title) + badges(repository, branch, path.stem) + "\n" + rest
        for cell in notebook.cells:
            cell.source = SOURCE.sub(rf'\1"{source}")', cell.source)
        nbformat.write(notebook, path)
    readme = ROOT / "README.md"
    text = BADGES.sub("", readme.read_text(encoding="utf-8"))
    link = r"^\| \[[^]]+\]\(notebooks/(\w+)\.ipynb\)"
    text = re.sub(
        link, lambda found: found[0] + badges(repository, branch, found[1]), text, flags=re.MULTILINE
    )
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
