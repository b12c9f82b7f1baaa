"""WordNet, from which METEOR takes synonyms, in the copy that nltk finds or downloads.

`meteor_score` takes this module in place of nltk's reader, of which it calls nothing but `synsets`.
"""

import io
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import nltk
from nltk.corpus.reader import WordNetCorpusReader


@lru_cache(maxsize=1)
def load_wordnet() -> WordNetCorpusReader | None:
    """Return nltk's WordNet, downloaded if this host has none; None, after one warning, if that fails."""
    # nltk reads the first of these, even if it is empty or half unpacked and hides a good copy.
    paths = (Path(root, "corpora", name) for name in ("wordnet", "wordnet.zip") for root in nltk.data.path)
    copies = [path for path in paths if path.exists()]
    try:
        if not copies:
            nltk.download("wordnet", quiet=True, print_error_to=io.StringIO())
        nltk.corpus.wordnet.synsets("fast")  # a noun, verb, adjective and adverb: opens all data files
        return nltk.corpus.wordnet
    except Exception:  # nltk raises LookupError, OSError, BadZipFile, ValueError, …, depending on the damage
        found = f"a damaged copy. Delete {copies[0]} and run" if copies else "none. Run"
        print(
            f"METEOR: expected WordNet, found {found} `python -m nltk.downloader wordnet`. "
            "Until then synonyms do not count, and scores are not official.",
            file=sys.stderr,
        )
        return None


@lru_cache(maxsize=200_000)
def synsets(word: str) -> list[SimpleNamespace]:
    """Return the single-word lemmas of all synsets of `word` as one synset: METEOR reads nothing else."""
    reader = load_wordnet()
    found = (lemma for synset in (reader.synsets(word) if reader else ()) for lemma in synset.lemmas())
    lemmas = {lemma.name(): lemma for lemma in found if "_" not in lemma.name()}
    return [SimpleNamespace(lemmas=lemmas.values)]
