"""Answers are scored as by the official scorer, made consistent, and written with captions or not at all."""

import json
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from question_tree import quirky_tree

from beit3lib.data.questions import COLUMNS, read_questions
from beit3lib.track2 import answers
from beit3lib.track2.answers import AnswerCounts, Weights, accuracy
from beit3lib.track2.submission import SubmissionError

LETTERS = ["a", "A", "b", "ab", " a"]
ENTRIES = st.lists(st.tuples(st.sampled_from("pqrst"), st.sampled_from(LETTERS)), max_size=8)


def asked(scenario, phase, question, options, correct=None, **more):
    """A row of a table of questions, with options a, b, … and the text of the correct one."""
    letters = dict(zip("abcd", options, strict=False))
    right = next((letter for letter, text in letters.items() if text == correct), None)
    about = {"source": "wts", "scenario": scenario, "phase": phase, "id": f"{scenario}/{phase}/{question}"}
    about |= {"scope": "scenario" if phase is None else "phase", "question": question, "options": letters}
    return dict.fromkeys(COLUMNS, "") | about | {"correct": right} | more


def frame(rows):
    return pd.DataFrame(rows, columns=[*COLUMNS, "log_probs"], dtype=object)


@settings(max_examples=200, database=None)
@given(ENTRIES.filter(bool), ENTRIES)
def test_accuracy_is_that_of_the_official_scorer(truth, given):
    """Right / ids of the truth; the last entry of an id counts; letters are compared whole, without case."""
    expected, found = ({name: letter.lower() for name, letter in entries} for entries in (truth, given))
    right = sum(found.get(name) == letter for name, letter in expected.items())
    score = accuracy(dict(given), pd.DataFrame(truth, columns=["id", "correct"]))
    assert (score.right, score.questions, score.accuracy) == (right, len(expected), right / len(expected))
    assert set(score.missing) == expected.keys() - found.keys()


def test_s2_of_2026_counts_wts_only():
    assert answers.s2(33.08, 0.8709) == pytest.approx(60.085)
    captions = SimpleNamespace(final=25.0, internal={"score": 30.0})
    truth = pd.DataFrame({"id": ["1", "2"], "correct": ["a", "b"], "source": ["wts", "bdd"]})
    score = accuracy({"1": "a"}, truth)
    assert answers.s2_of_editions(captions, score) == {"2025": 37.5, "2026": 65.0}
    assert answers.s2_of_editions(SimpleNamespace(final=25.0, internal=None), score) == {"2025": 37.5}


PATHS = "truth.json", "truth.jsonl", "wts/annotations/vqa/train wts/external wts/SynWTS"


@pytest.mark.parametrize("paths", PATHS)
def test_the_command_scores_anybodys_files(tmp_path, monkeypatch, capsys, paths):
    table = read_questions(quirky_tree(tmp_path / "wts")).table
    rows = table[table["split"] == "train"].to_dict("records")
    right = [{"id": row["id"], "correct": row["correct"].upper()} for row in rows]
    (tmp_path / "truth.json").write_text(json.dumps(right))
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row | {"images": []}) + "\n" for row in rows))
    (tmp_path / "mine.json").write_text(json.dumps([right[0] | {"correct": None}, *right[1:], *right[1:]]))
    command = ["answers", "--predictions_file", str(tmp_path / "mine.json"), "--ground_truth"]
    monkeypatch.setattr("sys.argv", command + [str(tmp_path / path) for path in paths.split()])
    answers.main()
    assert "Accuracy: 83.33% (5 of 6 questions)\n1 have no answer" in capsys.readouterr().out
    (tmp_path / "mine.json").write_text("[5]")
    with pytest.raises(SystemExit, match=r"mine.json: expected .* got 5"):
        answers.main()


def test_the_most_frequent_answer_of_phase_then_question_then_all():
    train = [asked(f"s{n}", n % 2, "Action?", ["Stop", "Turn"], ["Stop", "Turn"][n % 2]) for n in range(5)]
    counts = AnswerCounts(frame([*train, asked("s9", 3, "Other?", ["Yes", "Go"], "Go")]))
    rows = [asked("x", phase, "action", ["go", "turn", "stop"]) for phase in (0, 1, 4)]
    rows += [asked("x", 1, "New?", ["Never", "Go"]), asked("x", 1, "New one?", ["This", "That"])]
    for by_phase, letters in ((True, "cbcba"), (False, "cccba")):
        found = answers.most_frequent_answers(counts, frame(rows), by_phase)
        assert "".join(found.values()) == letters


