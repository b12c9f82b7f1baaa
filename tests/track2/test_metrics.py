"""The score equals that of the official script and of the libraries' own functions, and unusable inputs are listed."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from beit3lib.data.schema import SUBJECTS
from beit3lib.track2 import metrics, wordnet

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
def reader():
    """nltk's WordNet reader."""
    found = wordnet.find_synonyms().reader
    if found is None:
        pytest.skip(
            "no WordNet: python -m nltk.downloader wordnet, or Debian's wordnet-base and wordnet-sense-index"
        )
    return found


def official(prediction, reference, reader):
    """Score a pair with the libraries' own functions without caches, and CIDEr-D from its definition."""
    from nltk.tokenize import TreebankWordTokenizer
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    a, b = (TreebankWordTokenizer().tokenize(text) for text in (prediction, reference))
    return {
        "bleu": sentence_bleu([b], a, smoothing_function=SmoothingFunction().method3),
        "meteor": meteor_score([b], a, wordnet=reader),
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


def random_texts(number, words=90, seed=0):
    """Draw texts of many different words with common stems, so that caches are of little use."""
    rng = random.Random(seed)
    stems = [
        "walk",
        "cross",
        "turn",
        "stop",
        "road",
        "car",
        "automobile",
        "man",
        "person",
        "light",
        "look",
        "watch",
        "street",
    ]
    stems += ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randint(3, 8))) for _ in range(400)]
    vocabulary = [stem + end for stem in stems for end in ("", "s", "ing", "ed")]
    return [
        " ".join(rng.choices(vocabulary, k=rng.randint(words - 30, words + 30))).capitalize() + "."
        for _ in range(number)
    ]


def close(found, expected):
    return all(found[m] == pytest.approx(expected[m], abs=1e-9) for m in metrics.METRICS)


def test_scores_equal_the_official_script(reader):
    path = SHARED / "data" / "official_scores.json"
    if not path.is_file():
        pytest.skip(f"{path}: expected the official scores, found none")
    for pair in json.loads(path.read_text()):
        found = metrics.score_caption(pair["prediction"], pair["reference"])
        assert {m: found[m] for m in metrics.METRICS} == pytest.approx(
            {m: pair[m] for m in metrics.METRICS}, abs=1e-6
        )


@pytest.mark.parametrize("prediction", TEXTS)
def test_every_pair_scores_as_the_libraries_score_it(reader, prediction):
    for reference in TEXTS:
        assert close(metrics.score_caption(prediction, reference), official(prediction, reference, reader)), (
            reference
        )


def test_random_texts_score_as_the_libraries_score_them(reader):
    texts = random_texts(60, words=45)
    for prediction, reference in zip(texts[::2], texts[1::2], strict=True):
        assert close(metrics.score_caption(prediction, reference), official(prediction, reference, reader))


def test_synonyms_and_stems_match(reader):
    assert (
        metrics.score_caption("halt", "stop")["meteor"]
        == metrics.score_caption("walking", "walks")["meteor"]
        == 0.5
    )
    assert metrics.score_caption("bicycle", "car")["meteor"] == 0.0
    # nltk looks up stems, and WordNet does not contain the stem "automobil"
    assert metrics.score_caption("automobile", "car")["meteor"] == 0.0


def test_a_perfect_caption_scores_the_maximum():
    text = " ".join(TEXTS[:4])
    assert metrics.score_caption(text, text) == pytest.approx(PERFECT, abs=1e-5)


@pytest.mark.parametrize("pair", [("", "A road."), ("A road.", ""), ("  \n", "A road."), ("", "")])
def test_empty_captions_score_0(pair):
    assert metrics.score_caption(*pair) == dict.fromkeys(metrics.METRICS, 0.0)


