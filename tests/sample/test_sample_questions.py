"""The questions of the sample have WTS's form, true answers, and words that the sample's tokenizer knows."""

import sentencepiece

from beit3lib.data.questions import read_questions
from beit3lib.sample import SPM_PATH, draw
from beit3lib.sample.questions import NEW_OPTIONS, OPTIONS, QUESTIONS, write_questions


def test_every_question_of_every_phase_is_read_back_with_its_true_answer(tmp_path):
    scenarios = draw.plan()
    write_questions(tmp_path, scenarios)
    drawn = {scenario.name: scenario.phases for scenario in scenarios}
    table, problems, counts = read_questions(tmp_path, set(drawn))
    assert problems == [] and counts["questions_used"] == sum(4 * len(s.phases) + 7 for s in scenarios)
    attributes = {question: name for name, (question, _) in QUESTIONS.items()}
    for row in table.itertuples():
        phases = drawn[row.scenario]
        scene = phases[max(phases) if row.phase is None else row.phase]
        value = getattr(scene, attributes[row.question])
        true = {OPTIONS.get(value, value), NEW_OPTIONS.get(value)} & set(row.options.values())
        assert len(true) == 1 and 2 <= len(row.options) == len(set(row.options.values())) <= 4
        assert row.correct is None if row.split == "test" else row.options[row.correct] in true
    asked = table.groupby(["scenario", "phase"], dropna=False)["question"].nunique()
    assert set(asked) == {4, 7} and table["id"].is_unique
    assert set(table["correct"].dropna()) == set("abcd")
    assert table.groupby("split")["source"].unique().map(set).tolist() == [{"wts", "bdd"}] * 3
    # Some options of val and test are in no question of train, but training captions have their words.
    options = {
        split: {text for row in part for text in row.values()}
        for split, part in table.groupby("split")["options"]
    }
    new = set(NEW_OPTIONS.values())
    assert options["val"] - options["train"] == new == options["test"] - options["train"]
    assert new <= {row.options[row.correct] for row in table[table["split"] == "val"].itertuples()}
    scenes = [
        scene
        for name in set(table.loc[table["split"] == "train", "scenario"])
        for scene in drawn[name].values()
    ]
    captions = " ".join(draw.full_caption(scene, subject) for scene in scenes for subject in draw.SUBJECTS)
    assert all(text in captions for text in new)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(SPM_PATH))
    for text in set(table["question"]).union(*options.values()):
        assert len(ids := tokenizer.encode(text)) <= 18 and tokenizer.unk_id() not in ids
