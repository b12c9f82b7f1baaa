"""Stage 5 of a run: score captions, facts and answers, and write a checked submission.

python -m beit3lib.pipeline.scoring runs/demo      print the score of a run and the path of its gallery
"""

import argparse
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from beit3lib.data.facts import fact_scores
from beit3lib.data.predictions import PREDICTIONS_NAME, read_predictions
from beit3lib.data.prepared import count_shared_images
from beit3lib.data.questions import (
    QUESTION_INDEX_NAME,
    answers_path,
    combine_images,
    read_image_answers,
    read_question_index,
)
from beit3lib.data.schema import SUBJECTS, read_table
from beit3lib.files import exit_on_error, read_json, write_json
from beit3lib.pipeline.parameters import checked
from beit3lib.pipeline.run_folder import (
    ANSWERS_SUBMISSION_NAME,
    PHASES_NAME,
    SCORES_NAME,
    SEGMENTS_NAME,
    SUBMISSION_NAME,
    SUMMARY_NAME,
    record_stage,
)
from beit3lib.pipeline.stages import ensure, other_predictions
from beit3lib.track2 import answers, submission
from beit3lib.track2.metrics import Scores, score_segments


class AnswerScores(NamedTuple):
    """Scores of the answers to the questions of a split."""

    table: (
        pd.DataFrame
    )  # accuracy of the model, with each term of consistency alone and all, and of baselines
    found: answers.Accuracy  # of the answers with all terms, with its parts per scope, source and question
    questions: pd.DataFrame  # of the index, with `log_probs`, `answer` and `changed`
    weights: answers.Weights  # of the terms, chosen on the split
    s2: dict[str, float]  # by edition


class Scored(NamedTuple):
    """The result of `score`. If no caption has a reference, `split` is None and the others are empty."""

    split: str | None
    scores: dict[str, Scores]  # of the model, shuffled (captions of another scenario), nearest, most frequent
    facts: dict[str, pd.DataFrame]  # `fact_scores` of each of these
    submission: dict[str, list[dict]]
    answers: AnswerScores | None = None  # None without questions


def read_captions(run: Path, combine_with: str = "") -> pd.DataFrame:
    """Read the captions of a run and of other runs, such as one per caption type; the first run counts."""
    paths = [run / PREDICTIONS_NAME, *other_predictions(run, "combine_with", combine_with).values()]
    table = pd.concat([read_predictions(path) for path in paths], ignore_index=True)
    return table.drop_duplicates(["image", "subject", "aspect"])


def read_answers(run: Path, split: str) -> pd.DataFrame:
    """Return the questions of a split with `log_probs`, the mean of all images of a question, None without an answer.

    The table is empty if the split has no questions.
    """
    index, path = run / QUESTION_INDEX_NAME.format(split=split), answers_path(run / PREDICTIONS_NAME)
    if not index.is_file():
        return pd.DataFrame(columns=["id"])
    found = read_image_answers(path) if path.is_file() else pd.DataFrame(columns=["image", "id", "log_probs"])
    return combine_images(read_question_index(index), found)


def _train_answers(run: Path) -> answers.AnswerCounts:
    """Count the correct answers of the training questions."""
    path = run / QUESTION_INDEX_NAME.format(split="train")
    questions = read_question_index(path)
    return answers.AnswerCounts(questions[questions["correct"].notna()])


