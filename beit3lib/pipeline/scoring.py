"""Stage 5 of a run: score captions, facts and answers, and write a checked submission.

python -m beit3lib.pipeline.scoring runs/demo      print the score of a run and the path of its gallery
"""

import argparse
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from beit3lib.data.facts import fact_scores
from beit3lib.data.predictions import PREDICTIONS_NAME, read_predictions
from beit3lib.data.prepared import count_shared_images
from beit3lib.data.questions import (
    COLUMNS,
    QUESTION_INDEX_NAME,
    answers_path,
    combine_images,
    read_image_answers,
    read_question_index,
)
from beit3lib.data.schema import SUBJECTS, read_table
from beit3lib.files import exit_on_error, write_json
from beit3lib.pipeline.parameters import checked
from beit3lib.pipeline.run_folder import (
    ANSWERS_SUBMISSION_NAME,
    PHASES_NAME,
    SCORES_NAME,
    SEGMENTS_NAME,
    SUBMISSION_NAME,
    read_summary,
    record_stage,
)
from beit3lib.pipeline.stages import ensure, other_predictions
from beit3lib.track2 import answers, submission
from beit3lib.track2.metrics import Scores, score_segments


class AnswerScores(NamedTuple):
    """Scores of the answers to the questions of a split."""

    # Accuracy and right answers of the model alone, with one and with all terms of consistency, of baselines.
    table: pd.DataFrame
    found: answers.Accuracy  # of the answers with all terms
    questions: pd.DataFrame  # of the index, with `log_probs`, `answer` and `changed`
    weights: answers.Weights  # of the terms, chosen on the split
    s2: dict[str, float]  # by edition


class Scored(NamedTuple):
    """The result of `score`. If no caption has a reference, `split` is None and the others are empty."""

    split: str | None
    # Of the model and of baselines: shuffled (captions of another scenario), nearest, most frequent.
    scores: dict[str, Scores]
    facts: dict[str, pd.DataFrame]  # `fact_scores` of each of these
    submission: dict[str, list[dict]]
    answers: AnswerScores | None = None  # None without questions


def read_captions(run: Path, combine_with: str = "") -> pd.DataFrame:
    """Read the captions of a run and of other runs, such as one per caption type; the first run counts."""
    paths = [run / PREDICTIONS_NAME, *other_predictions(run, "combine_with", combine_with).values()]
    table = pd.concat([read_predictions(path) for path in paths], ignore_index=True)
    return table.drop_duplicates(["image", "subject", "aspect"])


def read_answers(run: Path, split: str, predictions_name: str = PREDICTIONS_NAME) -> pd.DataFrame:
    """Return the questions of a split with `log_probs`, the mean of their images; None without an answer."""
    index, path = run / QUESTION_INDEX_NAME.format(split=split), answers_path(run / predictions_name)
    if not index.is_file():
        return pd.DataFrame(columns=[*COLUMNS, "images", "log_probs"])
    found = read_image_answers(path) if path.is_file() else pd.DataFrame(columns=["image", "id", "log_probs"])
    return combine_images(read_question_index(index), found)


def _count_training_answers(run: Path) -> answers.AnswerCounts:
    return answers.AnswerCounts(read_answers(run, "train").dropna(subset=["correct"]))


def answer_questions(
    run: Path, splits: Iterable[str], predictions_name: str = PREDICTIONS_NAME
) -> pd.DataFrame:
    """Return the questions that the model answered, with `answer` and `changed` of `consistent_answers`.

    The weights of its terms are those with the best accuracy on the val split.
    """
    tables = [read_answers(run, split, predictions_name) for split in splits]
    questions = pd.concat(tables, ignore_index=True).dropna(subset=["log_probs"])
    counts = _count_training_answers(run)
    validation = read_answers(run, "val", predictions_name).dropna(subset=["correct"])
    return answers.consistent_answers(questions, counts, answers.choose_weights(validation, counts)[0])


