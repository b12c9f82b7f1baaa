"""Score answers to WTS's questions, make those of a scenario consistent, and write both submission files.

    python -m beit3lib.track2.answers --predictions_file answers.json \
        --ground_truth data/wts/annotations/vqa/val

A table of questions has the columns of `data.questions`; answers are {id: letter}. Questions and options are
compared by `question_key`. Half of the challenge's score is the accuracy, see `s2`.
"""

import argparse
import math
from collections import Counter, defaultdict
from functools import partial
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from beit3lib.data.questions import question_key, read_question_index, read_questions
from beit3lib.files import FileError, atomic_path, exit_on_error, printable, read_json, write_json
from beit3lib.track2.metrics import Scores
from beit3lib.track2.submission import Submission, Written, check_submission, fill, refuse

ALPHA = 1e-3  # added to each count; the winner of 2026 used 1e-4 to 1e-3
PAIRS = 40  # of related questions; a phase has 14 questions at most, and a scenario 27
GRID = (0.0, 0.1, 0.3, 1.0)  # weights to choose from


class Accuracy(NamedTuple):
    """The share of right answers."""

    accuracy: float
    right: int
    questions: int
    missing: list[str]  # ids without an answer, which count as wrong
    parts: dict[str, pd.DataFrame]  # by scope, source and question: questions, right and accuracy


def read_answers(path: str | Path) -> dict[str, str]:
    """Read `[{"id", "correct"}, …]` as {id: letter}; the last entry of an id counts, null is no answer."""
    answers = {}
    for entry in read_json(path, list):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (str, int)):
            raise FileError(f'{path}: expected {{"id": "…", "correct": "a"}} in the list, got {entry!r:.60}')
        answers[entry["id"]] = str(entry.get("correct") or "")
    return answers


def read_truth(path: str | Path) -> pd.DataFrame:
    """Read correct answers from a folder of question files, an index (.jsonl) or a list of answers."""
    if Path(path).is_dir():
        table = read_questions(path).table
    elif Path(path).suffix == ".jsonl":
        table = read_question_index(path)
    else:
        table = pd.DataFrame(list(read_answers(path).items()), columns=["id", "correct"])
    table = table[[bool(letter) for letter in table["correct"]]]
    if table.empty:
        raise FileError(f"{path}: expected correct answers, got none. Give the questions of train or val.")
    return table


def accuracy(answers: dict[str, str], truth: pd.DataFrame) -> Accuracy:
    """Return right answers / ids of the ground truth, as the official scorer does.

    Case is ignored, letters are compared whole, a missing answer is wrong, answers to other questions are
    ignored, and the last row of a repeated id counts. `truth` has id and correct; parts are made of its
    columns scope, source and question, if it has them.
    """
    truth = truth.drop_duplicates("id", keep="last")
    given = pd.Series([answers.get(identity) or "" for identity in truth["id"]], truth.index).str.lower()
    table = truth.assign(right=given == truth["correct"].str.lower())
    parts = {}
    for name in ("scope", "source", "question"):
        if name in table:
            groups = table.groupby(table[name].map(question_key), sort=False)
            part = groups.agg(text=(name, "first"), questions=("right", "size"), right=("right", "sum"))
            parts[name] = part.assign(accuracy=part["right"] / part["questions"]).set_index("text")
    missing = truth["id"][given == ""].tolist()
    return Accuracy(table["right"].mean(), int(table["right"].sum()), len(table), missing, parts)


def s2(caption_score: float, accuracy: float) -> float:
    """Return the challenge's score since 2025: the mean of the caption score and 100 · accuracy."""
    return (caption_score + 100 * accuracy) / 2


def s2_of_editions(captions: Scores, answers: Accuracy) -> dict[str, float]:
    """Return S2 by the rules of each edition.

    In 2025 the caption score is the mean of internal (WTS) and external (BDD) segments, and all questions
    count. In 2026 only captions and questions of WTS count; without any the edition is absent.
    """
    editions = {"2025": s2(captions.final, answers.accuracy)}
    if captions.internal and "wts" in (sources := answers.parts.get("source", pd.DataFrame())).index:
        editions["2026"] = s2(captions.internal["score"], float(sources.loc["wts", "accuracy"]))
    return editions