@checked
def score(
    run: Path, split: Literal["val", "train"] = "val", fill_missing: bool = False, combine_with: str = ""
) -> Scored:
    """Combine captions of aspects and views per segment; score them, their facts and the answers beside baselines.

    Writes scores.json and submission.<split>.json. A missing caption is an error; with `fill_missing` the most frequent
    training caption replaces it. `combine_with` names other runs, see `read_captions`.
    """
    predictions, phases, segments, frequent = _read_tables(run, combine_with)
    with_reference = sorted(set(predictions.loc[predictions["reference"].notna(), "split"]))
    if split not in with_reference:
        instead = ", ".join(with_reference) or "nothing"
        print(f"{run}: no captions of split {split} with references; scored instead: {instead}")
        split = next(iter(with_reference), "")
    table = segments[segments["split"] == split].dropna(subset=submission.CAPTIONS)
    truth = {  # also of segments without a video
        (row["scenario"], row["label"]): {subject: row[f"caption_{subject}"] for subject in SUBJECTS}
        for row in table.to_dict("records")
    }
    if not truth:
        return Scored(None, {}, {}, {})
    options = {"split": split, "fill_missing": fill_missing, "combine_with": combine_with}
    with record_stage(run, "score", options) as section:
        built = submission.build_submission(predictions[predictions["split"] == split])
        if fill_missing:
            built, _ = submission.fill(built, submission.expected_segments(segments, split), frequent)
        scores = {"model": score_segments(built, truth)}
        if missing := scores["model"].missing:
            captioned = {f"caption_{subject}" for subject in predictions["subject"]}
            empty = sum(
                entry[name] == "" for entries in built.values() for entry in entries for name in captioned
            )
            raise submission.SubmissionError(
                f"{run}: expected both captions of {len(truth)} segments, got {len(missing)} missing: "
                f"{'; '.join(missing[:3])}; … For {empty} of them the model generated no text: train longer. "
                "Caption all images, add runs of other caption types (combine_with), or set fill_missing."
            )
        if split != "train" and (both := count_shared_images(phases, run / "images", split)):
            print(f"{run}: {both} images are in both train and {split}, so these scores are too high")
        of_split, train = phases[phases["split"] == split], phases[phases["split"] == "train"]
        baselines = {
            "shuffled": _shuffled(built),
            "nearest": submission.nearest_submission(train, of_split, run / "images"),
            "most frequent": submission.most_frequent_submission(train, of_split),
        }
        scores |= {name: score_segments(captions, truth) for name, captions in baselines.items()}
        facts = {name: fact_scores(found.segments) for name, found in scores.items()}
        content: dict[str, Any] = {"captions": {name: found.as_dict() for name, found in scores.items()}}
        content["facts"] = {name: found.round(4).to_dict("index") for name, found in facts.items()}
        section |= {"split": split, "segments": len(truth)}
        section |= {name: round(found.final, 2) for name, found in scores.items()}
        found = score_answers(run, split, scores["model"])
        if found is not None:
            content |= {"answers": found.table["accuracy"].round(4).to_dict(), "s2": found.s2}
            section |= {"accuracy": round(100 * found.found.accuracy, 2), "s2": found.s2}
            entries = [
                {"id": row.id, "correct": row.answer} for row in found.questions.itertuples() if row.answer
            ]
            write_json(run / f"answers.{split}.json", entries)
        write_json(run / SCORES_NAME, _without_nan(content))
        for path in run.glob("submission.*.json"):
            path.unlink()
        write_json(run / f"submission.{split}.json", built)
    return Scored(split, scores, facts, built, found)


def _without_nan(value: Any) -> Any:
    """Return `value` with None for NaN, which is no JSON; a slot that is never stated has no precision."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    return None if value != value else value


def score_answers(run: Path, split: str, captions: Scores) -> AnswerScores | None:
    """Score the answers to the questions of a split; None if none has a known answer or the model gave none."""
    questions = read_answers(run, split)
    questions = questions[questions["correct"].notna()] if len(questions) else questions
    if questions.empty or questions["log_probs"].isna().all():  # the model was trained without questions
        return None
    counts, terms = _train_answers(run), answers.Weights._fields
    # Weights are chosen on one half of the scenarios and used for the other half, so that accuracy is not optimistic.
    in_half = questions["scenario"].map(
        {name: i % 2 for i, name in enumerate(sorted(questions["scenario"].unique()))}
    )
    halves = [
        (questions[in_half == i], answers.choose_weights(questions[in_half != i], counts)[0]) for i in (0, 1)
    ]

    def answered(*used: str) -> pd.DataFrame:
        parts = []
        for part, weights in halves:
            chosen = answers.Weights(
                *(weight if name in used else 0 for name, weight in zip(terms, weights, strict=True))
            )
            parts.append(answers.consistent_answers(part, counts, chosen))
        return pd.concat(parts).loc[questions.index]

    alone, consistent = answered(), answered(*terms)
    given = dict(zip(alone["id"], alone["answer"], strict=True))
    variants = {"model": given}
    for name in terms:
        variants[f"model, {name}"] = dict(answered(name)[["id", "answer"]].itertuples(index=False))
    variants["model, all terms"] = dict(consistent[["id", "answer"]].itertuples(index=False))
    variants["shuffled"] = answers.shuffled_answers(
        questions, {key: letter for key, letter in given.items() if letter}
    )
    variants["most frequent"] = answers.most_frequent_answers(counts, questions, by_phase=False)
    variants["most frequent of the phase"] = answers.most_frequent_answers(counts, questions)
    results = {name: answers.accuracy(letters, questions) for name, letters in variants.items()}
    table = pd.DataFrame(
        {name: {"accuracy": found.accuracy, "right": found.right} for name, found in results.items()}
    ).T
    found = results["model, all terms"]
    weights = answers.choose_weights(questions, counts)[0]
    return AnswerScores(table, found, consistent, weights, answers.s2_of_editions(captions, found))


def _read_tables(
    run: Path, combine_with: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Return captions, phases and segments of a run, and each subject's most frequent training caption."""
    ensure(run, "caption")
    phases = read_table(run / PHASES_NAME)
    frequent = submission.most_frequent_captions(phases[phases["split"] == "train"])
    return read_captions(run, combine_with), phases, read_table(run / SEGMENTS_NAME), frequent


