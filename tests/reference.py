"""The reference implementation (package beit3-gml) as the oracle of tests and benchmark.

`recipe("utils")` returns one of its modules. They import each other by bare names, such as `utils` and
`datasets`, so its folder is on `sys.path` only while they load, and those names are removed from
`sys.modules` afterwards: other packages have a `datasets` too. Importing this module skips the importing
tests if beit3-gml is not installed.
"""

import importlib
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest
import torch

FOLDER = Path(pytest.importorskip("beit3", reason="beit3-gml is not installed").__file__).parent


@cache
def _modules() -> dict[str, ModuleType]:
    names = [path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__"]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm and torch, about old names
            # It imports relatively.
            sys.modules["modeling_finetune"] = importlib.import_module("beit3.modeling_finetune")
            return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def recipe(module: str) -> ModuleType:
    """A module of the reference implementation, for example `recipe("optim_factory")`."""
    return _modules()[module]


def captioning_model(model, drop_path: float = 0.0):
    """Its model with the weights of ours (the same tensors, not copies), in eval mode."""
    config = model.config
    modeling = recipe("modeling_finetune")
    arguments = recipe("modeling_utils")._get_base_config()
    sizes = {
        "img_size": config.image_size,
        "vocab_size": config.vocab_size,
        "patch_size": config.patch_size,
        "encoder_embed_dim": config.width,
        "encoder_attention_heads": config.heads,
        "encoder_ffn_embed_dim": 4 * config.width,
        "encoder_layers": config.layers,
        "drop_path_rate": drop_path,
    }
    vars(arguments).update(sizes)
    with torch.device("meta"):
        theirs = modeling.BEiT3ForCaptioning(arguments)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    theirs.load_state_dict(dict(model.named_parameters()), strict=True, assign=True)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(trained[name])
    return theirs.eval()


def logits(theirs, images, input_ids, padding=None, masked=None):
    """Logits (B, T, V), or (n, V) where `masked` (B, T) is true; `padding` (B, T) is 1 at padding tokens."""
    padding = torch.zeros_like(input_ids) if padding is None else padding
    return theirs(image=images, text_ids=input_ids, padding_mask=padding, language_masked_pos=masked)[0]


def loss_function(smoothing=0.1, drop_worst_ratio=0.2, drop_worst_after=12000):
    """Its loss: called with (logits, targets, step)."""
    return recipe("utils").BertCaptioningLoss(smoothing, drop_worst_ratio, drop_worst_after)


class _Ids:
    """A tokenizer that returns ids in place of text."""

    def __init__(self, tokenizer) -> None:
        self.mask_token_id, self.pad_token_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.cls_token_id, self.sep_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id

    def batch_decode(self, rows, skip_special_tokens):
        # A row is `<s>`, the caption, `<mask>`, `</s>`, padding.
        return [row[1 : row.index(self.sep_token_id) - 1] for row in rows.tolist()]


@torch.inference_mode()
def generate(theirs, images, tokenizer, num_beams=3, max_tokens=64, length_penalty=0.6) -> list[list[int]]:
    """Its beam search, by CaptioningHandler: the ids of each caption."""
    engine = recipe("engine_for_finetuning")
    options = SimpleNamespace(
        label_smoothing=0.1,
        drop_worst_ratio=0.2,
        drop_worst_after=12000,
        num_beams=num_beams,
        num_max_bpe_tokens=max_tokens,
        length_penalty=length_penalty,
        vocab_size=theirs.mlm_head.out_features,
    )
    with patch.object(engine, "get_sentencepiece_model_for_beit3", lambda _: _Ids(tokenizer)):
        handler = engine.CaptioningHandler(options)
    handler.eval_batch(theirs, images, torch.arange(len(images)))
    return [prediction["caption"] for prediction in handler.predictions]