class Asked(NamedTuple):
    """A question with the keys of its texts, for comparisons."""

    id: str
    scenario: str
    view: str
    phase: int  # WHOLE if it is about the whole scenario
    question: str
    options: dict[str, str]  # by letter


WHOLE = -9  # no other phase follows


def _asked(questions: pd.DataFrame) -> list[Asked]:
    asked = []
    for row in questions.itertuples():
        options = {letter: question_key(text) for letter, text in row.options.items()}
        phase = WHOLE if row.phase is None else row.phase
        asked.append(Asked(row.id, row.scenario, row.view, phase, question_key(row.question), options))
    return asked


class AnswerCounts:
    """How often training answers occur, occur together in a phase, and follow each other from phase to phase.

    `pairs` has the pairs of questions with the largest mutual information of their answers.
    """

    def __init__(self, train: pd.DataFrame) -> None:
        counters = partial(defaultdict, Counter)
        self.single = counters()  # {(question, phase), (question,) or (): {answer: count}}
        self.steps = counters()  # {question: {(answer, answer in the next phase): count}}
        together, moments = counters(), defaultdict(dict)
        for q, letter in zip(_asked(train), train["correct"], strict=True):
            for key in ((q.question, q.phase), (q.question,), ()):
                self.single[key][q.options[letter]] += 1
            moments[q.scenario, q.phase][q.question] = q.options[letter]
        for (scenario, phase), answers in moments.items():
            for a, b in combinations(sorted(answers), 2):
                together[a, b][answers[a], answers[b]] += 1
            following = moments.get((scenario, phase + 1), {})
            for question in answers.keys() & following.keys():
                self.steps[question][answers[question], following[question]] += 1
        information = {pair: mutual_information(counts) for pair, counts in together.items()}
        best = sorted(information, key=information.get, reverse=True)[:PAIRS]
        self.pairs = {pair: together[pair] for pair in best if information[pair] > 0}


def most_frequent_answers(
    counts: AnswerCounts, questions: pd.DataFrame, by_phase: bool = True
) -> dict[str, str]:
    """Return for each question the option that is most often correct in training for the question and phase.

    Equally frequent options, as those of a new question, are compared by how often they answer the question
    in any phase, and then any question. `by_phase=False` ignores the phase.
    """
    answers = {}
    for q in _asked(questions):
        keys = ((q.question, q.phase), (q.question,), ())[0 if by_phase else 1 :]
        frequency = {letter: [counts.single[key][text] for key in keys] for letter, text in q.options.items()}
        answers[q.id] = max(frequency, key=frequency.get)
    return answers


def shuffled_answers(questions: pd.DataFrame, answers: dict[str, str], seed: int = 0) -> dict[str, str]:
    """Return answers that were given to the same question of another scenario, and so about another image.

    A question keeps its own answer if none of them is among its options.
    """
    rng, shuffled, others = np.random.default_rng(seed), {}, defaultdict(list)
    asked = _asked(questions[questions["id"].isin(answers)])
    for q in asked:
        others[q.question].append((q.scenario, q.options[answers[q.id]]))
    for q in asked:
        letters = {text: letter for letter, text in q.options.items()}
        found = [letters[a] for name, a in others[q.question] if name != q.scenario and a in letters]
        shuffled[q.id] = found[rng.integers(len(found))] if found else answers[q.id]
    return shuffled


def mutual_information(counts: Counter) -> float:
    """Return the mutual information of two answers in nats, less its expected value if they are independent.

    Counts of independent answers with A and B values have about (A - 1)(B - 1) / 2N instead of 0 (Miller
    1955), so that rare questions with many answers would seem related.
    """
    total, first, second = sum(counts.values()), Counter(), Counter()
    for (a, b), count in counts.items():
        first[a] += count
        second[b] += count
    found = sum(n / total * math.log(n * total / (first[a] * second[b])) for (a, b), n in counts.items())
    return found - (len(first) - 1) * (len(second) - 1) / (2 * total)


def log_shares(counts: list | np.ndarray) -> np.ndarray:
    """Return log P of each option from counts with `ALPHA` added, normalized over the options (last axis)."""
    smoothed = np.asarray(counts, float) + ALPHA
    return np.log(smoothed / smoothed.sum(-1, keepdims=True))


