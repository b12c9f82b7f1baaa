"""The questions of the sample have WTS's form, true answers, and words that the sample's tokenizer knows."""

import sentencepiece

from beit3lib.data.questions import read_questions
from beit3lib.data.wts import read_wts
from beit3lib.sample import SPM_PATH, draw
from beit3lib.sample.questions import (
    NEW_OPTIONS,
    QUESTIONS,
    answer_of,
    question_files,
    write_questions,
)


def read(root, counts):
    """Write the questions of a sample of this size without its videos, and read them."""
    scenarios = draw.plan(counts)
    write_questions(root, scenarios)
    return scenarios, read_questions(root, {scenario.name for scenario in scenarios})


def test_every_question_of_every_phase_is_read_back_with_its_true_answer(tmp_path):
    scenarios, (table, problems, counts) = read(tmp_path, draw.COUNTS)
    assert problems == [] and counts["questions_used"] == sum(4 * len(s.phases) + 7 for s in scenarios)
    drawn = {scenario.name: scenario.phases for scenario in scenarios}
    for row in table.itertuples():
        phases = drawn[row.scenario]
        scene = phases[max(phases) if row.phase is None else row.phase]
        assert row.correct == (None if row.split == "test" else answer_of(scene, row.question, row.options))
        assert 2 <= len(row.options) == len(set(row.options.values())) <= 4
    asked = table.groupby(["scenario", "phase"], dropna=False)["question"].nunique()
    assert set(asked) == {4, 7} and table["id"].is_unique
    assert set(table["correct"].dropna()) == set("abcd")
    assert table.groupby("split")["source"].unique().map(set).tolist() == [{"wts", "bdd"}] * 3


def test_some_options_of_val_are_in_no_question_of_train_and_captions_have_their_words(tmp_path):
    scenarios, (table, *_) = read(tmp_path, draw.COUNTS)
    options = {
        split: {text for row in part for text in row.values()}
        for split, part in table.groupby("split")["options"]
    }
    assert (
        options["val"] - options["train"] == set(NEW_OPTIONS.values()) == options["test"] - options["train"]
    )
    correct = {row.options[row.correct] for row in table[table["split"] == "val"].itertuples()}
    assert set(NEW_OPTIONS.values()) <= correct
    scenes = [
        scene for scenario in scenarios for scene in scenario.phases.values() if scenario.split == "train"
    ]
    captions = " ".join(draw.full_caption(scene, subject) for scene in scenes for subject in draw.SUBJECTS)
    assert all(text in captions for text in NEW_OPTIONS.values())


def test_questions_are_about_the_attributes_of_scenes_and_have_tokens():
    assert {name: tuple(values.split()) for name, (_, values) in QUESTIONS.items()} == draw.VALUES
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(SPM_PATH))
    scenario = draw.plan({"val": (1, 0, 0)})[0]
    asked = [
        a
        for _, file in question_files(scenario)
        for p in file.get("event_phase", [])
        for a in p["conversations"]
    ]
    texts = [text for question in asked for key, text in question.items() if key != "correct"]
    texts += [text for question, _ in QUESTIONS.values() for text in (question, *NEW_OPTIONS.values())]
    assert all(len(ids := tokenizer.encode(text)) <= 18 and tokenizer.unk_id() not in ids for text in texts)


def test_the_written_sample_has_questions_of_all_splits(tmp_path):
    root = draw.write_sample(
        tmp_path / "wts", {"train": (1, 1, 1), "val": (1, 0, 0), "test": (1, 0, 1)}, jobs=1
    )
    questions, phases = read_questions(root), read_wts(root)
    assert questions.problems == phases.problems == []
    segments = [phases.phases, questions.table[questions.table["scope"] == "phase"]]
    known, asked = (
        set(part[["split", "scenario", "phase"]].itertuples(index=False, name=None)) for part in segments
    )
    assert known == asked