@checked
def score(
    run: Path, split: Literal["val", "train"] = "val", fill_missing: bool = False, combine_with: str = ""
) -> Scored:
    """Combine captions of aspects and views per segment; score them, their facts and the answers.

    Writes scores.json and submission.<split>.json. A missing caption is an error; with `fill_missing` the
    most frequent training caption replaces it. `combine_with` names other runs, see `read_captions`.
    """
    ensure(run, "caption")
    predictions, phases = read_captions(run, combine_with), read_table(run / PHASES_NAME)
    with_reference = sorted(predictions.loc[predictions["reference"].notna(), "split"].unique())
    if split not in with_reference:
        instead = ", ".join(with_reference) or "nothing"
        print(f"{run}: no captions of split {split} with references; scored instead: {instead}")
        split = next(iter(with_reference), "")
    segments = read_table(run / SEGMENTS_NAME)  # also those without a video
    truth = {
        (row["scenario"], row["label"]): {subject: row[f"caption_{subject}"] for subject in SUBJECTS}
        for row in segments[segments["split"] == split].dropna(subset=submission.CAPTIONS).to_dict("records")
    }
    if not truth:
        return Scored(None, {}, {}, {})
    train, of_split = phases[phases["split"] == "train"], phases[phases["split"] == split]
    options = {"split": split, "fill_missing": fill_missing, "combine_with": combine_with}
    with record_stage(run, "score", options) as section:
        predictions = predictions[predictions["split"] == split]
        built = submission.build_submission(predictions)
        if fill_missing:
            frequent = submission.most_frequent_captions(train)
            built, _ = submission.fill(built, submission.expected_segments(segments, split), frequent)
        scores = {"model": score_segments(built, truth)}
        if missing := scores["model"].missing:
            texts = predictions.groupby(["scenario", "phase", "subject"])["caption"].agg("".join)
            raise submission.SubmissionError(
                f"{run}: expected both captions of {len(truth)} segments, got {len(missing)} missing: "
                f"{'; '.join(missing[:3])}; … For {(texts == '').sum()} of them the model generated no text: "
                "train longer. Caption all images, add runs of other caption types (combine_with), or set "
                "fill_missing."
            )
        if split != "train" and (both := count_shared_images(phases, run / "images", split)):
            print(f"{run}: {both} images are in both train and {split}, so these scores are too high")
        baselines = {
            "shuffled": _shuffled(built),
            "nearest": submission.nearest_submission(train, of_split, run / "images"),
            "most frequent": submission.most_frequent_submission(train, of_split),
        }
        scores |= {name: score_segments(captions, truth) for name, captions in baselines.items()}
        facts = {name: fact_scores(found.segments) for name, found in scores.items()}
        content: dict[str, Any] = {"captions": {name: found.as_dict() for name, found in scores.items()}}
        content["facts"] = {  # None for NaN, the precision of a slot that is never stated
            name: table.round(4).astype(object).where(table.notna(), None).to_dict("index")
            for name, table in facts.items()
        }
        section |= {"split": split, "segments": len(truth)}
        section |= {name: round(found.final, 2) for name, found in scores.items()}
        answered = score_answers(run, split, scores["model"])
        if answered is not None:
            content |= {"answers": answered.table["accuracy"].round(4).to_dict(), "s2": answered.s2}
            section |= {"accuracy": round(100 * answered.found.accuracy, 2), "s2": answered.s2}
            given = answered.questions.dropna(subset=["answer"])
            given = given[["id", "answer"]].rename(columns={"answer": "correct"})
            write_json(run / f"answers.{split}.json", given.to_dict("records"))
        write_json(run / SCORES_NAME, content)
        for path in run.glob("submission.*.json"):
            path.unlink()
        write_json(run / f"submission.{split}.json", built)
    return Scored(split, scores, facts, built, answered)