def _shuffled(built: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Return a submission in which every segment has the captions of a segment of another scenario."""
    names, exchanged = sorted(built), {}
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        entries = built[other]
        exchanged[name] = [
            {**entries[i % len(entries)], "labels": e["labels"]} for i, e in enumerate(built[name])
        ]
    return exchanged


class Submitted(NamedTuple):
    """The files of a submission; `answers` is None if the split has no questions."""

    captions: submission.Written
    answers: submission.Written | None


@checked
def submit(run: Path, fill_missing: bool = False, combine_with: str = "") -> Submitted:
    """Write a checked submission.json for the test split, or for val or train if the data have no test split.

    If the split has questions, submission_answers.json is written with it: both files or none. Missing captions and
    answers are an error that lists them; with `fill_missing` the most frequent ones of training replace them.
    """
    predictions, _, segments, frequent = _read_tables(run, combine_with)
    split = next(name for name in ("test", "val", "train") if name in set(segments["split"]))
    with record_stage(run, "submit", {"fill_missing": fill_missing, "combine_with": combine_with}) as section:
        expected = submission.expected_segments(segments, split)
        built = submission.build_submission(predictions[predictions["split"] == split])
        questions = read_answers(run, split)
        if questions.empty:
            captions, given = run / SUBMISSION_NAME, None
            captions = submission.write_submission(captions, built, expected, fill_missing, frequent)
        else:
            counts, validation = _train_answers(run), read_answers(run, "val")
            validation = validation[validation["correct"].notna()] if len(validation) else validation
            weights = answers.choose_weights(validation, counts)[0] if len(validation) else answers.Weights()
            chosen = answers.consistent_answers(questions, counts, weights)
            letters = {row.id: row.answer for row in chosen.itertuples() if row.answer}
            fillers = (frequent, answers.most_frequent_answers(counts, questions))
            captions, given = answers.write_submissions(
                run / SUBMISSION_NAME, built, expected,
                run / ANSWERS_SUBMISSION_NAME, letters, questions, fill_missing, fillers,
            )  # fmt: skip
        for written, what in ((captions, "captions"), (given, "answers")):
            if written is not None:
                count = sum(map(len, expected.values())) if what == "captions" else len(questions)
                section |= {f"{what}": count, f"{what}_filled": len(written.filled)}
                print(
                    f"{written.path}: {count} {what} of split {split}, {len(written.filled)} of them filled in"
                )
    return Submitted(captions, given)


@exit_on_error()
def main() -> None:
    """Print the score of a run and the path of its gallery."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.pipeline.scoring", description=main.__doc__)
    parser.add_argument(
        "run", nargs="?", type=Path, default="runs/demo", help="folder of the run [runs/demo]"
    )
    run = parser.parse_args().run
    scores = read_json(run / SUMMARY_NAME, dict)["score"]
    answered = (
        f", {scores['accuracy']:.1f} % of the questions answered correctly" if "accuracy" in scores else ""
    )
    print(
        f"score {scores['model']:.1f} (nearest image {scores['nearest']:.1f}){answered}; open {run / 'gallery.html'}"
    )


if __name__ == "__main__":
    main()
