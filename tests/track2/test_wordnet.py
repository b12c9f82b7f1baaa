"""METEOR finds a complete WordNet, skips or remakes broken copies, and never ends a training."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nltk
import pytest

from beit3lib.track2 import metrics, wordnet


@pytest.fixture(scope="module")
def complete_copy():
    """The folder of an unpacked, complete WordNet."""
    reader = wordnet.find_synonyms().reader
    root = getattr(getattr(reader, "root", None), "path", None)
    if root is None or not Path(root).is_dir():
        pytest.skip("no unpacked WordNet: install Debian's packages wordnet-base and wordnet-sense-index")
    return Path(root)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with an empty nltk data folder, an empty cache, no Debian packages and no network."""
    folder = tmp_path / "nltk_data"
    (folder / "corpora").mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(wordnet.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setenv("BEIT3LIB_OFFLINE", "1")
    caches = (wordnet.find_synonyms, wordnet.warn_without_wordnet)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def damage(folder, how, complete_copy):
    """Write a broken WordNet to an nltk data folder."""
    copy = folder / "corpora" / "wordnet"
    if how == "broken zip":
        (folder / "corpora" / "wordnet.zip").write_bytes(b"PK\x03\x04 this is no archive")
        return
    shutil.copytree(complete_copy, copy)
    if how == "half unpacked":
        for name in ("data.verb", "index.verb", "lexnames"):
            (copy / name).unlink()
    elif how == "empty":
        for path in copy.iterdir():
            path.write_bytes(b"")
    else:
        path = copy / how.removeprefix("cut ")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("how", ["broken zip", "half unpacked", "empty", "cut index.noun", "cut data.noun"])
def test_a_broken_copy_is_skipped_for_a_good_one_behind_it(host, complete_copy, how):
    first, second = host / "nltk_data", host / "second"
    damage(first, how, complete_copy)
    shutil.copytree(complete_copy, second / "corpora" / "wordnet")
    nltk.data.path.append(str(second))
    assert wordnet.find_synonyms().complete


@pytest.mark.parametrize("how", ["half unpacked", "cut data.noun"])
def test_a_broken_cache_is_remade_from_the_files_of_debian(host, complete_copy, monkeypatch, how):
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", complete_copy)
    cache = host / "cache" / "beit3lib" / "nltk_data"
    damage(cache, how, complete_copy)
    assert wordnet.find_synonyms().complete
    assert len((cache / "corpora" / "wordnet" / "lexnames").read_text().splitlines()) == 45
    assert (cache / "corpora" / "wordnet" / "data.noun").stat().st_size == (
        complete_copy / "data.noun"
    ).stat().st_size


def test_a_home_that_is_not_writable_is_replaced_by_the_temporary_folder(host, complete_copy, monkeypatch):
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", complete_copy)
    (host / "cache").write_text("a file where the cache folder should be")
    assert wordnet.find_synonyms().complete
    assert list((host / "temporary").glob("beit3lib-*/nltk_data/corpora/wordnet/index.noun"))


@pytest.mark.parametrize("how", ["broken zip", "cut data.noun"])
def test_without_a_complete_copy_meteor_is_marked_and_nothing_raises(host, complete_copy, capsys, how):
    damage(host / "nltk_data", how, complete_copy)
    text = "The automobile halts by the kerb."
    for _ in range(2):
        scores = metrics.score_segments({}, {("2023_a", "0"): {"vehicle": text, "pedestrian": text}})
    assert metrics.score_caption("The car halts by the kerb.", text)["meteor"] < 0.9
    assert (
        not scores.meteor_comparable
        and not scores.as_dict()["meteor_comparable"]
        and not metrics.meteor_is_comparable()
    )
    assert "fficial score" not in scores.name + metrics.score_name() + metrics.report(scores)
    assert "not official" in metrics.report(scores)
    assert capsys.readouterr().err.count("not official ones") == 1


def test_without_wordnet_stems_still_match(host):
    assert metrics.score_caption("walking", "walks")["meteor"] == 0.5
    assert metrics.score_caption("halt", "stop")["meteor"] == 0.0


def test_damage_in_the_middle_of_a_file_marks_meteor_and_raises_nothing(host, complete_copy):
    copy = host / "nltk_data" / "corpora" / "wordnet"
    shutil.copytree(complete_copy, copy)
    with open(copy / "data.noun", "r+b") as file:
        file.seek(1_000_000)
        file.write(b"\xff\n" * 2_000_000)
    assert metrics.meteor_is_comparable()
    assert (
        0
        <= metrics.score_caption("The car halts on the street.", "A vehicle stops at the road.")["meteor"]
        < 1
    )
    assert not metrics.meteor_is_comparable()


def test_a_failed_download_is_silent_and_leaves_meteor_without_synonyms(host, monkeypatch, capfd):
    monkeypatch.delenv("BEIT3LIB_OFFLINE")
    monkeypatch.setattr(nltk.downloader._downloader, "_url", "http://127.0.0.1:9/index.xml")
    monkeypatch.setattr(nltk.downloader._downloader, "_index", None)
    monkeypatch.setattr(nltk.downloader._downloader, "_index_timestamp", None)
    assert not wordnet.find_synonyms().complete
    assert capfd.readouterr() == ("", "")


def test_a_download_replaces_a_broken_archive_in_the_cache(host, complete_copy, monkeypatch):
    archive = shutil.make_archive(str(host / "served"), "zip", complete_copy.parent, complete_copy.name)
    monkeypatch.delenv("BEIT3LIB_OFFLINE")
    cache = host / "cache" / "beit3lib" / "nltk_data"
    (cache / "corpora").mkdir(parents=True)
    damage(cache, "broken zip", complete_copy)
    served = lambda name, folder, **options: shutil.copyfile(archive, Path(folder, "corpora", f"{name}.zip"))  # noqa: E731
    monkeypatch.setattr(nltk, "download", served)
    assert wordnet.find_synonyms().complete


@pytest.mark.slow
def test_four_processes_can_make_the_copy_at_once(tmp_path, complete_copy):
    code = (
        "import sys, pathlib, nltk; from beit3lib.track2 import metrics, wordnet; nltk.data.path[:] = []; "
        "wordnet.DEBIAN_FOLDER = pathlib.Path(sys.argv[1]); "
        "print(metrics.meteor_is_comparable(), metrics.score_caption('halt', 'stop')['meteor'])"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "BEIT3LIB_OFFLINE": "1", "NLTK_DATA": ""}
    command = [sys.executable, "-c", code, str(complete_copy)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [process.communicate()[0].split() for process in processes] == [["True", "0.5"]] * 4
    assert [path.name for path in (tmp_path / "beit3lib" / "nltk_data" / "corpora").iterdir()] == ["wordnet"]