def test_the_longest_common_subsequence_equals_dynamic_programming():
    rng = random.Random(1)
    for _ in range(50):
        a, b = (rng.choices("abcde", k=rng.randint(0, 80)) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert metrics.common_subsequence(a, b) == table[-1][-1]


def test_scores_keep_the_order_of_pairs():
    predictions, references = [*TEXTS, *TEXTS], [*reversed(TEXTS), *TEXTS]
    table = metrics.score_pairs(predictions, references)
    expected = [metrics.score_caption(*pair) for pair in zip(predictions, references, strict=True)]
    assert table[list(metrics.METRICS)].to_dict("records") == expected
    assert table["score"].tolist() == [metrics.mean_score(scores) for scores in expected]


def test_no_pairs_give_an_empty_table():
    assert metrics.score_pairs([], []).shape == (0, 5)


def test_captions_and_references_of_unequal_number_are_an_error():
    with pytest.raises(ValueError, match="got 2 captions and 1 references"):
        metrics.score_pairs(["a", "b"], ["a"])


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one():
    texts = random_texts(14, words=40)
    assert metrics.score_pairs(texts[:7], texts[7:], jobs=2).equals(
        metrics.score_pairs(texts[:7], texts[7:], jobs=1)
    )


@pytest.mark.slow
def test_scoring_is_faster_than_the_bare_libraries(reader):
    """500 segments of 90 words with both subjects and no text twice; measured in one run with WordNet loaded before."""
    texts = random_texts(2000)
    predictions, references = texts[:1000], texts[1000:]
    official("car", "road", reader)
    started = time.process_time()
    expected = [official(*pair, reader) for pair in zip(predictions, references, strict=True)]
    between = time.process_time()
    again = time.process_time()
    table = metrics.score_pairs(predictions, references, jobs=1)
    official_s, ours_s = between - started, time.process_time() - again
    print(f"500 segments: {official_s:.2f} s with the bare libraries, {ours_s:.2f} s here")
    assert all(close(found, values) for found, values in zip(table.to_dict("records"), expected, strict=True))
    assert official_s / ours_s >= 2


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def phase(label, name):
    """Return a phase with captions long enough for METEOR: a perfect caption of n words scores 1 - 0.5 / n^3."""
    rest = " ".join(f"Sentence {n} says more about this road, its light and its weather." for n in range(4))
    captions = {f"caption_{s}": f"The {s} of {name} in phase {label} is near. {rest}" for s in SUBJECTS}
    return {"labels": [label], **captions}


@pytest.fixture
def tree(tmp_path):
    """Two WTS scenarios with two views, one of them in normal_trimmed, a name with letters of the suffix, and one of BDD."""
    root = tmp_path / "caption"
    for folder, name in (
        ("", "20230707_8_SN46_T1"),
        ("normal_trimmed/", "20231013_105827_normal_192.168.0.14_1_event_2"),
    ):
        for view in ("overhead_view", "vehicle_view"):
            phases = [{**phase(label, name), "start_time": "1.0"} for label in "4012"]
            write(root / folder / name / view / f"{name}_caption.json", {"id": 1, "event_phase": phases})
    write(root / "scene_1_caption.json", {"event_phase": [phase("0", "scene_1")]})
    write(
        root / "video2912_caption.json",
        {"fps": "59", "event_phase": [phase(x, "video2912") for x in ("avoidance", "1")]},
    )
    return root


def perfect(tree):
    built = {}
    for (scenario, label), captions in metrics.read_ground_truth(tree).items():
        entry = {"labels": [label]} | {f"caption_{subject}": text for subject, text in captions.items()}
        built.setdefault(scenario, []).append(entry)
    return built


def test_ground_truth_has_scenario_names_and_labels_as_written(tree):
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
    assert scores.segments.set_index(["scenario", "label"]).loc[
        ("video2912", "avoidance"), "phase"
    ].tolist() == [4, 4]


def test_a_submission_of_another_split_is_an_error(tree):
    for other, found in (({}, "no scenario"), ({"meta": {}, "predictions": []}, "meta, predictions")):
        with pytest.raises(
            ValueError, match=f"such as .*, got {found}. Give a submission and captions of the same split"
        ):
            metrics.score_submission(other, tree)


def test_missing_captions_count_0_and_are_listed(tree):
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


def test_the_final_score_averages_only_parts_with_ground_truth(tree):
    built = perfect(tree)
    (tree / "video2912_caption.json").unlink()
    scores = metrics.score_submission(built, tree)
    assert scores.external is None and scores.final == scores.internal["score"] == pytest.approx(
        100, abs=0.005
    )
    assert "external not in the ground truth" in " ".join(metrics.report(scores).split())
    assert "2 segments (video2912 label avoidance" in str(scores.problems[0])


def test_a_word_label_does_not_match_its_number(tree):
    built = perfect(tree)
    built["video2912"][0]["labels"] = ["4"]
    scores = metrics.score_submission(built, tree)
    assert scores.missing == ["video2912 label avoidance: no segment"]
    assert "video2912 label 4" in str(scores.problems[0])


def test_other_and_broken_files_are_listed_and_skipped(tree):
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
    listed = "\n".join(map(str, scores.problems))
    assert (
        len(scores.problems) == 5
        and "2 other JSON files (video2_bbox.json, view_list.json); skipped" in listed
    )
    for where in (
        "video3_caption.json",
        "video4_caption.json",
        "video5_caption.json: label 0",
        "video5_caption.json: phase 1",
    ):
        assert where in listed


@pytest.mark.parametrize("spelling", ["04", " 4 ", 4, "0000004"])
def test_spellings_of_a_number_are_one_segment(tree, spelling):
    name = "20230707_8_SN46_T1"
    built = perfect(tree)
    built[name][0]["labels"] = [spelling]
    view = tree / name / "vehicle_view" / f"{name}_caption.json"
    view.write_text(view.read_text().replace('"labels": ["4"]', f'"labels": [{json.dumps(spelling)}]'))
    scores = metrics.score_submission(built, tree)
    assert scores.missing == [] and scores.problems == [] and len(scores.segments) == 2 * 11


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"event_phase": NaN}', '{"event_phase": [{"labels": [1e400]}]}', "\ufeff{}", "5"],
)
def test_unusable_json_is_listed_with_its_file(tree, content):
    write(tree / "video9_caption.json", content)
    scores = metrics.score_submission(perfect(tree) | {"video9": [1]}, tree)
    assert scores.final == pytest.approx(100, abs=0.005) and any(
        "video9_caption.json" in str(p) for p in scores.problems
    )
    path = tree.parent / "submission.json"
    write(path, content)
    with pytest.raises(ValueError, match="submission.json"):
        metrics.score_submission(path, tree)