def viterbi(scores: list[np.ndarray], steps: list[np.ndarray]) -> list[int]:
    """Return the path with the largest sum.

    `scores[t][i]` is for state i at time t, `steps[t][i, j]` for i at t followed by j.
    """
    best, pointers = scores[0], []
    for step, score in zip(steps, scores[1:], strict=True):
        through = best[:, None] + step  # (states at t, states at t + 1)
        pointers.append(through.argmax(0))
        best = through.max(0) + score
    path = [int(best.argmax())]
    for pointer in reversed(pointers):
        path.append(int(pointer[path[-1]]))
    return path[::-1]


class Weights(NamedTuple):
    """Weights of the terms beside the model, which has weight 1; 0 switches a term off."""

    single: float = 0.0
    pairs: float = 0.0
    steps: float = 0.0


class AnswerGraph:
    """Questions that a model has answered, with all tables of log-probabilities that connect them.

    `questions` has a column `log_probs`, {letter: log-probability}; questions without any, which have no
    image, are left out. A chain is a question in the phases of a scenario.
    """

    def __init__(self, questions: pd.DataFrame, counts: AnswerCounts) -> None:
        questions = questions[questions["log_probs"].notna()]
        self.asked = _asked(questions)
        texts = [list(q.options.values()) for q in self.asked]

        def table(found: Counter, i: int, j: int) -> np.ndarray:
            return np.array([[found[a, b] for b in texts[j]] for a in texts[i]])

        answered = zip(self.asked, questions["log_probs"], strict=True)
        self.model = [np.array([log_probs[letter] for letter in q.options]) for q, log_probs in answered]
        known = [counts.single[q.question, q.phase] for q in self.asked]
        self.single = [log_shares([n[a] for a in options]) for n, options in zip(known, texts, strict=True)]
        phases, chains = defaultdict(list), defaultdict(list)
        for i, q in sorted(enumerate(self.asked), key=lambda item: (item[1].phase, item[1].question)):
            phases[q.scenario, q.phase].append((i, q.question))
            chains[q.scenario, q.view, q.question].append(i)
        self.related = defaultdict(list)  # {question: [(other question, log-probabilities of both)]}
        for (i, first), (j, second) in [pair for phase in phases.values() for pair in combinations(phase, 2)]:
            if found := counts.pairs.get((first, second)):
                both = table(found, i, j)
                link = (log_shares(both) + log_shares(both.T).T) / 2  # the mean of P(j | i) and P(i | j)
                self.related[i].append((j, link))
                self.related[j].append((i, link.T))
        self.chains = [  # (questions, log-probabilities of each followed by the next)
            (chain, [log_shares(table(counts.steps[question], i, j)) for i, j in pairwise(chain)])
            for (_, _, question), chain in chains.items()
        ]

    def choose(self, weights: Weights) -> dict[str, str]:
        """Return answers for which the weighted sum of all log-probabilities is large.

        Each chain is solved exactly (Viterbi) while the other answers are fixed, until none changes. The sum
        is then the largest one if `weights.pairs` is 0, and otherwise one that no change of a single chain
        makes larger.
        """
        own = [m + weights.single * s for m, s in zip(self.model, self.single, strict=True)]
        choice = [int(m.argmax()) for m in self.model]
        for _ in range(20):
            before = list(choice)
            for chain, steps in self.chains:
                links = [sum(link[:, choice[j]] for j, link in self.related[i]) for i in chain]
                scores = [own[i] + weights.pairs * link for i, link in zip(chain, links, strict=True)]
                best = viterbi(scores, [weights.steps * step for step in steps])
                for i, option in zip(chain, best, strict=True):
                    choice[i] = option
            if choice == before:
                break
        return {q.id: list(q.options)[option] for q, option in zip(self.asked, choice, strict=True)}


def choose_weights(validation: pd.DataFrame, counts: AnswerCounts) -> tuple[Weights, pd.DataFrame]:
    """Return the weights in `GRID` with the best accuracy on validation questions, and all accuracies tried.

    One weight at a time is changed as long as the accuracy rises, from 0. In simulations this led to the best
    of all 64 combinations after 21 to 26 of them; 16,000 questions took half a minute on a CPU core.
    """
    graph, tried = AnswerGraph(validation, counts), {}

    def score(weights: Weights) -> float:
        if weights not in tried:
            tried[weights] = (validation["id"].map(graph.choose(weights)) == validation["correct"]).mean()
        return tried[weights]

    best, before = Weights(), None
    while best != before:
        before = best
        near = [best._replace(**{name: value}) for name, value in product(Weights._fields, GRID)]
        best = max([before, *near], key=score)  # the first one of those with an equal score
    return best, pd.DataFrame([weights._asdict() | {"accuracy": share} for weights, share in tried.items()])


