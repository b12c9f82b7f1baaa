"""The official score: equal to the official script's figures and to nltk's and rouge-score's own functions, and faster."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from beit3lib.track2 import metrics

SHARED = Path(__file__).parents[3] / "shared"
PERFECT = {"bleu": 1.0, "meteor": 1.0, "rouge-l": 1.0, "cider": 10.0}
TEXTS = (
    "The pedestrian, a man in his 40s, stands by the kerb.",
    "A woman walks slowly towards the crossing and looks at the car.",
    "The road is wet, level and narrow; traffic is light.",
    "It's 7.5 m away, isn't it? The driver can't see the boy's bag (red).",
    "The automobile halts.",
    "The car stops, the car stops, the car stops.",
    "Road",
    "...",
    "Größe 1,80 m, naïve “quotes” – and dashes",
)


@pytest.fixture(scope="module")
def wordnet():
    found = metrics.find_wordnet()
    if found is None:
        pytest.skip("no WordNet here: python -m nltk.downloader wordnet, or Debian's wordnet-base and wordnet-sense-index")
    return found


@pytest.fixture
def no_wordnet(monkeypatch):
    """As on a machine without WordNet and without network; what was looked up before and after is forgotten."""
    monkeypatch.setattr(metrics, "_WAYS", ())
    forget()
    yield
    forget()


def forget():
    metrics.find_wordnet.cache_clear()
    metrics.forget()


def official(prediction, reference):
    """A pair by the libraries' own functions, one call after the other, and CIDEr-D from its definition."""
    from nltk.tokenize import TreebankWordTokenizer
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    a, b = (TreebankWordTokenizer().tokenize(text) for text in (prediction, reference))
    return {
        "bleu": sentence_bleu([b], a, smoothing_function=SmoothingFunction().method3),
        "meteor": meteor_score([b], a),
        "rouge-l": RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"].fmeasure,
        "cider": plain_cider(a, b),
    }


def plain_cider(a, b):
    values = []
    for n in range(1, 5):
        counts = [defaultdict(int), defaultdict(int)]
        for count, tokens in zip(counts, (a, b), strict=True):
            for i in range(len(tokens) - n + 1):
                count[tuple(tokens[i : i + n])] += 1
        x, y = counts
        norm = math.prod(math.sqrt(sum(v * v for v in c.values())) for c in counts)
        values.append(sum(min(v, y[g]) * y[g] for g, v in list(x.items())) / norm if norm else 0.0)
    difference = max(len(a) - 1, 0) - max(len(b) - 1, 0)
    return 10 * sum(values) / 4 * math.exp(-(difference**2) / 72)


def made_up(number, words=90, seed=0):
    """Texts of many different words with stems in common, which the caches must not favour."""
    rng = random.Random(seed)
    stems = ["walk", "cross", "turn", "stop", "road", "car", "automobile", "man", "person", "light", "look", "watch", "street"]
    stems += ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randint(3, 8))) for _ in range(400)]
    vocabulary = [stem + end for stem in stems for end in ("", "s", "ing", "ed")]
    return [" ".join(rng.choices(vocabulary, k=rng.randint(words - 30, words + 30))).capitalize() + "." for _ in range(number)]


def close(found, wanted):
    return all(found[m] == pytest.approx(wanted[m], abs=1e-9) for m in metrics.METRICS)


# --- a pair --------------------------------------------------------------------------------------------------------


def test_official_pairs(wordnet):
    path = SHARED / "data" / "official_scores.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    for pair in json.loads(path.read_text()):
        found = metrics.score_caption(pair["prediction"], pair["reference"])
        assert {m: found[m] for m in metrics.METRICS} == pytest.approx({m: pair[m] for m in metrics.METRICS}, abs=1e-6)


@pytest.mark.parametrize("prediction", TEXTS)
def test_every_pair_as_the_libraries_score_it(wordnet, prediction):
    for reference in TEXTS:
        assert close(metrics.score_caption(prediction, reference), official(prediction, reference)), reference


def test_random_texts_as_the_libraries_score_them(wordnet):
    texts = made_up(60, words=45)
    for prediction, reference in zip(texts[::2], texts[1::2], strict=True):
        assert close(metrics.score_caption(prediction, reference), official(prediction, reference))


