"""Ids are those of transformers 4, and a file that is not BEiT-3's vocabulary is refused by name."""

import json
from pathlib import Path

import pytest
import sentencepiece.sentencepiece_model_pb2 as spm_format

from beit3lib.sample import SPM_PATH
from beit3lib.tokenizer import TokenizerError, load_tokenizer

GOLDEN = Path(__file__).parents[2] / "shared/data/tokenizer"


def write_spm(path, pieces):
    """A sentencepiece unigram model with `pieces` pieces: the sample's, and fillers."""
    model = spm_format.ModelProto.FromString(SPM_PATH.read_bytes())
    for index in range(pieces - len(model.pieces)):
        model.pieces.add(piece=f"▁filler{index}", score=-99.0)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden ids at {GOLDEN}")
def test_ids_equal_the_golden_ids():
    golden = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(GOLDEN / "toy.spm")
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos", "unk")}
    special |= {"len": len(tokenizer), "mask_token_id": tokenizer.mask_token_id}
    assert special == {name: golden[name] for name in special}
    for case in golden["cases"]:
        if "<mask>" not in case["text"]:  # the golden ids are those of a tokenizer that reads it as a token
            ids = tokenizer.encode(case["text"], add_special_tokens=False)
            assert ids == case["ids"], case["text"]
            assert tokenizer.decode(ids, skip_special_tokens=True) == case["decoded"]


@pytest.mark.parametrize("name", ["<s>", "</s>", "<pad>", "<unk>", "<mask>"])
def test_the_name_of_a_special_token_in_a_caption_is_text(name):
    tokenizer = load_tokenizer(SPM_PATH)
    for text in (f"The road {name} is wide.", f"The road{name}"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert not set(ids) & {0, 1, 2, tokenizer.mask_token_id}
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_a_vocabulary_of_the_public_size_loads_and_another_one_is_refused(tmp_path):
    tokenizer = load_tokenizer(write_spm(tmp_path / "beit3.spm", 64_000), vocab_size=64_010)
    assert len(tokenizer) == 64_002 and tokenizer.mask_token_id == 64_001
    with pytest.raises(TokenizerError, match=r"sample\.spm: expected .* with 64,000 pieces, found 166"):
        load_tokenizer(SPM_PATH, vocab_size=64010)
    with pytest.raises(TokenizerError, match=r"xlmr\.spm: expected .* BEiT-3 .*, found 250,000"):
        load_tokenizer(write_spm(tmp_path / "xlmr.spm", 250_000))
