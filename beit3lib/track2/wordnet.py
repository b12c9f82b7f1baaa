"""WordNet for METEOR: a complete copy from nltk's data folders, Debian's packages or nltk's download server.

nltk's own loader reads the first copy it finds, even a broken one. This module checks every copy and skips broken ones.
If there is no complete copy, one is made per user, under a lock, in `~/.cache/beit3lib/nltk_data`.
"""

import io
import os
import shutil
import socket
import sys
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import filelock
import nltk
from nltk.corpus.reader.wordnet import WordNetCorpusReader

from beit3lib.files import atomic_folder, write_text

DEBIAN_FOLDER = Path("/usr/share/wordnet")  # of the packages wordnet-base and wordnet-sense-index
DOWNLOAD_TIMEOUT_S = 15
LOCK_TIMEOUT_S = 300  # a download of 11 MB on a slow line

# The last word of each index, exception list and data file of WordNet 3.0, which a truncated file lacks.
LAST_WORDS = (
    *(
        ("zyrian", "n"),
        ("zoonoses", "n"),
        ("9/11", "n"),
        ("zoom_in", "v"),
        ("zipping", "v"),
        ("deflagrate", "v"),
    ),
    *(
        ("zymotic", "a"),
        ("zippiest", "a"),
        ("unsaponified", "a"),
        ("zigzag", "r"),
        ("hardest", "r"),
        ("wrongfully", "r"),
    ),
)
# Names of WordNet's 45 lexicographer files in their fixed order. nltk needs this list, and Debian's packages lack it.
LEXICOGRAPHER_FILES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition "
    "noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person "
    "noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state "
    "noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption "
    "verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative "
    "verb.weather adj.ppl"
).split()
PART_OF_SPEECH = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}


class Synonyms:
    """Replacement for nltk's WordNet reader in `meteor_score`, with a cache; without a reader no word has synonyms."""

    def __init__(self, reader: WordNetCorpusReader | None) -> None:
        self.reader = reader
        self.synsets = lru_cache(maxsize=200_000)(self._look_up)

    @property
    def complete(self) -> bool:
        """Return whether METEOR counts synonyms, as the official script does."""
        return self.reader is not None

    def _look_up(self, word: str) -> list[SimpleNamespace]:
        """Return the single-word lemmas of all synsets of `word` as one synset, which is all that METEOR reads."""
        try:
            synsets = self.reader.synsets(word) if self.reader else []
            lemmas = {
                lemma.name(): lemma
                for synset in synsets
                for lemma in synset.lemmas()
                if "_" not in lemma.name()
            }
        except Exception:  # a file that is damaged in the middle makes the reader raise almost any error
            self.reader, lemmas = None, {}
        return [SimpleNamespace(lemmas=lambda: lemmas.values())]


@lru_cache(maxsize=1)
def find_synonyms() -> Synonyms:
    """Return WordNet's synonyms from the first complete copy, after making a copy if there is none and this host can."""
    for folder in list(nltk.data.path):
        if reader := _open(Path(folder)):
            return Synonyms(reader)
    for folder in _cache_folders():
        try:
            if reader := _open(
                folder
            ):  # the lock is for making a copy; a process that makes one may hold it for minutes
                return Synonyms(reader)
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / "wordnet.lock", timeout=LOCK_TIMEOUT_S):
                if reader := _open(folder) or _copy_debian(folder) or _download(folder):
                    return Synonyms(reader)
        except (
            OSError,
            NotImplementedError,
        ):  # not writable, no space, no file locks, or the lock is held for too long
            continue
    return Synonyms(None)


@lru_cache(maxsize=1)
def warn_without_wordnet() -> None:
    """Print once per process if METEOR does not count synonyms."""
    if not find_synonyms().complete:
        print(
            "METEOR: expected WordNet, found no complete copy. Synonyms do not count, and scores are not official ones. "
            "Run `python -m nltk.downloader wordnet`, or install Debian's wordnet-base and wordnet-sense-index.",
            file=sys.stderr,
        )


def _open(folder: Path) -> WordNetCorpusReader | None:
    """Return a reader of the copy in an nltk data folder, unpacked or zipped; None if there is none that is complete."""
    if str(folder) not in nltk.data.path:  # nltk 3.10 refuses to read anything outside of these folders
        nltk.data.path.append(str(folder))
    unpacked, zipped = folder / "corpora" / "wordnet", folder / "corpora" / "wordnet.zip"
    for path, pointer in (
        (unpacked, nltk.data.FileSystemPathPointer),
        (zipped, nltk.data.ZipFilePathPointer),
    ):
        if not path.exists():
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # "multilingual functions are not available", "no synset found"
                reader = WordNetCorpusReader(
                    pointer(str(path), *(["wordnet/"] if path == zipped else [])), None
                )
                for word, part in LAST_WORDS:
                    reader.synsets(word, part)[0].lemmas()
            return reader
        except (
            Exception
        ):  # each kind of damage raises another: BadZipFile, AssertionError, IndexError, StopIteration, …
            continue
    return None


def _copy_debian(folder: Path) -> WordNetCorpusReader | None:
    """Copy Debian's WordNet to `folder`, because nltk follows no links out of its data folders."""
    if not (DEBIAN_FOLDER / "index.sense").is_file():
        return None
    with atomic_folder(folder / "corpora" / "wordnet") as new:
        for pattern in ("data.*", "index.*", "*.exc", "cntlist*"):
            for file in DEBIAN_FOLDER.glob(pattern):
                shutil.copyfile(file, new / file.name)
        parts = [(name, PART_OF_SPEECH[name.split(".")[0]]) for name in LEXICOGRAPHER_FILES]
        write_text(
            new / "lexnames", "".join(f"{i:02d}\t{name}\t{part}\n" for i, (name, part) in enumerate(parts))
        )
    return _open(folder)


def _download(folder: Path) -> WordNetCorpusReader | None:
    """Let nltk download WordNet to `folder`, unless the environment variable BEIT3LIB_OFFLINE is set."""
    if os.environ.get("BEIT3LIB_OFFLINE"):
        return None
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(
        DOWNLOAD_TIMEOUT_S
    )  # nltk sets none, and a network that drops packets would block forever
    try:
        # nltk prints errors to the stderr of its import, which a notebook or a test may have closed
        nltk.download("wordnet", str(folder), quiet=True, force=True, print_error_to=io.StringIO())
    except Exception:  # a server may answer anything
        return None
    finally:
        socket.setdefaulttimeout(before)
    return _open(folder)


def _cache_folders() -> list[Path]:
    """Return the folders for the copy of this user: the cache folder, then the temporary folder if home is not writable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    temporary = Path(tempfile.gettempdir(), f"beit3lib-{os.getuid()}", "nltk_data")
    return [cache / "beit3lib" / "nltk_data", temporary] if cache.is_absolute() else [temporary]