def test_synonyms_and_stems_count(wordnet):
    assert metrics._meteor(("halt",), ("stop",)) == metrics._meteor(("walking",), ("walks",)) == 0.5
    assert metrics._meteor(("bicycle",), ("car",)) == 0.0
    assert metrics._meteor(("automobile",), ("car",)) == 0.0  # as nltk does it: WordNet does not know the stem "automobil"
    assert "motorcar" in metrics.synonyms("car") and not any("_" in word for word in metrics.synonyms("car"))


def test_a_perfect_caption_scores_everything():
    text = " ".join(TEXTS[:4])
    assert metrics.score_caption(text, text) == pytest.approx(PERFECT, abs=1e-5)


@pytest.mark.parametrize("pair", [("", "A road."), ("A road.", ""), ("  \n", "A road."), ("", "")])
def test_empty_captions_score_nothing(pair):
    assert metrics.score_caption(*pair) == dict.fromkeys(metrics.METRICS, 0.0)


def test_length_factor_falls_as_the_score_does():
    assert metrics.length_factor(100, 100) == 1
    assert metrics.length_factor(106, 100) == metrics.length_factor(94, 100) == pytest.approx(math.exp(-0.5))
    assert metrics.length_factor(112, 100) == pytest.approx(math.exp(-2))


