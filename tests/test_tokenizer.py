"""The ids are transformers 4's, and a file that is not BEiT-3's vocabulary is refused by name."""

import json
from pathlib import Path

import pytest
import sentencepiece.sentencepiece_model_pb2 as spm_format

from beit3lib.sample import draw as sample
from beit3lib.tokenizer import TokenizerError, load_tokenizer, prefix_ids

GOLDEN = Path(__file__).parents[2] / "shared/data/tokenizer"


def spm_with(path, pieces):
    """A sentencepiece unigram model of so many pieces: the sample's, and fillers behind them."""
    model = spm_format.ModelProto.FromString(sample.SPM_PATH.read_bytes())
    for number in range(pieces - len(model.pieces)):
        model.pieces.add(piece=f"▁filler{number}", score=-99.0)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden ids are not here: {GOLDEN}")
def test_golden_ids():
    golden = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(GOLDEN / "toy.spm")
    assert len(tokenizer) == golden["len"] and tokenizer.mask_token_id == golden["mask_token_id"]
    names = {"bos": "bos", "pad": "pad", "eos": "eos", "unk": "unk"}
    assert {key: getattr(tokenizer, f"{name}_token_id") for key, name in names.items()} == {k: golden[k] for k in names}
    for case in golden["cases"]:
        ids = tokenizer.encode(case["text"], add_special_tokens=False)
        assert ids == case["ids"], case["text"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == case["decoded"]


def test_a_vocabulary_of_the_public_size(tmp_path):
    tokenizer = load_tokenizer(spm_with(tmp_path / "beit3.spm", 64000), vocab_size=64010)
    assert len(tokenizer) == 64002 and tokenizer.mask_token_id == 64001


def test_the_samples_captions_survive_the_tokenizer():
    tokenizer = load_tokenizer(sample.SPM_PATH)
    text = sample.full_caption(sample.Scene(), "vehicle")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.unk_token_id not in tokenizer.encode("".join(map(chr, range(33, 127))), add_special_tokens=False)


def test_prefixes_differ_between_all_descriptions():
    tokenizer = load_tokenizer(sample.SPM_PATH)
    prefixes = {tuple(prefix_ids(tokenizer, s, a)) for s in ("vehicle", "pedestrian") for a in sample.ATTRIBUTES}
    assert len(prefixes) == 10


def test_wrong_files_are_refused_by_name(tmp_path):
    text = tmp_path / "notes.spm"
    text.write_text("not a model")
    with pytest.raises(TokenizerError, match=r"notes\.spm: expected a sentencepiece model"):
        load_tokenizer(text)
    with pytest.raises(TokenizerError, match=r"sample\.spm: too few pieces.*expected 64,000"):
        load_tokenizer(sample.SPM_PATH, vocab_size=64010)
    with pytest.raises(TokenizerError, match="XLM-RoBERTa's own vocabulary"):
        load_tokenizer(spm_with(tmp_path / "xlmr.spm", 250000))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere.spm")
