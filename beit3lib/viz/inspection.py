"""Find what is wrong with captions and answers, as tables for notebooks and for the gallery.

    from beit3lib.data.predictions import read_predictions
    from beit3lib.viz.inspection import error_examples

    predictions = read_predictions("runs/demo/predictions.json")
    error_examples(predictions[predictions["reference"].notna()])

`predictions` is a table of captions with their references; `answered` is one of questions with `log_probs`,
`answer` and `changed`, as `answers.consistent_answers` returns it.
"""

import html
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

from beit3lib.data.facts import (
    OUTCOMES,
    caption_kind,
    fact_table,
    find_facts,
    read_facts,
    split_sentences,
)
from beit3lib.data.questions import question_key, read_image_answers
from beit3lib.data.schema import SUBJECTS
from beit3lib.dataset import Item
from beit3lib.track2.answers import mutual_information
from beit3lib.viz.gallery import write_gallery

MIN_COUNT, MAX_SHARE = 10, 0.01  # training captions of a fact; the share with an answer that contradicts it
BAR = 20  # characters of a probability of 100 %


def with_facts(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the captions with `facts`, a list of dicts, and the `kind` of each; None without a reference."""
    facts: dict[int, list[dict]] = defaultdict(list)
    for index, *fact in fact_table(predictions)[["slot", "predicted", "reference", "outcome"]].itertuples():
        facts[index].append(dict(zip(("slot", "predicted", "reference", "outcome"), fact, strict=True)))
    outcomes = [{fact["slot"]: fact["outcome"] for fact in facts[index]} for index in predictions.index]
    kinds = [
        caption_kind(found) if isinstance(reference, str) else None
        for found, reference in zip(outcomes, predictions["reference"], strict=True)
    ]
    kinds = pd.Series(kinds, predictions.index, dtype=object)  # text would have nan instead of None
    return predictions.assign(facts=[facts[index] for index in predictions.index], kind=kinds)


def with_media(predictions: pd.DataFrame, phases: pd.DataFrame) -> pd.DataFrame:
    """Return the captions with what the gallery shows beside an image: boxes, sharp frame and video.

    `phases` is the table of phases.csv.
    """
    about = phases.drop_duplicates("image")
    about = about.assign(frame="frames/" + about["image"], image="images/" + about["image"])
    about["video_path"] = [path and str(Path(path).absolute()) for path in about["video_path"]]
    names = [name for name in about if name.startswith(("box_", "frame"))]
    about = about.set_index("image")[["video_path", "start_s", "end_s", *names]]
    return predictions.join(about, on="image")


def error_examples(predictions: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """Return one caption for each kind of error (wrong, omitted, added) and slot, wrong facts first.

    Within a kind, the slot with most errors comes first; each example is of another scenario as long as there
    is one. `facts` has the error alone, and `aspect` also names it with the number of captions that have it.
    """
    table = fact_table(predictions)
    examples, seen = [], set()
    for outcome in ("wrong", "omitted", "added"):
        errors = table[table["outcome"] == outcome]
        for slot, count in errors["slot"].value_counts().head(most).items():
            found = errors[errors["slot"] == slot]
            scenarios = predictions.loc[found.index, "scenario"]
            index = next((i for i, name in scenarios.items() if name not in seen), found.index[0])
            seen.add(scenarios[index])
            fact = found.loc[index]
            kind = f"{slot.replace('_', ' ')} {outcome} in {count} caption{'s' if count > 1 else ''}"
            examples.append(
                predictions.loc[index].to_dict()
                | {"slot": slot, "outcome": outcome, "count": count, "facts": [fact.to_dict()]}
                | {"aspect": f"{predictions.at[index, 'aspect']} ({kind})", "kind": OUTCOMES[outcome]}
            )
    return pd.DataFrame(examples)


def slot_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return `fact_scores` to read: precision and recall in percent, the slots with most wrong facts first."""
    table = scores.sort_values(["wrong", "omitted", "added"], ascending=False)
    shares = {name: [_percent(value) for value in table[name]] for name in ("precision", "recall")}
    table = table.assign(**shares).rename_axis("fact").reset_index()
    return table.assign(fact=table["fact"].str.replace("_", " "))


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.1f} %"