def test_common_subsequence_against_the_table():
    rng = random.Random(1)
    for _ in range(50):
        a, b = (rng.choices("abcde", k=rng.randint(0, 80)) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert metrics.common_subsequence(a, b) == table[-1][-1]


def test_tokens_are_nltks_and_stems_rouge_scores():
    from nltk.tokenize import TreebankWordTokenizer
    from rouge_score.tokenizers import DefaultTokenizer

    rng = random.Random(2)
    pieces = [
        *"aZ0   .,:;?!%/'--\"()[]$@`é\n\t",
        "n't",
        "'s",
        "'ll",
        "cannot",
        "gonna",
        "...",
        "''",
        " 'tis",
        " word ",
        "12,5",
        "ed ",
    ]
    treebank, stemmed = TreebankWordTokenizer(), DefaultTokenizer(use_stemmer=True)
    plain = 0
    for _ in range(4000):
        text = "".join(rng.choices(pieces[: rng.choice((15, len(pieces)))] + pieces[-9:], k=rng.randint(0, 12)))
        plain += bool(metrics._PLAIN.fullmatch(text))
        assert metrics._tokens(text) == tuple(treebank.tokenize(text)), text
        assert metrics._stems(text) == tuple(stemmed.tokenize(text)), text
    assert 1000 < plain < 3500


# --- WordNet -------------------------------------------------------------------------------------------------------


def test_without_wordnet_the_figure_says_so_once(no_wordnet, capsys):
    text = "The automobile halts by the kerb."
    scores = metrics.score_segments({}, {("2023_a", "0"): {"vehicle": text, "pedestrian": text}})
    assert metrics.score_caption("The car halts by the kerb.", text)["meteor"] < 0.9
    assert not scores.meteor_comparable and not scores.as_dict()["meteor_comparable"]
    assert capsys.readouterr().err.count("NOT comparable") == 1
    assert "NOT comparable" in metrics.report(scores)


def test_without_wordnet_stems_still_count(no_wordnet):
    assert metrics._meteor(("walking",), ("walks",)) == 0.5
    assert metrics._meteor(("halt",), ("stop",)) == 0.0


def test_a_download_that_fails_is_the_next_ways_turn_and_prints_nothing(monkeypatch, capfd):
    """nltk would print into the stderr of when it was imported, which in a notebook or a test may be closed by now."""
    import nltk.downloader

    monkeypatch.delenv("BEIT3LIB_OFFLINE", raising=False)
    monkeypatch.setattr(nltk.downloader._downloader, "_url", "http://127.0.0.1:9/index.xml")
    monkeypatch.setattr(nltk.downloader._downloader, "_index", None)
    monkeypatch.setattr(nltk.downloader._downloader, "_index_timestamp", None)
    with pytest.raises(LookupError, match="nltk's download failed"):
        metrics._download()
    assert capfd.readouterr() == ("", "")


def test_debian_files_are_enough(tmp_path, monkeypatch):
    """A fresh process that finds no nltk data, no network, and may only write to a cache of its own."""
    if not (metrics.DEBIAN_WORDNET / "index.sense").is_file():
        pytest.skip(f"{metrics.DEBIAN_WORDNET}: Debian's wordnet-base and wordnet-sense-index are not installed")
    code = (
        "import nltk; nltk.data.path[:] = []; from beit3lib import metrics; "
        "print(metrics.meteor_is_comparable(), metrics._meteor(('halt',), ('stop',)))"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "BEIT3LIB_OFFLINE": "1", "NLTK_DATA": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "0.5"], done.stderr
    copied = tmp_path / "beit3lib" / "nltk_data" / "corpora" / "wordnet"
    assert len((copied / "lexnames").read_text().splitlines()) == 45
    assert [path.name for path in copied.parent.iterdir()] == ["wordnet"]


def test_a_copy_that_was_cut_off_is_made_again(tmp_path, monkeypatch):
    source = tmp_path / "debian"
    source.mkdir()
    for name in ("data.noun", "index.noun", "index.sense", "noun.exc", "cntlist"):
        (source / name).write_text(name)
    monkeypatch.setattr(metrics, "DEBIAN_WORDNET", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    half = tmp_path / "cache" / "beit3lib" / "nltk_data" / "corpora" / "wordnet"
    half.mkdir(parents=True)
    (half / "data.noun").write_text("da")
    assert metrics._copy_debian() == half.parents[1]
    assert (half / "data.noun").read_text() == "data.noun" and (half / "lexnames").is_file()


def test_lexnames_are_wordnets_45():
    lines = [line.split("\t") for line in metrics._lexnames().splitlines()]
    assert [int(number) for number, *_ in lines] == list(range(45))
    assert lines[0][1:] == ["adj.all", "3"] and lines[3][1:] == ["noun.Tops", "1"] and lines[44][1:] == ["adj.ppl", "3"]


# --- many pairs ----------------------------------------------------------------------------------------------------


def test_pairs_come_back_in_their_order():
    predictions, references = [*TEXTS, *TEXTS], [*reversed(TEXTS), *TEXTS]
    table = metrics.score_pairs(predictions, references)
    wanted = [metrics.score_caption(*pair) for pair in zip(predictions, references, strict=True)]
    assert table[list(metrics.METRICS)].to_dict("records") == wanted
    assert table["score"].tolist() == [metrics.mean_score(scores) for scores in wanted]


def test_no_pairs_are_a_table_too():
    assert metrics.score_pairs([], []).shape == (0, 5)


def test_pairs_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="found 2 and 1"):
        metrics.score_pairs(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="jobs"):
        metrics.score_pairs(["a"], ["a"], jobs=0)


@pytest.mark.slow
def test_processes_find_the_same():
    texts = made_up(14, words=40)
    assert metrics.score_pairs(texts[:7], texts[7:], jobs=2).equals(metrics.score_pairs(texts[:7], texts[7:], jobs=1))


@pytest.mark.slow
def test_faster_than_pair_by_pair(wordnet):
    """500 segments, both subjects, no text twice; both ways in one run, WordNet loaded before, nothing else cached."""
    texts = made_up(2000)
    predictions, references = texts[:1000], texts[1000:]
    official("car", "road")
    started = time.process_time()
    wanted = [official(*pair) for pair in zip(predictions, references, strict=True)]
    between = time.process_time()
    metrics.forget()
    again = time.process_time()
    table = metrics.score_pairs(predictions, references, jobs=1)
    official_s, ours_s = between - started, time.process_time() - again
    print(f"500 segments: {official_s:.2f} s pair by pair, {ours_s:.2f} s here, {official_s / ours_s:.1f} times faster")
    assert all(close(found, values) for found, values in zip(table.to_dict("records"), wanted, strict=True))
    assert official_s / ours_s >= 5  # 6 to 9 on a quiet machine


# --- a submission --------------------------------------------------------------------------------------------------


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def phase(label, name):
    """Captions long enough for METEOR: of n words the perfect one scores 1 - 0.5 / n^3."""
    rest = " ".join(f"Sentence {n} says something else about this road, its light and its weather." for n in range(4))
    captions = {f"caption_{s}": f"The {s} of {name} in phase {label} is near. {rest}" for s in metrics.SUBJECTS}
    return {"labels": [label], **captions}


@pytest.fixture
def tree(tmp_path):
    """Two WTS scenarios with their views, one below normal_trimmed, a name that ends as the suffix does, one of BDD."""
    root = tmp_path / "caption"
    for folder, name in (("", "20230707_8_SN46_T1"), ("normal_trimmed/", "20231013_105827_normal_192.168.0.14_1_event_2")):
        for view in ("overhead_view", "vehicle_view"):
            phases = [{**phase(label, name), "start_time": "1.0"} for label in "4012"]
            write(root / folder / name / view / f"{name}_caption.json", {"id": 1, "event_phase": phases})
    write(root / "scene_1_caption.json", {"event_phase": [phase("0", "scene_1")]})
    write(root / "video2912_caption.json", {"fps": "59", "event_phase": [phase(x, "video2912") for x in ("avoidance", "1")]})
    return root


def perfect(tree):
    built = {}
    for (scenario, label), captions in metrics.read_ground_truth(tree).items():
        entry = {"labels": [label]} | {f"caption_{subject}": text for subject, text in captions.items()}
        built.setdefault(scenario, []).append(entry)
    return built


def test_names_and_labels_of_the_ground_truth(tree):
    built = perfect(tree)
    assert set(built) == {
        "20230707_8_SN46_T1",
        "20231013_105827_normal_192.168.0.14_1_event_2",
        "scene_1",
        "video2912",
    }
    assert [entry["labels"] for entry in built["video2912"]] == [["avoidance"], ["1"]]


def test_perfect_predictions_score_100(tree):
    scores = metrics.score_submission(perfect(tree), tree)
    assert scores.final == pytest.approx(100, abs=0.005)
    for part in (scores.internal, scores.external):
        assert {m: part[m] for m in metrics.METRICS} == pytest.approx(PERFECT, abs=1e-4)
    assert scores.missing == [] and scores.problems == []
    columns = ["scenario", "label", "phase", "subject", *metrics.METRICS, "score"]
    assert scores.segments[columns].shape == (2 * 11, 9)
    assert scores.segments.set_index(["scenario", "label"]).loc[("video2912", "avoidance"), "phase"].tolist() == [4, 4]


def test_a_submission_for_other_scenarios_is_refused(tree):
    for other, found in (({}, "no key"), ({"meta": {}, "predictions": []}, "meta, predictions")):
        with pytest.raises(
            ValueError, match=f"such as .*; found {found}. Give the submission and the captions of the same split"
        ):
            metrics.score_submission(other, tree)


def test_what_is_missing_counts_0_and_is_listed(tree):
    built = perfect(tree)
    del built["scene_1"]
    built["20230707_8_SN46_T1"][0]["caption_vehicle"] = " "
    del built["20230707_8_SN46_T1"][1]
    scores = metrics.score_submission(built, tree)
    assert scores.missing == [
        "20230707_8_SN46_T1 label 4: no vehicle caption",
        "20230707_8_SN46_T1 label 0: no segment",
        "scene_1 label 0: no segment",
    ]
    assert scores.internal["score"] == pytest.approx(100 * 6.5 / 9, abs=0.01)
    assert scores.external["score"] == pytest.approx(100, abs=0.005)
    assert scores.final == pytest.approx((scores.internal["score"] + scores.external["score"]) / 2)


def test_the_final_score_is_of_the_parts_that_exist(tree):
    built = perfect(tree)
    (tree / "video2912_caption.json").unlink()
    scores = metrics.score_submission(built, tree)
    assert scores.external is None and scores.final == scores.internal["score"] == pytest.approx(100, abs=0.005)
    assert "external not in the ground truth" in " ".join(metrics.report(scores).split())
    assert "2 segments (video2912 label avoidance" in str(scores.problems[0])


def test_labels_are_matched_as_they_are_written(tree):
    built = perfect(tree)
    built["video2912"][0]["labels"] = ["4"]
    scores = metrics.score_submission(built, tree)
    assert scores.missing == ["video2912 label avoidance: no segment"]
    assert "video2912 label 4" in str(scores.problems[0])


def test_other_and_broken_files_are_noted_and_do_no_harm(tree):
    built = perfect(tree)
    write(tree / "view_list.json", [1, 2])
    write(tree / "video2_bbox.json", {"annotations": []})
    write(tree / "video3_caption.json", "{")
    write(tree / "video4_caption.json", ["no", "object"])
    write(tree / "video5_caption.json", {"event_phase": [{"labels": ["0"]}, "none", phase("1", "video5")]})
    write(tree / "._video6_caption.json", "\x00")
    built["video5"] = [phase("1", "video5")]
    scores = metrics.score_submission(built, tree)
    assert scores.final == pytest.approx(100, abs=0.005) and len(scores.segments) == 2 * 12
    noted = "\n".join(map(str, scores.problems))
    assert len(scores.problems) == 5 and "2 other JSON files (video2_bbox.json, view_list.json) passed over" in noted
    for where in ("video3_caption.json", "video4_caption.json", "video5_caption.json: label 0", "video5_caption.json: phase 1"):
        assert where in noted


def test_views_that_disagree_are_noted(tree):
    name = "20230707_8_SN46_T1"
    write(tree / name / "vehicle_view" / f"{name}_caption.json", {"event_phase": [phase("0", "elsewhere")]})
    problems = []
    truth = metrics.read_ground_truth(tree, problems)
    assert "20230707_8_SN46_T1" in truth[name, "0"]["vehicle"] and len(truth) == 11
    assert len(problems) == 1 and "label 0: captions differ" in str(problems[0])


def test_a_submission_of_odd_shape_is_scored_as_far_as_it_goes(tree):
    built = perfect(tree) | {"scene_1": {"labels": ["0"]}}
    built["video2912"] += ["none", {"caption_vehicle": "no labels"}, {"labels": []}, built["video2912"][0]]
    scores = metrics.score_submission(built, tree)
    assert scores.missing == ["scene_1 label 0: no segment"] and len(scores.problems) == 5
    assert scores.external["score"] == pytest.approx(100, abs=0.005)


def test_nothing_to_score_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected caption files"):
        metrics.score_submission({}, tmp_path)
    write(tmp_path / "video1_caption.json", {"event_phase": [{"labels": ["0"]}]})
    with pytest.raises(ValueError, match="test split has no captions"):
        metrics.score_submission({}, tmp_path)


# --- the command ---------------------------------------------------------------------------------------------------


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["metrics", *map(str, arguments)])
    metrics.main()


