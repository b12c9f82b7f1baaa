"""METEOR uses nltk's WordNet; without a usable copy it warns once, and scores are not called official."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import clean

from beit3lib.track2.wordnet import load_wordnet

SCORE = """
from beit3lib.track2 import metrics
for _ in range(2):
    scores = metrics.score_pairs(["halt", "walking"], ["stop", "walks"])["meteor"].tolist()
print(scores, metrics.meteor_is_comparable())
"""


def run(home, code=""):
    """Score synonyms and stems in a process without internet; return stdout and stderr."""
    home.chmod(0o700)  # nltk reads and writes private folders only
    environment = clean(HOME=str(home), NLTK_DATA="", PYTHONPATH=str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", code + SCORE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def wordnet():
    """The folder of an unpacked WordNet."""
    root = Path(getattr(getattr(load_wordnet(), "root", None), "path", ""))
    if not (root / "data.noun").is_file():
        pytest.skip("no unpacked WordNet: .ci/wordnet.sh .nltk_data")
    return root


def test_without_wordnet_one_line_names_the_command(tmp_path):
    shown, warning = run(tmp_path)
    assert shown == "[0.0, 0.5] False"
    assert warning.count("\n") == 1 and "Run `python -m nltk.downloader wordnet`" in warning


@pytest.mark.parametrize("damage", ["empty", "half unpacked"])
def test_a_damaged_copy_is_named(tmp_path, wordnet, damage):
    damaged = tmp_path / "nltk_data" / "corpora" / "wordnet"
    shutil.copytree(wordnet, damaged)
    for path in damaged.iterdir():
        if damage == "empty" or path.name in ("data.verb", "index.verb"):
            path.unlink()
    code = f"import nltk; nltk.data.path.append({str(wordnet.parents[1])!r})"  # a good copy
    shown, warning = run(tmp_path, code)
    assert shown == "[0.0, 0.5] False" and warning.count("\n") == 1 and f"Delete {damaged} and run" in warning