def words_to_show(predictions: pd.DataFrame, look_for: Iterable[str] = (), count: int = 3) -> pd.DataFrame:
    """Return image, subject, aspect and word of captions of different scenarios, for maps of attention.

    The words are those of `look_for`, or wrong facts: first those of the captions with most of them.
    """
    columns = ["scenario", "image", "subject", "aspect", "word", "reference"]
    if look_for:
        texts = predictions["caption"].fillna("").str.lower().str.findall(r"[\w-]+")
        found = [(i, word, None) for i, own in texts.items() for word in look_for if word in own]
    else:
        wrong = fact_table(predictions).query("outcome == 'wrong'")
        wrong["errors"] = wrong.groupby(level=0).size()
        wrong = wrong.sort_values("errors", ascending=False, kind="stable")
        found = []
        for i, slot, value, reference in wrong[["slot", "predicted", "reference"]].itertuples():
            words = fact_words(predictions.at[i, "caption"], slot)
            named = [word for word in words if any(part in word.lower() for part in str(value).split())]
            found += [(i, word, reference) for word in (named or words)[:1]]
    rows = [(*predictions.loc[i, columns[:4]], word, reference) for i, word, reference in found]
    return pd.DataFrame(rows, columns=columns).drop_duplicates("scenario").head(count)


def fact_words(caption: str, slot: str) -> list[str]:
    """Return the words of a caption that state the value of a slot, such as "going slowly"."""
    found = [(text, fact) for text in split_sentences(caption) for fact in find_facts(text)]
    spans = [text[fact.start : fact.end] for text, fact in found if fact.slot == slot and fact.value]
    return spans[0].split() if spans else []


def decoded_sequence(item: Item, tokenizer) -> pd.DataFrame:
    """Return a table of the documents of a packed sequence: what the model reads, and what it predicts."""
    sequence, rows, questions = item.sequence, [], iter(item.questions)
    for number in range(sequence.doc_ids.max() + 1):
        document = sequence.doc_ids == number
        tokens = tokenizer.convert_ids_to_tokens(sequence.input_ids[document].tolist())
        text = "".join("█ " if token == tokenizer.mask_token else token for token in tokens)
        if sequence.bidirectional[document].any():
            question = next(questions)
            options = [tokenizer.decode(option) for option in question.options]
            target = " · ".join(
                f"{text} ✓" if i == question.correct else text for i, text in enumerate(options)
            )
        else:
            target = tokenizer.decode(sequence.labels[document].tolist(), skip_special_tokens=True)
        rows.append((text.replace("▁", " "), target))
    return pd.DataFrame(rows, columns=["input", "target"])


def question_table(questions: pd.DataFrame) -> pd.DataFrame:
    """Return questions to read, with all options and a ✓ after the correct one."""
    options = [
        " · ".join(text + " ✓" * (letter == correct) for letter, text in options.items())
        for options, correct in zip(questions["options"], questions["correct"], strict=True)
    ]
    return questions[["view", "question"]].assign(options=options).reset_index(drop=True)


def answer_table(answered: pd.DataFrame) -> pd.DataFrame:
    """Return a row per option of each question, with its probability as a bar; ✓ is correct, → was answered."""
    rows = []
    for row in answered.itertuples():
        scores = np.array([row.log_probs[letter] for letter in row.options])
        for number, (letter, text) in enumerate(row.options.items()):
            share = np.exp(scores[number]) / np.exp(scores).sum()
            marks = "→" * (letter == row.answer) + "✓" * (letter == row.correct)
            bar = "█" * round(BAR * share) or "▏"
            rows.append(("" if number else row.question, text, marks, f"{bar} {share:.0%}"))
    return pd.DataFrame(rows, columns=["question", "option", "→ answer, ✓ correct", "probability"])