def test_the_command_with_the_official_flags(tree, tmp_path, monkeypatch, capsys):
    write(tmp_path / "submission.json", perfect(tree))
    out = tmp_path / "scores.json"
    call(monkeypatch, "--predictions_file", tmp_path / "submission.json", "--ground_truth", tree, "--json", out)
    shown = capsys.readouterr().out
    assert "final score 100.00 over 11 segments" in shown
    assert [line.split() for line in shown.splitlines()][1] == ["internal", "1.0000", "1.0000", "1.0000", "10.0000", "100.00"]
    written = json.loads(out.read_text())
    assert written["final"] == pytest.approx(100, abs=0.005) and written["segments"] == 11 and written["missing"] == []


@pytest.mark.parametrize(("content", "message"), [(None, "found none"), ("{", "expected JSON"), ("[]", "found list")])
def test_the_command_says_what_is_wrong_with_the_file(tree, tmp_path, monkeypatch, content, message):
    if content is not None:
        write(tmp_path / "submission.json", content)
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, "--predictions_file", tmp_path / "submission.json", "--ground_truth", tree)


def test_a_long_list_of_missing_segments_is_cut_and_says_so(tree):
    truth = {(f"video{n}", "0"): {"vehicle": "A car.", "pedestrian": "A man."} for n in range(30)}
    shown = metrics.report(metrics.score_segments({}, truth))
    assert "30 missing, counted as 0:" in shown and "… 10 more; --json lists them all" in shown


def test_scoring_needs_no_deep_learning():
    code = (
        "import sys, beit3lib.track2.metrics as m; m.score_caption('a car', 'a road'); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
