"""Load `beit3.spm` as transformers' XLM-RoBERTa tokenizer, and check it.

Ids: piece id + 1; 0 `<s>`, 1 `<pad>`, 2 `</s>`, 3 `<unk>`, the last one `<mask>`. With transformers 5
`XLMRobertaTokenizer("beit3.spm")` raises and `XLMRobertaTokenizer(vocab_file=…)` silently yields a vocabulary of five
words; `from_pretrained` on a folder that names the file `sentencepiece.bpe.model` gives version 4's ids in both.
"""

import shutil
import tempfile
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizerBase, XLMRobertaTokenizer

from beit3lib.files import check_regular_file

SPM_NAME = "sentencepiece.bpe.model"
UNUSED_ROWS = 8  # public BEiT-3 models have 64,010 rows of text embeddings for 64,002 ids
XLM_ROBERTA_PIECES = 250_000
MAX_SPM_BYTES = 100_000_000  # beit3.spm is 1.4 MB


class TokenizerError(ValueError):
    """The file is not a sentencepiece model that BEiT-3 can use."""


def load_tokenizer(spm_path: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """Read a sentencepiece unigram model; with `vocab_size` also check that it has the size of that model's vocabulary.

    `model_max_length` is unbounded: captions are cut at `num_max_bpe_tokens` instead.
    """
    path = check_regular_file(spm_path, MAX_SPM_BYTES)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except RuntimeError:
        raise TokenizerError(
            f"{path}: expected a sentencepiece model, found another kind of file. Use the beit3.spm of the BEiT-3 release."
        ) from None
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    _check_pieces(path, pieces, vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / SPM_NAME)
        tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    if len(tokenizer) != len(pieces) + 2 or tokenizer.mask_token_id != len(pieces) + 1:
        raise TokenizerError(
            f"{path}: expected {len(pieces) + 2} ids from {len(pieces)} pieces, got {len(tokenizer)}. "
            "Install transformers 4.57 or newer, and sentencepiece."
        )
    return tokenizer


def _check_pieces(path: Path, pieces: list[str], vocab_size: int | None) -> None:
    if pieces[:3] != ["<unk>", "<s>", "</s>"]:
        raise TokenizerError(
            f"{path}: expected the pieces <unk>, <s>, </s> first, found {', '.join(pieces[:3])}. "
            "Use the beit3.spm of the BEiT-3 release."
        )
    if len(pieces) >= XLM_ROBERTA_PIECES:
        raise TokenizerError(
            f"{path}: expected BEiT-3's vocabulary, found {len(pieces):,} pieces, which is XLM-RoBERTa's. "
            "Use the beit3.spm of the BEiT-3 release, which has 64,000."
        )
    if vocab_size is not None and len(pieces) != vocab_size - UNUSED_ROWS - 2:
        raise TokenizerError(
            f"{path}: expected {vocab_size - UNUSED_ROWS - 2:,} pieces for a model with {vocab_size:,} rows of text "
            f"embeddings, found {len(pieces):,}. Use the beit3.spm that belongs to the checkpoint."
        )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, subject: str, aspect: str) -> list[int]:
    """Return the ids that a caption of this type is conditioned on, fed between `<s>` and the caption."""
    return tokenizer.encode(f"{subject} {aspect.replace('_', ' ')}:", add_special_tokens=False)
