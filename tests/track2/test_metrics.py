"""Scores equal those of the official script and of the libraries, and unusable inputs are listed."""

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from wts_tree import add_bdd, add_view, phase, write

from beit3lib.track2 import metrics
from beit3lib.track2.wordnet import load_wordnet

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "official_scores.json"
TEXTS = (
    "The automobile halts, the bicycle stops.",  # synonyms
    "The pedestrian, a man in his 40s, stands by the kerb.",
    "A woman walks slowly towards the crossing and looks at the car.",
    "It's 7.5 m away, isn't it? The driver can't see the boy's bag (red).",
    "The car stops, the car stops, the car stops.",
    "Road",
    "...",
    "Größe 1,80 m, naïve “quotes” – and dashes",
)


@pytest.fixture(scope="module")
def reader():
    """nltk's WordNet reader."""
    return load_wordnet() or pytest.skip("no WordNet: .ci/wordnet.sh .nltk_data")


def of_libraries(prediction, reference, reader):
    """Score a pair with the libraries' own functions without caches, and CIDEr-D from its definition."""
    from nltk.tokenize import TreebankWordTokenizer
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    a, b = (TreebankWordTokenizer().tokenize(text) for text in (prediction, reference))
    cosines = []
    for n in range(1, 5):
        x, y = (Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in (a, b))
        norm = math.hypot(*x.values()) * math.hypot(*y.values())
        cosines.append(sum(min(x[gram], y[gram]) * y[gram] for gram in x) / norm if norm else 0.0)
    difference = max(len(a) - 1, 0) - max(len(b) - 1, 0)
    return {
        "bleu": sentence_bleu([b], a, smoothing_function=SmoothingFunction().method3),
        "meteor": meteor_score([b], a, wordnet=reader),
        "rouge-l": RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"].fmeasure,
        "cider": 10 * sum(cosines) / 4 * math.exp(-(difference**2) / 72),
    }


def random_texts(number):
    """Draw texts of words with common stems."""
    stems = "walk cross turn stop road car automobile man person light look watch street zebr qux".split()
    words, rng = [stem + end for stem in stems for end in ("", "s", "ing", "ed")], random.Random(0)
    return [" ".join(rng.choices(words, k=rng.randint(30, 60))) + "." for _ in range(number)]


@pytest.mark.skipif(not OFFICIAL.is_file(), reason=f"no official scores at {OFFICIAL}")
def test_scores_equal_the_official_script(reader):
    for pair in json.loads(OFFICIAL.read_text()):
        found = metrics.score_caption(pair["prediction"], pair["reference"])
        assert found == pytest.approx({metric: pair[metric] for metric in metrics.METRICS}, abs=1e-6)


def test_pairs_score_as_the_libraries_score_them(reader):
    texts = random_texts(60)
    pairs = [(a, b) for a in TEXTS for b in TEXTS] + list(zip(texts[::2], texts[1::2], strict=True))
    for pair in pairs:
        assert metrics.score_caption(*pair) == pytest.approx(of_libraries(*pair, reader), abs=1e-9), pair


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(monkeypatch):
    predictions, references = [*TEXTS, *TEXTS], [*reversed(TEXTS), *TEXTS]
    expected = [metrics.score_caption(*pair) for pair in zip(predictions, references, strict=True)]
    monkeypatch.setattr(metrics, "PAIRS_PER_PROCESS", 5)
    monkeypatch.setattr(metrics.os, "cpu_count", lambda: 2)
    table = metrics.score_pairs(predictions, references)
    assert table[list(metrics.METRICS)].to_dict("records") == expected
    assert table["score"].tolist() == [metrics.mean_score(scores) for scores in expected]


def test_captions_of_aspects_without_reference_or_words():
    text = "A car stops on the left."
    rows = [(text, text), ("", ""), (text, ""), (" ", text), (text, None)]
    table = pd.DataFrame(rows, columns=["caption", "reference"], index=list("abcde"))
    found = metrics.score_predictions(table)
    scores = found["official_score"].tolist()
    assert scores[0] > 90 and scores[1:4] == [100, 0, 0] and math.isnan(scores[4])


# The first ends with letters of "_caption.json", which the official script cuts off as well.
EVENT, NORMAL = "20230707_8_action", "20231013_105827_normal_192.168.0.14_1_event_2"


@pytest.fixture
def root(tmp_path):
    """A download with two WTS scenarios of two views and four phases each, and a BDD video of two phases."""
    phases = [phase(label, 0, 1) for label in "4012"]
    for scenario, between in ((EVENT, ""), (NORMAL, "normal_trimmed")):
        for view in ("overhead_view", "vehicle_view"):
            add_view(tmp_path, view, ["a.mp4"], phases, scenario, "val", between)
    add_bdd(tmp_path, 2912, [phase("avoidance", 0, 1), phase("1", 0, 1)], "val")
    return tmp_path