def question_accuracy(answered: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each question, worst first, and the answers that are most often confused."""
    known = answered[answered["correct"].notna() & answered["answer"].notna()]
    rows = []
    for _, group in known.groupby(known["question"].map(question_key)):
        confused = Counter(
            (row.options[row.correct], row.options[row.answer])
            for row in group.itertuples()
            if row.answer != row.correct
        )
        texts = [f"{true} → {given} ({n})" for (true, given), n in confused.most_common(2)]
        right = 1 - confused.total() / len(group)
        rows.append((group["question"].iloc[0], len(group), right, ", ".join(texts)))
    columns = ["question", "questions", "accuracy", "most often confused (correct → answer)"]
    table = pd.DataFrame(rows, columns=columns).sort_values("accuracy", ignore_index=True)
    return table.assign(accuracy=[_percent(share) for share in table["accuracy"]])


def answers_of_images(path: Path, answered: pd.DataFrame) -> pd.DataFrame:
    """Return a row per image and question, with the `log_probs` of this image alone."""
    found = read_image_answers(path) if path.is_file() else pd.DataFrame(columns=["image", "id", "log_probs"])
    return found.merge(answered.drop(columns="log_probs"), on="id")


def gallery_frame(
    predictions: pd.DataFrame, answers: pd.DataFrame, run: Path, images: int = 12, **options
) -> HTML:
    """Return a gallery of the images with most wrong captions as a frame that is part of the notebook.

    A link or a frame with an address would depend on where papermill, Jupyter or Kaggle saves the notebook.
    `options` are those of `gallery.write_gallery`.
    """
    wrong = predictions.loc[predictions["kind"] == "wrong", "image"].value_counts().index
    chosen = [*wrong, *predictions.loc[~predictions["image"].isin(wrong), "image"].unique()][:images]
    own = predictions[predictions["image"].isin(chosen)].drop(columns=["frame", "video_path"])
    asked = answers[answers["image"].isin(chosen)]
    with tempfile.TemporaryDirectory() as folder:
        page = write_gallery(own, Path(folder, "page.html"), run, answers=asked, **options)
        text = html.escape(page.read_text("utf-8"))
    return HTML(f'<div><iframe srcdoc="{text}" width="100%" height="650"></iframe></div>')


class AnswerFacts:
    """Which answers go with which facts, counted from training data; no list of questions is needed.

    `phases` has scenario, phase and captions, `questions` the training questions with correct answers.
    A question has the slots whose values tell most about its answer.
    """

    def __init__(self, phases: pd.DataFrame, questions: pd.DataFrame) -> None:
        facts: dict[tuple, dict] = defaultdict(dict)  # {(scenario, phase or None): {(subject, slot): value}}
        for row in phases.drop_duplicates(["scenario", "phase"]).to_dict("records"):
            for subject in SUBJECTS:
                for slot, value in read_facts(row[f"caption_{subject}"] or "", subject).items():
                    for phase in (row["phase"], None):
                        facts[row["scenario"], phase][subject, slot] = value
        counts: dict[str, dict[tuple, Counter]] = defaultdict(lambda: defaultdict(Counter))
        for row in questions.dropna(subset=["correct"]).itertuples():
            answer = question_key(row.options[row.correct])
            for slot, value in facts.get((row.scenario, row.phase), {}).items():
                counts[question_key(row.question)][slot][value, answer] += 1
        self.counts = {}  # {question: {(subject, slot): {(value, answer): count}}}
        for question, of_slots in counts.items():
            tells = {slot: mutual_information(found) for slot, found in of_slots.items()}
            slots = [slot for slot in of_slots if tells[slot] >= 0.5 * max(tells.values()) > 0]
            self.counts[question] = {slot: of_slots[slot] for slot in slots}

    def contradictions(self, question: str, answer: str, subject: str, facts: dict) -> list[str]:
        """Return the slots whose value is frequent in training, but almost never with this answer."""
        found = []
        for (of_subject, slot), counts in self.counts.get(question, {}).items():
            if of_subject == subject and slot in facts and answer in {other for _, other in counts}:
                with_value = sum(n for (value, _), n in counts.items() if value == facts[slot])
                if with_value >= MIN_COUNT and counts[facts[slot], answer] <= MAX_SHARE * with_value:
                    found.append(slot)
        return found


def contradictions(predictions: pd.DataFrame, answered: pd.DataFrame, known: AnswerFacts) -> pd.DataFrame:
    """Return a row per fact of a caption that contradicts an answer about the same phase or scenario."""
    by_moment = {key: rows for key, rows in answered.groupby(["scenario", "phase"], dropna=False)}
    by_moment = {(name, None if phase != phase else phase): rows for (name, phase), rows in by_moment.items()}
    rows = []
    for caption in predictions.itertuples():
        facts = read_facts(caption.caption or "", caption.subject)
        for key in ((caption.scenario, caption.phase), (caption.scenario, None)):
            for asked in by_moment[key].itertuples() if facts and key in by_moment else ():
                answer = asked.options.get(asked.answer, "")
                about = (question_key(asked.question), question_key(answer), caption.subject)
                for slot in known.contradictions(*about, facts):
                    correct = asked.options.get(asked.correct)
                    values = (slot.replace("_", " "), facts[slot], asked.question, answer, correct)
                    rows.append((caption.Index, caption.image, *values))
    columns = ["index", "image", "fact", "caption", "question", "answer", "correct"]
    return pd.DataFrame(rows, columns=columns).set_index("index")


def contradiction_texts(found: pd.DataFrame) -> pd.Series:
    """Return a text for each caption with contradictions, by its index."""
    texts = (
        found["fact"]
        + " "
        + found["caption"].map(str)
        + ", but “"
        + found["question"]
        + "” "
        + found["answer"]
    )
    return texts.groupby(level=0).agg("; ".join) if len(texts) else pd.Series(dtype=object)
