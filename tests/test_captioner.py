"""A Captioner conditions each caption on its prompt and captions one image in three lines."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_model import TINY, make_model

from beit3lib.captioner import Captioner
from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import load_tokenizer

TYPES = [("vehicle", "road"), ("pedestrian", "moving"), ("pedestrian", "road")]


@pytest.fixture(scope="module")
def make():
    tokenizer = load_tokenizer(SPM_PATH)
    model = make_model(replace(TINY, vocab_size=len(tokenizer) + 8)).eval()
    with torch.no_grad():
        model.mlm_head.weight.mul_(20)
    return lambda caption_types: Captioner(model, tokenizer, caption_types, max_tokens=8, length_penalty=0.6)


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


def test_an_image_is_captioned_in_three_lines(make, photo, monkeypatch):
    # In bf16 the size of a batch decides between the nearly equal tokens of random weights.
    monkeypatch.setattr("beit3lib.captioner.inference_precision", lambda device: nullcontext())
    captioner = make(TYPES)
    captions = captioner.caption(photo)
    assert list(captions) == TYPES
    assert captioner.caption(photo, "vehicle", "road") == captions["vehicle", "road"]
    roads = [kind for kind in TYPES if kind[1] == "road"]
    assert captioner.caption(photo, aspect="road") == {kind: captions[kind] for kind in roads}
    assert captioner.caption(Image.open(photo), "pedestrian", "moving") == captions["pedestrian", "moving"]


@pytest.mark.parametrize("caption_types", [[], [("vehicle", "road")]], ids=["unnamed", "one"])
def test_a_model_of_one_caption_type_has_no_prompt(make, photo, caption_types):
    captioner = make(caption_types)
    assert captioner.prompts == [[]]
    assert isinstance(captioner.caption(photo), str)


def test_an_unknown_caption_type_is_answered_with_those_of_the_model(make, photo):
    known = "vehicle road or pedestrian moving or pedestrian road"
    with pytest.raises(ValueError, match=f"expected {known}; got vehicle weather"):
        make(TYPES).caption(photo, "vehicle", "weather")
    with pytest.raises(ValueError, match="expected none; got vehicle"):
        make([]).caption(photo, "vehicle")
