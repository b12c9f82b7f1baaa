"""`Captioner`: a model with everything needed to caption images.

from beit3lib.checkpoint import load_captioner

captioner = load_captioner("runs/demo/best")
print(captioner.caption("photo.jpg", "vehicle", "position"))
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from beit3lib.data.images import open_image
from beit3lib.data.schema import CaptionType
from beit3lib.decode import Caption, generate
from beit3lib.device import inference_precision
from beit3lib.model import CaptionModel
from beit3lib.tokenizer import prompt_ids
from beit3lib.transforms import to_tensor


class Captioner:
    """A model, its tokenizer, the caption types it was trained on, and its decoding options.

    `caption_types`: (subject, aspect) pairs; with two or more of them each caption is conditioned on a prompt. `max_tokens`
    and `length_penalty` are those of the beam search. `meta`: the content of meta.json.
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
        self.caption_types = [tuple(pair) for pair in caption_types]
        self.max_tokens, self.length_penalty, self.meta = max_tokens, length_penalty, meta or {}

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def prompts(self) -> list[list[int]]:
        """One prompt per caption type; a model of one caption type has one empty prompt."""
        return self._prompts(self.caption_types)

    def _prompts(self, caption_types: Sequence[CaptionType]) -> list[list[int]]:
        if len(self.caption_types) < 2:
            return [[]]
        return [prompt_ids(self.tokenizer, *caption_type) for caption_type in caption_types]

    def generate(
        self, pixels: Tensor, caption_types: Sequence[CaptionType] | None = None, num_beams: int = 3
    ) -> list[Caption]:
        """Generate captions of images (B, 3, S, S) in [-1, 1], image-major: one per image and caption type (default: all)."""
        prompts = self.prompts if caption_types is None else self._prompts(caption_types)
        options = {
            "num_beams": num_beams,
            "max_tokens": self.max_tokens,
            "length_penalty": self.length_penalty,
        }
        return generate(self.model, pixels.to(self.device), self.tokenizer, prompts, **options)

    def caption(
        self,
        image: str | Image.Image,
        subject: str | None = None,
        aspect: str | None = None,
        num_beams: int = 3,
    ) -> str | dict[CaptionType, str]:
        """Caption one image (a path or a PIL image): text, or {(subject, aspect): text} if several caption types match.

        `subject` and `aspect` select among the caption types of the model.
        """
        selected = [
            pair for pair in self.caption_types if subject in (None, pair[0]) and aspect in (None, pair[1])
        ]
        if not selected and (subject or aspect):
            known = ", ".join(" ".join(pair) for pair in self.caption_types) or "one type without a name"
            raise ValueError(
                f"caption type: expected one of {known}; got {subject or 'any'} {aspect or ''}".rstrip()
            )
        pixels = to_tensor(open_image(image), self.model.config.image_size)[None]
        with inference_precision(self.device):
            texts = [caption.text for caption in self.generate(pixels, selected or None, num_beams)]
        return dict(zip(selected, texts, strict=True)) if len(selected) > 1 else texts[0]
