"""Find what is wrong with captions and answers, as tables for notebooks and for the gallery.

    from beit3lib.data.predictions import read_predictions
    from beit3lib.viz.inspection import error_examples

    predictions = read_predictions("runs/demo/predictions.json")
    error_examples(predictions[predictions["reference"].notna()])

`predictions` is a table of captions with their references; `answered` is one of questions with `log_probs`,
`answer` and `changed`, as `answers.consistent_answers` returns it.
"""

import html
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from IPython.display import HTML

from beit3lib.data.facts import OUTCOMES, fact_table, find_facts, split_sentences
from beit3lib.data.questions import question_key, read_image_answers
from beit3lib.dataset import Item
from beit3lib.viz.gallery import write_gallery

BAR = 20  # characters of a probability of 100 %


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
    is one, and the caption with the highest probability. `facts` has the error alone, and `aspect` also names
    it with the number of captions that have it.
    """
    table = fact_table(predictions.sort_values("log_prob", ascending=False))
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
    return pd.DataFrame(
        examples, columns=[*predictions.columns.union(["slot", "outcome", "count", "facts", "kind"])]
    )


def slot_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return `fact_scores` to read: precision and recall in percent, slots with most wrong facts first."""
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
    """Return a row per option of each question, with its probability as a bar; ✓ correct, → answered."""
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


def page_link(page: Path) -> HTML:
    """Return a link to a page of the run, where a notebook is saved in its working folder, or else the path.

    Jupyter and Kaggle save it there; papermill saves its copy anywhere.
    """
    if {"JPY_SESSION_NAME", "KAGGLE_KERNEL_RUN_TYPE"} & os.environ.keys():
        return HTML(f'<p><a href="{quote(os.path.relpath(page))}" target="_blank">Open {page.name}</a></p>')
    return HTML(f"<p>Open <code>{html.escape(str(page))}</code> in a browser.</p>")


def gallery_frame(
    predictions: pd.DataFrame,
    answers: pd.DataFrame,
    run: Path,
    others: Mapping[str, pd.DataFrame],
    images: int = 12,
    **options,
) -> HTML:
    """Return a gallery of the images with most wrong captions as a frame that is part of the notebook.

    A link or a frame with an address would depend on where papermill, Jupyter or Kaggle saves the notebook.
    `others` and `options` are those of `gallery.write_gallery`.
    """
    wrong = predictions.loc[predictions["kind"] == "wrong", "image"].value_counts().index
    chosen = [*wrong, *predictions.loc[~predictions["image"].isin(wrong), "image"].unique()][:images]
    own, asked, *rest = (
        table[table["image"].isin(chosen)] for table in (predictions, answers, *others.values())
    )
    own, others = own.drop(columns=["frame", "video_path"]), dict(zip(others, rest, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        page = write_gallery(own, Path(folder, "page.html"), run, others=others, answers=asked, **options)
        text = html.escape(page.read_text("utf-8"))
    return HTML(f'<div><iframe srcdoc="{text}" width="100%" height="650"></iframe></div>')