@pytest.mark.parametrize("label", ["9" * 5000, 10**400, True, None, {}, [[]], ""])
def test_unusable_labels_are_listed_and_not_scored(tree, label):
    built = perfect(tree)
    built["video2912"].append(
        {"labels": [label], "caption_vehicle": "A car.", "caption_pedestrian": "A man."}
    )
    scores = metrics.score_submission(built, tree)
    assert scores.final == pytest.approx(100, abs=0.005) and len(scores.problems) == 1


def test_links_are_followed_and_pipes_do_not_block(tree):
    expected = perfect(tree)
    os.mkfifo(tree / "video7_caption.json")
    (tree / "linked").symlink_to(tree.parent / "elsewhere")
    write(tree.parent / "elsewhere" / "video8_caption.json", {"event_phase": [phase("0", "video8")]})
    problems = []
    truth = metrics.read_ground_truth(tree, problems)
    assert ("video8", "0") in truth and len(truth) == 12 and len(expected) == 4
    assert [p.where.rsplit("/", 1)[-1] for p in problems] == ["video7_caption.json"]


def test_captions_that_differ_between_views_are_listed(tree):
    name = "20230707_8_SN46_T1"
    write(tree / name / "vehicle_view" / f"{name}_caption.json", {"event_phase": [phase("0", "elsewhere")]})
    problems = []
    truth = metrics.read_ground_truth(tree, problems)
    assert "20230707_8_SN46_T1" in truth[name, "0"]["vehicle"] and len(truth) == 11
    assert len(problems) == 1 and "label 0: expected the captions of the first view" in str(problems[0])


