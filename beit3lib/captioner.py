"""`Captioner`: a model with everything needed to caption images and to answer questions about them.

from beit3lib.checkpoint import load_captioner
captioner = load_captioner("runs/demo/best")
print(captioner.caption("photo.jpg", "vehicle", "position"))
print(captioner.answer("photo.jpg", [("What is the weather?", {"a": "clear", "b": "rainy"})]))
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit3lib.data.images import open_image
from beit3lib.data.schema import UNNAMED, CaptionType
from beit3lib.dataset import pack, pad_sequences
from beit3lib.decode import Caption, generate
from beit3lib.device import inference_precision
from beit3lib.model import CaptionModel, ImageMemory
from beit3lib.question import Options, Question, collate_options, encode_question, option_log_probs
from beit3lib.tokenizer import prompts_by_type
from beit3lib.transforms import to_tensor


class Captioner:
    """A model, its tokenizer, the caption types it was trained on, and its decoding options.

    `caption_types`: (subject, aspect) pairs, by default one without a name. With two or more of them each
    caption is conditioned on a prompt. `max_tokens` and `length_penalty` are those of the beam search.
    `meta`: the content of meta.json.
    """

    def __init__(
        self,
        model: CaptionModel,
        tokenizer,
        caption_types: Sequence[CaptionType] = (),
        max_tokens: int = 64,
        length_penalty: float = 0.6,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.caption_types = [tuple(pair) for pair in caption_types or [UNNAMED]]
        self.max_tokens, self.length_penalty, self.meta = max_tokens, length_penalty, meta or {}

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def prompts(self) -> list[list[int]]:
        """One prompt per caption type; a model of one caption type has one empty prompt."""
        return list(prompts_by_type(self.tokenizer, self.caption_types).values())

    def generate(
        self,
        images_or_memory: Tensor | ImageMemory,
        caption_types: Sequence[CaptionType] | None = None,
        num_beams: int = 3,
    ) -> list[Caption]:
        """Caption images (B, 3, S, S) in [-1, 1] with these caption types (default: all), image-major."""
        by_type = prompts_by_type(self.tokenizer, self.caption_types)
        prompts = [by_type[caption_type] for caption_type in caption_types or by_type]
        options = (num_beams, self.max_tokens, self.length_penalty)
        return generate(self.model, images_or_memory, self.tokenizer, prompts, *options)

    @torch.inference_mode()
    def log_probs(
        self, memory: ImageMemory, questions: Sequence[Sequence[Question]]
    ) -> list[list[list[float]]]:
        """Return the log-probability of each option of each question of each image in the memory."""
        asked = [i for i, of_image in enumerate(questions) if of_image]
        if not asked:
            return [[] for _ in questions]
        sequences = [pack([], 0.0, 0, np.random.default_rng(0), questions[i]) for i in asked]
        columns = pad_sequences(sequences, self.tokenizer.pad_token_id)
        names = ("input_ids", "positions", "doc_ids", "bidirectional")
        ids, positions, doc_ids, bidirectional = (columns[name].to(self.device) for name in names)
        memory = memory if len(asked) == len(questions) else memory.select(asked)
        states = self.model.encode_text(memory, ids, positions, doc_ids, bidirectional)  # (B, T, D)
        options = collate_options([question for i in asked for question in questions[i]])
        options = Options(*(tensor.to(self.device) for tensor in options))
        scores = self.model.score_options(states[bidirectional & (positions == 0)], options)
        rows = iter(option_log_probs(scores, options).tolist())
        return [[next(rows)[: len(question.options)] for question in of_image] for of_image in questions]

    def answer(
        self, image: str | Image.Image, questions: Sequence[tuple[str, Mapping[str, str]]]
    ) -> list[dict[str, float]]:
        """Answer questions about one image (a path or a PIL image): {letter: log-probability} for each.

        `questions`: (text, {letter: text of the option}). Raises ValueError if the model was trained without
        questions.
        """
        if not self.model.config.answers:
            raise ValueError("questions: expected a model that was trained with questions, got one without")
        encoded = [encode_question(self.tokenizer, *question) for question in questions]
        with inference_precision(self.device):
            memory = self.model.encode_image(self._pixels(image))
            (found,) = self.log_probs(memory, [encoded])
        pairs = zip(questions, found, strict=True)
        return [dict(zip(options, values, strict=True)) for (_, options), values in pairs]

    def _pixels(self, image: str | Image.Image) -> Tensor:
        return to_tensor(open_image(image), self.model.config.image_size)[None].to(self.device)

    def caption(
        self,
        image: str | Image.Image,
        subject: str | None = None,
        aspect: str | None = None,
        num_beams: int = 3,
    ) -> str | dict[CaptionType, str]:
        """Caption one image (a path or a PIL image) with the caption types that have this subject and aspect.

        Returns the text, or {(subject, aspect): text} if there are several.
        """
        selected = [
            kind for kind in self.caption_types if subject in (None, kind[0]) and aspect in (None, kind[1])
        ]
        if not selected:
            known = " or ".join(" ".join(kind) for kind in self.caption_types).strip() or "none"
            raise ValueError(f"caption type: expected {known}; got {subject or 'any'} {aspect or 'aspect'}")
        with inference_precision(self.device):
            found = self.generate(self._pixels(image), selected, num_beams)
        texts = [caption.text for caption in found]
        return dict(zip(selected, texts, strict=True)) if len(selected) > 1 else texts[0]
