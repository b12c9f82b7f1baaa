"""Multiple-choice questions for the model: a question as token ids, its options as bags of tokens.

A question is one more document of a packed sequence, `<s>` question `</s>`, whose tokens attend to all of it
and to the image. The model scores each option's text against the state at `<s>`
(`CaptionModel.score_options`), and the softmax runs over the options of the question. So there is no list of
answers, a question has any number of options in any order, and an option that training never showed has a
score, too.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_QUESTION_TOKENS = 128  # with `<s>` and `</s>`; questions of WTS have 10 to 30


class Question(NamedTuple):
    """Token ids of a question, with `<s>` and `</s>`, and of its options; index of the correct one, or -1."""

    ids: list[int]
    options: list[list[int]]
    correct: int


class Options(NamedTuple):
    """The O options of Q questions: the n token ids of all options end to end, and what they belong to."""

    ids: Tensor  # (n,)
    weights: Tensor  # (n,) of each token in the vector of its option
    starts: Tensor  # (O,) index of each option's first token
    question: Tensor  # (O,) 0 … Q - 1
    number: Tensor  # (O,) of the option within its question, from 0
    correct: Tensor  # (Q,) number of the correct option, -1 if it is unknown


def encode_question(
    tokenizer, question: str, options: Mapping[str, str], correct: str | None = None
) -> Question:
    """Return the token ids of a question and its options, {letter: text}; `correct` is a letter or None."""
    ids = tokenizer.encode(question, add_special_tokens=False)[: MAX_QUESTION_TOKENS - 2]
    encoded = (tokenizer.encode(text, add_special_tokens=False) for text in options.values())
    texts = [option or [tokenizer.unk_token_id] for option in encoded]
    number = list(options).index(correct) if correct else -1
    return Question([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], texts, number)


def collate_options(questions: Sequence[Question]) -> Options:
    """Join the options of all questions to one `Options`."""
    ids, weights, starts, of_question, numbers = [], [], [], [], []
    for number, question in enumerate(questions):
        for i, option in enumerate(question.options):
            share = np.full(len(option), 1 / len(option))
            if any(option != other and sorted(option) == sorted(other) for other in question.options):
                # "red hat, black coat", "black hat, red coat": the same mean, if earlier tokens weighed no more.
                share *= np.linspace(1.5, 0.5, len(option))
            starts.append(len(ids))
            ids += option
            weights += share.tolist()
            of_question.append(number)
            numbers.append(i)
    correct = [question.correct for question in questions]
    ids, *more = (
        torch.tensor(part, dtype=torch.long) for part in (ids, starts, of_question, numbers, correct)
    )
    return Options(ids, torch.tensor(weights, dtype=torch.float), *more)


def option_log_probs(scores: Tensor, options: Options) -> Tensor:
    """Return log-probabilities (Q, most options of a question) from scores (O,), -inf where no option is."""
    width = int(options.number.max()) + 1 if len(scores) else 1
    table = scores.new_full((len(options.correct), width), -torch.inf)
    table = table.index_put((options.question, options.number), scores)
    return table.log_softmax(1)