def test_unusable_entries_are_listed_and_the_others_scored(tree):
    built = perfect(tree) | {"scene_1": {"labels": ["0"]}}
    built["video2912"] += ["none", {"caption_vehicle": "no labels"}, {"labels": []}, built["video2912"][0]]
    scores = metrics.score_submission(built, tree)
    assert scores.missing == ["scene_1 label 0: no segment"] and len(scores.problems) == 5
    assert scores.external["score"] == pytest.approx(100, abs=0.005)


def test_a_ground_truth_without_captions_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder of caption files"):
        metrics.score_submission({}, tmp_path)
    write(tmp_path / "video1_caption.json", {"event_phase": [{"labels": ["0"]}]})
    with pytest.raises(ValueError, match="test split has no captions"):
        metrics.score_submission({}, tmp_path)


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["metrics", *map(str, arguments)])
    metrics.main()


def test_several_folders_of_captions_are_one_ground_truth(tree, tmp_path, monkeypatch, capsys):
    folders = [tmp_path / "internal", tmp_path / "external"]
    shutil.copytree(tree, folders[0], ignore=shutil.ignore_patterns("video*"))
    shutil.copytree(tree, folders[1], ignore=shutil.ignore_patterns("2023*"))
    write(tmp_path / "submission.json", perfect(tree))
    expected = metrics.score_submission(tmp_path / "submission.json", tree)
    found = metrics.score_submission(tmp_path / "submission.json", *folders)
    assert found.final == expected.final and len(found.segments) == len(expected.segments) and found.external
    call(monkeypatch, "--predictions_file", tmp_path / "submission.json", "--ground_truth", *folders)
    assert "over 11 segments" in capsys.readouterr().out


def test_the_command_takes_the_official_flags(tree, tmp_path, monkeypatch, capsys):
    write(tmp_path / "submission.json", perfect(tree))
    out = tmp_path / "scores.json"
    call(
        monkeypatch, "--predictions_file", tmp_path / "submission.json", "--ground_truth", tree, "--json", out
    )
    shown = capsys.readouterr().out
    assert "fficial score: 100.00 over 11 segments" in shown.replace("(not official)", "official score")
    assert [line.split() for line in shown.splitlines()][1] == [
        "internal",
        "1.0000",
        "1.0000",
        "1.0000",
        "10.0000",
        "100.00",
    ]
    written = json.loads(out.read_text())
    assert (
        written["final"] == pytest.approx(100, abs=0.005)
        and written["segments"] == 11
        and written["missing"] == []
    )


@pytest.mark.parametrize(
    ("content", "message"), [(None, "expected a file"), ("{", "expected JSON"), ("[]", "found list")]
)
def test_the_command_reports_a_broken_submission_file(tree, tmp_path, monkeypatch, content, message):
    if content is not None:
        write(tmp_path / "submission.json", content)
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, "--predictions_file", tmp_path / "submission.json", "--ground_truth", tree)


def test_a_report_lists_at_most_20_missing_segments(tree):
    truth = {(f"video{n}", "0"): {"vehicle": "A car.", "pedestrian": "A man."} for n in range(30)}
    shown = metrics.report(metrics.score_segments({}, truth))
    assert "30 missing, counted as 0:" in shown and "… 10 more; --json lists all of them" in shown


def test_scoring_does_not_import_torch():
    code = (
        "import sys, beit3lib.track2.metrics as m; m.score_caption('a car', 'a road'); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