def score_answers(run: Path, split: str, captions: Scores) -> AnswerScores | None:
    """Score the answers to questions of a split; None if the model gave none or no correct one is known."""
    questions = read_answers(run, split).dropna(subset=["correct"])
    if questions["log_probs"].isna().all():  # no questions, or the model was trained without
        return None
    counts, terms = _count_training_answers(run), answers.Weights._fields
    # Weights are chosen on half of the scenarios and used for the others, so that accuracy is not optimistic.
    in_first = questions["scenario"].isin(sorted(questions["scenario"].unique())[::2])
    halves = [(in_first, answers.choose_weights(questions[~in_first], counts)[0])]
    halves += [(~in_first, answers.choose_weights(questions[in_first], counts)[0])]

    def answer(*used: str) -> pd.DataFrame:
        """Return consistent answers with these terms; the others are switched off."""
        off, parts = dict.fromkeys(set(terms) - set(used), 0), []
        for half, weights in halves:
            parts.append(answers.consistent_answers(questions[half], counts, weights._replace(**off)))
        return pd.concat(parts).loc[questions.index]

    variants = {"model": answer(), **{f"model, {term}": answer(term) for term in terms}}
    variants["model, all terms"] = consistent = answer(*terms)
    letters = {name: dict(zip(part["id"], part["answer"], strict=True)) for name, part in variants.items()}
    given = {key: letter for key, letter in letters["model"].items() if letter}
    letters["shuffled"] = answers.shuffled_answers(questions, given)
    letters["most frequent"] = answers.most_frequent_answers(counts, questions, by_phase=False)
    letters["most frequent of the phase"] = answers.most_frequent_answers(counts, questions)
    results = {name: answers.accuracy(of_name, questions) for name, of_name in letters.items()}
    table = pd.DataFrame({name: [one.accuracy, one.right] for name, one in results.items()})
    table = table.set_axis(["accuracy", "right"]).T
    found, weights = results["model, all terms"], answers.choose_weights(questions, counts)[0]
    return AnswerScores(table, found, consistent, weights, answers.s2_of_editions(captions, found))


def _shuffled(built: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Return a submission in which every segment has the captions of a segment of another scenario."""
    names = sorted(built)
    return {
        name: [{**given, "labels": own["labels"]} for own, given in zip(built[name], cycle(built[other]))]
        for name, other in zip(names, names[1:] + names[:1], strict=True)
    }


class Submitted(NamedTuple):
    """The files of a submission; `answers` is None if the split has no questions."""

    captions: submission.Written
    answers: submission.Written | None


@checked
def submit(run: Path, fill_missing: bool = False, combine_with: str = "") -> Submitted:
    """Write a checked submission.json for the test split, or for val or train if there is no test split.

    If the split has questions, submission_answers.json is written with it: both files or none. Missing
    captions and answers are an error that lists them; with `fill_missing` the most frequent ones of training
    replace them.
    """
    ensure(run, "caption")
    predictions, phases = read_captions(run, combine_with), read_table(run / PHASES_NAME)
    segments = read_table(run / SEGMENTS_NAME)
    split = next(name for name in ("test", "val", "train") if name in set(segments["split"]))
    with record_stage(run, "submit", {"fill_missing": fill_missing, "combine_with": combine_with}) as section:
        expected = submission.expected_segments(segments, split)
        built = submission.build_submission(predictions[predictions["split"] == split])
        frequent = submission.most_frequent_captions(phases[phases["split"] == "train"])
        questions, path = read_answers(run, split), run / SUBMISSION_NAME
        if questions.empty:
            written = Submitted(
                submission.write_submission(path, built, expected, fill_missing, frequent), None
            )
        else:
            letters = {row.id: row.answer for row in answer_questions(run, [split]).itertuples()}
            fillers = frequent, answers.most_frequent_answers(_count_training_answers(run), questions)
            files = (path, built, expected, run / ANSWERS_SUBMISSION_NAME, letters, questions)
            written = Submitted(*answers.write_submissions(*files, fill_missing, fillers))
        counted = {"captions": sum(map(len, expected.values())), "answers": len(questions)}
        for (what, count), file in zip(counted.items(), written, strict=True):
            if file is not None:
                filled = len(file.filled)
                section |= {what: count, f"{what}_filled": filled}
                print(f"{file.path}: {count} {what} of split {split}, {filled} of them filled in")
    return written


@exit_on_error()
def main() -> None:
    """Print the score of a run and the path of its gallery."""
    parser = argparse.ArgumentParser(prog="python -m beit3lib.pipeline.scoring", description=main.__doc__)
    parser.add_argument("run", nargs="?", type=Path, default="runs/demo", help="its folder [runs/demo]")
    run = parser.parse_args().run
    found = read_summary(run)["score"]
    text = f"score {found['model']:.1f} (nearest image {found['nearest']:.1f})"
    if "accuracy" in found:
        text += f", {found['accuracy']:.1f} % of the questions answered correctly"
    print(f"{text}; open {run / 'gallery.html'}")


if __name__ == "__main__":
    main()