@settings(max_examples=100, database=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_viterbi_finds_the_best_of_all_paths(sizes, seed):
    rng = np.random.default_rng(seed)
    scores, steps = [rng.normal(size=n) for n in sizes], [rng.normal(size=pair) for pair in pairwise(sizes)]

    def value(path):
        jumps = sum(step[pair] for step, pair in zip(steps, pairwise(path), strict=True))
        return jumps + sum(score[state] for score, state in zip(scores, path, strict=True))

    best = max(product(*map(range, sizes)), key=value)
    assert value(answers.viterbi(scores, steps)) == pytest.approx(value(best))


def world(rng, scenarios, phases=3, names=("A?", "B?", "C?"), options=("x", "y", "z")):
    """Questions whose answers depend on each other and on the phase before, and those of a noisy model."""
    rows = []
    for scenario in range(scenarios):
        answer = {}
        for phase in range(phases):
            for name in names:
                likely = answer.get("A?") if name == "B?" else answer.get(name)
                answer[name] = likely if likely and rng.random() < 0.8 else rng.choice(options)
                shown = list(rng.permutation(options))[rng.integers(2) :]
                shown += [] if answer[name] in shown else [answer[name]]
                noisy = rng.normal(size=len(shown)) + np.equal(shown, answer[name])
                log_probs = dict(zip("abcd", noisy - np.log(np.exp(noisy).sum()), strict=False))
                rows.append(asked(f"s{scenario}", phase, name, shown, answer[name], log_probs=log_probs))
    return frame(rows)


def test_counts_make_answers_consistent():
    rng = np.random.default_rng(0)
    counts, validation, test = AnswerCounts(world(rng, 300)), world(rng, 60), world(rng, 200)
    assert next(iter(counts.pairs)) == ("a", "b")
    weights, tried = answers.choose_weights(validation, counts)
    assert 10 < len(tried) <= 64
    assert tried.set_index(list(Weights._fields))["accuracy"][weights] == tried["accuracy"].max()
    alone, joint = (answers.consistent_answers(test, counts, w) for w in (Weights(), weights))
    assert joint["changed"].tolist() == (alone["answer"] != joint["answer"]).tolist()
    assert not alone["changed"].any()
    right = [(table["answer"] == table["correct"]).mean() for table in (alone, joint)]
    assert right[1] > right[0] + 0.05
    blind = test.assign(log_probs=[None, *test["log_probs"][1:]])
    without = answers.consistent_answers(blind, counts, weights)
    assert without.loc[0, "answer"] is None and not without.loc[0, "changed"]


CAPTIONS = {"2023_a": [{"labels": ["0"], "caption_pedestrian": "He walks.", "caption_vehicle": "It turns."}]}
QUESTIONS = frame([asked("2023_a", 0, "Dry?", ["Yes", "No"]), asked("2023_a", None, "Hat?", ["Yes", "No"])])
GIVEN = {"2023_a/0/Dry?": "B", "2023_a/None/Hat?": "a"}


def test_every_question_of_the_test_file_needs_an_answer():
    assert answers.check_answers(GIVEN, QUESTIONS) == []
    assert answers.check_answers({"2023_a/0/Dry?": "c", "x": "a"}, QUESTIONS) == [
        "x: not a question of the test file",
        "2023_a/0/Dry?: expected one of a, b, got 'c'",
        "2023_a/None/Hat?: no answer to 'Hat?' (2023_a, scenario None)",
    ]


def test_both_files_are_written_or_none(tmp_path):
    paths = tmp_path / "captions.json", tmp_path / "answers.json"

    def write(captions, found, **options):
        expected = {"2023_a": ["0"]}
        return answers.write_submissions(paths[0], captions, expected, paths[1], found, QUESTIONS, **options)

    few = {"2023_a/0/Dry?": "b"}
    for captions, found in (({}, GIVEN), (CAPTIONS, few), (CAPTIONS, {**GIVEN, "2023_a/0/Dry?": "e"})):
        with pytest.raises(SubmissionError, match="wrote nothing"):
            write(captions, found)
        assert not list(tmp_path.iterdir())
    most_frequent = ({}, {"2023_a/0/Dry?": "a", "2023_a/None/Hat?": "b"})
    _, written = write(CAPTIONS, few, fill_missing=True, most_frequent=most_frequent)
    assert written.filled == ["2023_a/None/Hat?"]
    expected = [{"id": "2023_a/0/Dry?", "correct": "b"}, {"id": "2023_a/None/Hat?", "correct": "b"}]
    assert json.loads(paths[1].read_text()) == expected and json.loads(paths[0].read_text()) == CAPTIONS