def caption_file(root, scenario=EVENT, view="vehicle_view"):
    return root / "annotations/caption/val" / scenario / view / f"{scenario}_caption.json"


def folders(root):
    return root / "annotations/caption/val", root / "external/BDD_PC_5K/annotations/caption/val"


def perfect(root):
    built = {}
    for folder in folders(root):
        for (scenario, label), captions in metrics.read_ground_truth(folder, []).items():
            entry = {"labels": [label], **{f"caption_{subject}": text for subject, text in captions.items()}}
            built.setdefault(scenario, []).append(entry)
    return built


def score(root, submission):
    return metrics.score_submission(write(root / "submission.json", submission), *folders(root))


def test_perfect_predictions_score_100(root):
    built = perfect(root)
    assert list(built) == [EVENT, NORMAL, "video2912"]
    assert [entry["labels"] for entry in built["video2912"]] == [["avoidance"], ["1"]]
    scores = score(root, built)
    found = [scores.final, scores.internal["score"], scores.external["score"]]
    assert found == pytest.approx([100] * 3, abs=0.1)
    assert scores.missing == scores.problems == [] and len(scores.segments) == 2 * 10
    assert set(scores.segments.loc[scores.segments["label"] == "avoidance", "phase"]) == {4}
    scores = metrics.score_submission(root / "submission.json", folders(root)[0])
    assert scores.external is None and scores.final == scores.internal["score"]
    assert len(scores.problems) == 1 and "2 segments not in the ground truth" in scores.problems[0].what


def test_missing_captions_count_0_and_are_listed(root):
    built = perfect(root)
    built[EVENT][0]["caption_vehicle"] = " "
    del built[NORMAL]
    scores = score(root, built)
    assert scores.missing[0] == f"{EVENT} label 4: no vehicle caption" and len(scores.missing) == 1 + 2 * 4
    assert scores.internal["score"] == pytest.approx(100 * 7 / 16, abs=0.1)
    assert scores.final == pytest.approx((scores.internal["score"] + scores.external["score"]) / 2)


@pytest.mark.parametrize("spelling", ["04", " 4 ", 4])
def test_spellings_of_a_number_are_one_segment_and_its_word_another(root, spelling):
    built = perfect(root)
    built[EVENT][0]["labels"] = [spelling]
    path = caption_file(root)
    write(path, path.read_text().replace('"labels": ["4"]', f'"labels": [{json.dumps(spelling)}]'))
    scores = score(root, built)
    assert scores.missing == scores.problems == [] and len(scores.segments) == 2 * 10
    built["video2912"][0]["labels"] = [spelling]
    scores = score(root, built)
    assert len(scores.missing) == 2 and "such as video2912 label 4" in scores.problems[0].what


def test_unusable_files_and_absent_or_differing_captions_are_listed(root):
    built, contents = perfect(root), ("{", "[]", {"event_phase": 5}, {"event_phase": [{"labels": []}]})
    for number, content in enumerate(contents):
        write(root / f"annotations/caption/val/video{number}_caption.json", content)
    write(root / "annotations/caption/val/video9_bbox.json", {"annotations": []})
    entries = [phase("0", 0, 1, caption_vehicle="Another car."), phase("3", 0, 1, caption_vehicle=None)]
    write(caption_file(root), {"event_phase": entries})
    scores = score(root, built)
    assert scores.final == pytest.approx(100, abs=0.1) and len(scores.segments) == 2 * 10
    names = [f"video{number}_caption.json" for number in range(4)]
    found = sorted(problem.where for problem in scores.problems)
    expected = ["label 0", "label 3", *names]
    assert len(found) == 6 and all(map(str.endswith, found, expected)), found


def test_another_split_or_captions_of_the_test_split_are_errors(root):
    with pytest.raises(ValueError, match="got meta. Give a submission and captions of the same split"):
        score(root, {"meta": {}})
    for path in root.rglob("*_caption.json"):
        write(path, {"event_phase": [{"labels": ["0"]}]})
    with pytest.raises(ValueError, match="the test split has no captions"):
        score(root, {})


def test_the_command_takes_the_official_flags(root, monkeypatch, capsys):
    built = perfect(root)
    del built[EVENT][0]
    write(root / "submission.json", built)
    arguments = ["--predictions_file", root / "submission.json", "--ground_truth", *folders(root)]
    monkeypatch.setattr(sys, "argv", ["metrics", *map(str, arguments)])
    metrics.main()
    shown = capsys.readouterr().out
    assert "internal" in shown and "external" in shown and "over 10 segments" in shown
    assert f"2 missing, counted as 0:\n  {EVENT} label 4: no vehicle caption\n" in shown

    write(root / "submission.json", "[]")
    with pytest.raises(SystemExit, match="submission.json: expected an object"):
        metrics.main()