def consistent_answers(questions: pd.DataFrame, counts: AnswerCounts, weights: Weights) -> pd.DataFrame:
    """Return the questions with `answer`, a letter, and `changed`, whether the model alone answers otherwise.

    A question without `log_probs` has the answer None.
    """
    graph = AnswerGraph(questions, counts)
    chosen, alone = graph.choose(weights), graph.choose(Weights())
    answer = pd.Series([chosen.get(identity) for identity in questions["id"]], questions.index, dtype=object)
    changed = [chosen.get(identity) != alone.get(identity) for identity in questions["id"]]
    return questions.assign(answer=answer, changed=changed)


def check_answers(answers: dict[str, str], questions: pd.DataFrame) -> list[str]:
    """Return all problems of answers to `questions`, which are all of the test file.

    The server reports no missing id: a team of 2026 that skipped questions about scenarios lost 21 points.
    """
    unknown = answers.keys() - set(questions["id"])
    problems = [f"{identity}: not a question of the test file" for identity in sorted(unknown)]
    for row in questions.itertuples():
        letter, asked = answers.get(row.id), f"{row.question!r} ({row.scenario}, {row.scope} {row.phase})"
        if not letter:
            problems.append(f"{row.id}: no answer to {asked}")
        elif letter.lower() not in row.options:
            problems.append(f"{row.id}: expected one of {', '.join(row.options)}, got {letter!r}")
    return problems


def write_submissions(
    captions_path: str | Path,
    captions: Submission,
    expected: dict[str, list[str]],
    answers_path: str | Path,
    answers: dict[str, str],
    questions: pd.DataFrame,
    fill_missing: bool = False,
    most_frequent: tuple[dict[str, str], dict[str, str]] = ({}, {}),
) -> tuple[Written, Written]:
    """Write the file of captions and the file of answers, or raise SubmissionError and write neither.

    With `fill_missing`, missing captions and answers are replaced by `most_frequent`, the results of
    `submission.most_frequent_captions` and of `most_frequent_answers`, and listed in the result.
    """
    filled, missing = [], []
    if fill_missing:
        captions, filled = fill(captions, expected, most_frequent[0])
        missing = [identity for identity in questions["id"] if not answers.get(identity)]
        answers = answers | {identity: most_frequent[1].get(identity, "") for identity in missing}
    refuse(captions_path, check_submission(captions, expected), "Caption all images of both subjects")
    refuse(answers_path, check_answers(answers, questions), "Answer all questions")
    entries = [{"id": identity, "correct": answers[identity].lower()} for identity in questions["id"]]
    with atomic_path(captions_path) as first, atomic_path(answers_path) as second:
        write_json(first, captions)
        write_json(second, entries)
    return Written(Path(captions_path), captions, filled), Written(Path(answers_path), entries, missing)


def report(found: Accuracy) -> str:
    """Return the accuracy as text, with a line for each scope, source and question."""
    lines = [f"Accuracy: {found.accuracy:.2%} ({found.right} of {found.questions} questions)"]
    if found.missing:
        lines.append(f"{len(found.missing)} have no answer and count as wrong, such as {found.missing[0]}")
    for table in found.parts.values():
        lines.append(table.to_string(formatters={"accuracy": "{:.2%}".format}, index_names=False))
    return printable("\n".join(lines))


@exit_on_error()
def main() -> None:
    """`python -m beit3lib.track2.answers`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions_file", required=True, help='[{"id": "…", "correct": "a"}, …]')
    truth_help = "lists of answers, folders of question files or indexes of questions"
    parser.add_argument("--ground_truth", required=True, nargs="+", help=truth_help)
    options = parser.parse_args()
    truth = pd.concat([read_truth(path) for path in options.ground_truth], ignore_index=True)
    print(report(accuracy(read_answers(options.predictions_file), truth)))


if __name__ == "__main__":
    main()
