"""`beit3.spm` as transformers' XLM-RoBERTa tokenizer, checked.

Ids: piece id + 1; 0 `<s>`, 1 `<pad>`, 2 `</s>`, 3 `<unk>`, the last `<mask>`. transformers 5 raises on
`XLMRobertaTokenizer("beit3.spm")` and silently yields five words for `XLMRobertaTokenizer(vocab_file=…)`;
`from_pretrained` on a folder that names the file `sentencepiece.bpe.model` gives version 4's ids in both. The tests
hold this to golden ids.
"""

import shutil
import tempfile
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizerBase, XLMRobertaTokenizer

SPM_NAME = "sentencepiece.bpe.model"
UNUSED_ROWS = 8  # public BEiT-3: 64,010 rows for 64,002 ids
XLM_ROBERTA_PIECES = 250_000


class TokenizerError(ValueError):
    """The file is not a vocabulary that BEiT-3 can use."""


def load_tokenizer(spm_path: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """Read a sentencepiece unigram model; with `vocab_size` also hold it to the rows of the model it is for.

    `TokenizerError` names the file and what was found instead. `model_max_length` is unbounded: captions are cut by
    `num_max_bpe_tokens`, not here.
    """
    path = Path(spm_path)
    pieces = _read_pieces(path)
    _check_pieces(path, pieces, vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / SPM_NAME)
        tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    if len(tokenizer) != len(pieces) + 2 or tokenizer.mask_token_id != len(pieces) + 1:
        raise TokenizerError(
            f"{path}: transformers made {len(tokenizer)} ids of {len(pieces)} pieces, expected {len(pieces) + 2}; "
            "use transformers 4.57 or newer, with sentencepiece installed"
        )
    return tokenizer


def _read_pieces(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the sentencepiece model beit3.spm here, found nothing")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except RuntimeError:
        raise TokenizerError(f"{path}: expected a sentencepiece model (beit3.spm), found another kind of file") from None
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def _check_pieces(path: Path, pieces: list[str], vocab_size: int | None) -> None:
    if len(pieces) >= XLM_ROBERTA_PIECES:
        raise TokenizerError(
            f"{path}: {len(pieces):,} pieces: this is XLM-RoBERTa's own vocabulary; BEiT-3 has another, beit3.spm, "
            "with 64,000 pieces"
        )
    if pieces[:3] != ["<unk>", "<s>", "</s>"]:
        raise TokenizerError(f"{path}: expected pieces <unk>, <s>, </s> first, found {', '.join(pieces[:3])}")
    found, wanted = len(pieces), None if vocab_size is None else vocab_size - UNUSED_ROWS - 2
    if wanted is not None and found != wanted:
        few = "too few" if found < wanted else "too many"
        raise TokenizerError(
            f"{path}: {few} pieces: found {found:,}, expected {wanted:,} for a model of {vocab_size:,} rows; "
            "use the beit3.spm that belongs to the checkpoint"
        )


def prefix_ids(tokenizer: PreTrainedTokenizerBase, subject: str, aspect: str) -> list[int]:
    """The words that tell a model of several descriptions which one is asked for, as ids without special tokens."""
    return tokenizer.encode(f"{subject} {aspect.replace('_', ' ')}:", add_special_tokens=False)
